"""The device mesh: axes `data`, `fsdp` and `tensor`.

  axis     splits                                replicates
  data     prompts                               parameters
  fsdp     prompts, parameters at rest           nothing
  tensor   heads, MLP width, vocabulary          prompts

TPU slices, which the data-centre network joins, are the outer factor of
`data`: only the gradient reduction crosses between slices.
"""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from grm_jax import settings
from grm_jax.errors import UserError
from grm_jax.sharding import rules
from grm_jax.sharding.rules import AXES

_AXIS_SIZE = settings.Rule(
  'a positive integer, or -1 (the remaining devices)',
  lambda x: settings.integer(-1).is_valid(x) and x != 0,
)
# Rules of config.mesh; stages that generate also have `decode_tensor`.
SETTINGS: dict[str, settings.Rule | settings.Rules] = {
  **dict.fromkeys(AXES, _AXIS_SIZE),
  'num_slices': settings.integer(1),
  'logical_axis_rules': rules.SETTINGS,
}
DECODE_SETTINGS = SETTINGS | {
  'decode_tensor': settings.integer(0, note='0: as `tensor`')
}


def axis_sizes(
  data: int, fsdp: int, tensor: int, num_devices: int, num_slices: int = 1
) -> tuple[int, int, int]:
  """Returns the axis sizes with -1 replaced by the remaining devices.

  Args:
    data: devices along `data`, over all slices; or -1.
    fsdp: devices along `fsdp`, or -1.
    tensor: devices along `tensor`, or -1. At most one of the three is -1.
    num_devices: devices in all slices together.
    num_slices: TPU slices; must divide `data`.

  Returns:
    (data, fsdp, tensor), whose product is `num_devices`.

  Raises:
    UserError: the sizes do not multiply to `num_devices`.
  """
  sizes = [data, fsdp, tensor]
  described = ', '.join(
    f'config.mesh.{axis}={size}' for axis, size in zip(AXES, sizes, strict=True)
  )
  if sizes.count(-1) > 1 or any(s == 0 or s < -1 for s in sizes):
    raise UserError(
      f'invalid mesh {described}; set positive sizes, and at most one to -1 '
      '(the remaining devices)'
    )
  known = math.prod(s for s in sizes if s > 0)
  if -1 in sizes:
    sizes[sizes.index(-1)] = num_devices // known
  if math.prod(sizes) != num_devices:
    multiple = 'a multiple of ' if -1 in (data, fsdp, tensor) else ''
    raise UserError(
      f'{described} need {multiple}{known} devices, but there are '
      f'{num_devices}; change config.mesh.fsdp, or set it to -1'
    )
  if num_slices < 1 or sizes[0] % num_slices:
    raise UserError(
      f'config.mesh.data is {sizes[0]} and config.mesh.num_slices is '
      f'{num_slices}; config.mesh.data must be a multiple of the slices'
    )
  return sizes[0], sizes[1], sizes[2]


def make_mesh(
  data: int = 1,
  fsdp: int = -1,
  tensor: int = 1,
  num_slices: int = 1,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """Makes a mesh over `devices` in an order that suits the physical network.

  Args:
    data: devices along `data`; at most one of the sizes is -1.
    fsdp: devices along `fsdp`.
    tensor: devices along `tensor`.
    num_slices: TPU slices; an outer factor of `data`.
    devices: default: all devices of all processes.

  Raises:
    UserError: the sizes do not fit the devices.
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = axis_sizes(data, fsdp, tensor, len(devices), num_slices)
  if num_slices > 1:
    _check_num_slices(devices, num_slices)
    array = mesh_utils.create_hybrid_device_mesh(
      (sizes[0] // num_slices, *sizes[1:]),  # inside a slice
      (num_slices, 1, 1),  # between slices
      devices,
      process_is_granule=not _is_tpu(devices),
      allow_split_physical_axes=True,
    )
  else:
    array = mesh_utils.create_device_mesh(
      sizes, devices, allow_split_physical_axes=True
    )
  return Mesh(np.asarray(array), AXES)


def _is_tpu(devices):
  return devices[0].platform == 'tpu'


def _check_num_slices(devices, num_slices):
  """Raises UserError unless the devices belong to `num_slices` slices."""
  # Only TPU devices know their slice. Elsewhere a process stands for a slice.
  if _is_tpu(devices):
    unit, actual = 'slices', len({d.slice_index for d in devices})
  else:
    unit, actual = 'processes', len({d.process_index for d in devices})
  if actual != num_slices:
    raise UserError(
      f'config.mesh.num_slices is {num_slices}, but the devices belong to '
      f'{actual} {unit}; set config.mesh.num_slices={actual}'
    )


def from_config(
  config: ConfigDict,
  devices: Sequence[jax.Device] | None = None,
  weights: str | None = None,
) -> rules.ShardingLayout:
  """Makes the sharding layout that `config.mesh` describes.

  Args:
    config: has `mesh`.
    devices: default: all devices of all processes.
    weights: None for training. For decoding, where the weights rest:
      'resident' or 'fsdp', see rules.decode_rules.

  Raises:
    UserError: the sizes do not fit the devices or each other.
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
    mesh = decode_mesh(mesh, config.mesh.decode_tensor)
    table = rules.decode_rules(table, weights)
  return rules.make_layout(mesh, table)


def decode_mesh(mesh: Mesh, tensor: int) -> Mesh:
  """Returns the mesh for decoding: a larger `tensor`, a smaller `fsdp`.

  Training splits weights over `fsdp` and gathers them in each layer. Decoding
  would gather them for every token, so it splits them over `tensor` instead.
  The order of the devices stays the same, for two reasons: one program can
  move arrays from one mesh to the other, and neighbours along `fsdp`, which
  have the fastest links, become neighbours along `tensor`.

  Args:
    mesh: the mesh for training.
    tensor: devices along `tensor`; 0 keeps the mesh for training.

  Raises:
    UserError: `tensor` does not divide fsdp x tensor of the training mesh.
  """
  data, fsdp, train_tensor = mesh.devices.shape
  if not tensor:
    return mesh
  if tensor < 0 or fsdp * train_tensor % tensor:
    raise UserError(
      f'config.mesh.decode_tensor is {tensor}; it must divide '
      f'config.mesh.fsdp x config.mesh.tensor, {fsdp} x {train_tensor}'
    )
  shape = data, fsdp * train_tensor // tensor, tensor
  return Mesh(mesh.devices.reshape(shape), AXES)


def one_device() -> rules.ShardingLayout:
  """Makes a layout on the first local device; it splits nothing."""
  mesh = make_mesh(1, 1, 1, devices=jax.local_devices()[:1])
  return rules.make_layout(mesh, rules.RULES)
