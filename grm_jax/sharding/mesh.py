"""The device mesh: axes data, fsdp and tensor, in an order the network likes.

`data` replicates parameters, `fsdp` splits parameters and batch, `tensor`
splits heads, MLP and vocabulary. Several TPU slices (joined by the data-centre
network) become the outer factor of `data`.
"""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from grm_jax.errors import UserError
from grm_jax.sharding import rules

AXES = ('data', 'fsdp', 'tensor')


def axis_sizes(
  data: int, fsdp: int, tensor: int, num_devices: int, slices: int = 1
) -> tuple[int, int, int]:
  """Sizes of the axes of one slice, with -1 replaced by what is left.

  Args:
    data, fsdp, tensor: sizes; at most one is -1. `data` includes the slices.
    num_devices: devices in all slices together.
    slices: TPU slices, an outer factor of `data`.

  Returns:
    (data, fsdp, tensor), whose product is `num_devices`.

  Raises:
    UserError: the sizes do not multiply to `num_devices`.
  """
  sizes = [data, fsdp, tensor]
  asked = ', '.join(f'{a}={s}' for a, s in zip(AXES, sizes, strict=True))
  if sizes.count(-1) > 1 or any(s == 0 or s < -1 for s in sizes):
    raise UserError(
      f'config.mesh has {asked}; sizes are positive and at most one is -1'
    )
  known = math.prod(s for s in sizes if s > 0)
  if -1 in sizes:
    sizes[sizes.index(-1)] = num_devices // known
  if math.prod(sizes) != num_devices:
    raise UserError(
      f'config.mesh has {asked}, which is {known} devices'
      f'{" times what is left" if -1 in (data, fsdp, tensor) else ""}; there '
      f'are {num_devices}; change config.mesh.fsdp'
    )
  if slices < 1 or sizes[0] % slices:
    raise UserError(
      f'config.mesh.data is {sizes[0]}, config.mesh.num_slices {slices}: the '
      'slices must divide data'
    )
  return tuple(sizes)


def make_mesh(
  data: int = 1,
  fsdp: int = -1,
  tensor: int = 1,
  slices: int = 1,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """A mesh over `devices` (default: all), ordered for the physical network."""
  devices = jax.devices() if devices is None else list(devices)
  sizes = axis_sizes(data, fsdp, tensor, len(devices), slices)
  if slices > 1:
    _check_slices(devices, slices)
    inner = (sizes[0] // slices, *sizes[1:])
    array = mesh_utils.create_hybrid_device_mesh(
      inner,
      (slices, 1, 1),
      devices,
      process_is_granule=devices[0].platform != 'tpu',
      allow_split_physical_axes=True,
    )
  else:
    array = mesh_utils.create_device_mesh(
      sizes, devices, allow_split_physical_axes=True
    )
  return Mesh(np.asarray(array), AXES)


def _check_slices(devices, slices):
  # Only TPUs know their slice; elsewhere a process stands for a slice.
  on_tpu = devices[0].platform == 'tpu'
  found = {d.slice_index if on_tpu else d.process_index for d in devices}
  if len(found) != slices:
    raise UserError(
      f'config.mesh.num_slices is {slices}, but the devices are in {len(found)} '
      f'{"slices" if on_tpu else "processes"}; change config.mesh.num_slices'
    )


def from_config(
  config: ConfigDict,
  devices: Sequence[jax.Device] | None = None,
  weights: str | None = None,
) -> rules.ShardingLayout:
  """The Layout that `config.mesh` describes.

  Args:
    config: has `mesh`.
    devices: default all.
    weights: where weights rest in decoding, see rules.for_decoding; None is
      the layout of training.

  Raises:
    UserError: sizes that do not fit the devices or each other.
  """
  mesh = make_mesh(
    config.mesh.data,
    config.mesh.fsdp,
    config.mesh.tensor,
    config.mesh.num_slices,
    devices,
  )
  table = config.mesh.logical_axis_rules.to_dict()
  if weights is not None:
    mesh = for_sampling(mesh, config.mesh.decode_tensor)
    table = rules.for_decoding(table, weights)
  return rules.layout(mesh, table)


def for_sampling(mesh: Mesh, tensor: int) -> Mesh:
  """The same devices with another `tensor` axis, at the expense of `fsdp`.

  Training splits weights over `fsdp` and gathers them; decoding, which would
  gather them for every token, splits them over `tensor` or not at all. The
  order of devices stays, so that arrays can go from one to the other in one
  program, and neighbours along `fsdp` become neighbours along `tensor`.

  Args:
    mesh: of training.
    tensor: the size of the axis; 0 is that of training.

  Raises:
    UserError: it does not divide fsdp x tensor of training.
  """
  data, fsdp, old = mesh.devices.shape
  if not tensor:
    return mesh
  if tensor < 0 or fsdp * old % tensor:
    raise UserError(
      f'config.mesh.decode_tensor is {tensor}; it must divide fsdp x tensor '
      f'of config.mesh, {fsdp} x {old}'
    )
  devices = mesh.devices.reshape(data, fsdp * old // tensor, tensor)
  return Mesh(devices, AXES)


def one_device() -> rules.ShardingLayout:
  """A layout for the first local device: nothing is split."""
  mesh = make_mesh(1, 1, 1, devices=jax.local_devices()[:1])
  return rules.layout(mesh, rules.RULES)
