"""Collectives of a compiled module, and the network time that they need.

XLA for TPU splits an asynchronous collective into several fusions that each
contain its instruction, and writes a reduce-scatter as a fusion around an
all-reduce. Both count as the one operation that they are. Between slices a
collective is a transfer through the hosts, among the devices at the same
position of each slice.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from grm_jax.aot import hlo_parser
from grm_jax.aot.hlo_parser import ExecutedInstruction, HloModule, nbytes
from grm_jax.sharding.chip_specs import ChipSpec

KINDS = (
  'all-gather',
  'reduce-scatter',
  'all-reduce',
  'all-to-all',
  'collective-permute',
)
# Prefix of the fusion that XLA for TPU uses for a reduce-scatter.
_REDUCE_SCATTER_FUSION = 'all-reduce-scatter'
# Prefix of fusions that run a part of a collective beside other work.
_ASYNC_FUSION = 'async_collective'
# The kind of collective that a transfer between slices belongs to.
_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_CHANNEL = re.compile(r'\bchannel_id=(\d+)')
# The three notations of device groups: by mesh axes, as a reshaped and
# transposed iota, and as lists.
_MESH = re.compile(
  r'replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^{]*)\))? \{([^}]*)\}'
)
_TRANSPOSED_IDS = re.compile(r'\[([\d,]+)\](?:T\(([\d,]+)\))?')
_IOTA = re.compile(
  r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?'
)
_LISTS = re.compile(
  r'(?:replica_groups|source_target_pairs)=\{((?:\{[\d,]*\},?)*)\}'
)
_AXIS = re.compile(r"'([^']+)'=(\d+)")
_SUBAXIS = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")

Groups = tuple[tuple[int, ...], ...]
Link = tuple[str, int]  # (dimension of the torus, direction) or ('slices', 0)


@dataclasses.dataclass(frozen=True)
class Collective:
  """An operation that several devices execute together.

  Attributes:
    kind: of KINDS.
    nbytes: size of the result on each device for an all-gather, size of the
      operand on each device for the others.
    groups: indices into the mesh of the devices that communicate with each
      other; of a permutation, (sender, receiver) pairs.
    executions: how many times it executes.
    source: name of the JAX operation that it belongs to.
    fused: it is part of fusions that do other work at the same time.
    frame: see ExecutedInstruction; where it starts.
    line: see ExecutedInstruction.
  """

  kind: str
  nbytes: int
  groups: Groups
  executions: int
  source: str = ''
  fused: bool = False
  frame: str = ''
  line: str = ''

  @property
  def sent_bytes(self) -> float:
    """Bytes that a device must send, in all executions."""
    n = len(self.groups[0])
    if self.kind == 'collective-permute':
      return float(self.executions * self.nbytes)
    # A ring all-reduce is a reduce-scatter followed by an all-gather.
    phases = 2 if self.kind == 'all-reduce' else 1
    return phases * self.executions * self.nbytes * (n - 1) / n


def of_module(
  module: HloModule, num_devices: int, name: str = '', num_slices: int = 1
) -> list[Collective]:
  """Returns all collectives of a program.

  Args:
    module: module of one device, which is in the first slice.
    num_devices: devices of the mesh; slices are its outermost factor.
    name: computation to begin with; '' is ENTRY.
    num_slices: slices that the devices are in.

  Raises:
    ValueError: device groups in an unknown notation.
  """
  by_key: dict[tuple, Collective] = {}
  for executed in hlo_parser.walk(module, name):
    kind = _kind(executed)
    if not kind:
      continue
    x = executed.instruction
    channel = _CHANNEL.search(x.attributes)
    # On CPU two collectives may have the same channel, hence the source.
    key = (
      (x.base_op, channel[1], x.source)
      if channel
      else (executed.computation, x.name)
    )
    fused = executed.computation.startswith(_ASYNC_FUSION)
    known = by_key.get(key)
    if known:
      # A collective that a loop continues was started outside of it, once.
      by_key[key] = dataclasses.replace(
        known,
        executions=min(known.executions, executed.executions),
        fused=known.fused or fused,
      )
      continue
    if x.op == 'send':
      groups = _groups_between_slices(num_devices, num_slices)
    else:
      groups = _groups(x.attributes, num_devices // num_slices)
    by_key[key] = Collective(
      kind=kind,
      nbytes=_nbytes(module, executed, kind, len(groups[0])),
      groups=groups,
      executions=executed.executions,
      source=x.source,
      fused=fused,
      frame=executed.frame,
      line=executed.line,
    )
  return [x for x in by_key.values() if len(x.groups[0]) > 1]


def _kind(executed: ExecutedInstruction) -> str:
  """Returns the member of KINDS that an instruction is; '' for others."""
  x = executed.instruction
  if x.op == 'send':
    transfer = _TRANSFER.search(x.attributes)
    kind = transfer[1].lower().replace('_', '-') if transfer else ''
    return 'collective-permute' if kind == 'one-to-one' else kind
  in_scatter = executed.computation.startswith(_REDUCE_SCATTER_FUSION)
  if x.base_op == 'all-reduce' and in_scatter:
    return 'reduce-scatter'
  return x.base_op if x.base_op in KINDS else ''


def _nbytes(
  module: HloModule, executed: ExecutedInstruction, kind: str, group_size: int
) -> int:
  """Size as Collective.nbytes defines it."""
  x, lines = executed.instruction, module[executed.computation].lines
  operand_bytes = sum(nbytes(lines[y].shape, True) for y in x.operands)
  if kind != 'all-gather':
    return operand_bytes
  if x.op == 'send':
    return group_size * operand_bytes
  return nbytes(x.shape, True)


def _groups_between_slices(num_devices: int, num_slices: int) -> Groups:
  """Devices at the same position of each slice."""
  slice_size = num_devices // num_slices
  return tuple(
    tuple(range(i, num_devices, slice_size)) for i in range(slice_size)
  )


def _groups(attributes: str, num_devices: int) -> Groups:
  if match := _MESH.search(attributes):
    table = _groups_of_mesh(match[1], match[2] or '', match[3])
  elif match := _IOTA.search(attributes):
    shape, dims, order = (_ints(x or '') for x in match.groups())
    table = np.arange(math.prod(dims)).reshape(dims)
    table = np.transpose(table, order or range(len(dims))).reshape(shape)
  elif match := _LISTS.search(attributes):
    rows = [_ints(row) for row in re.findall(r'\{([\d,]*)\}', match[1])]
    return tuple(map(tuple, rows)) or (tuple(range(num_devices)),)
  else:
    raise ValueError(
      f'a collective with unknown device groups: {attributes[:200]}'
    )
  return tuple(tuple(map(int, row)) for row in table)


def _ints(text: str) -> list[int]:
  return [int(n) for n in text.split(',') if n]


def _groups_of_mesh(axes: str, ids: str, over: str) -> np.ndarray:
  """Parses groups such as mesh['a'=4,'b'=2] {'b'}.

  Args:
    axes: sizes by axis.
    ids: device ids, a list or as [4,2]T(1,0); '' is 0, 1, ...
    over: axes of a group. A part of an axis is 'a':(n)m: the m positions
      inside those of n.

  Returns:
    Device ids [groups, members].
  """
  sizes = {name: int(size) for name, size in _AXIS.findall(axes)}
  parts = {name: (outer, size) for name, outer, size in _SUBAXIS.findall(over)}
  shape: list[int] = []  # of the mesh, with partial axes split in three
  member_dims: list[int] = []  # dimensions of `shape` inside of a group
  for name, size in sizes.items():
    outer, inner = parts.get(name, ('', ''))
    if inner:
      member_dims.append(len(shape) + 1)
      shape += [int(outer), int(inner), size // int(outer) // int(inner)]
      continue
    if name in parts:
      member_dims.append(len(shape))
    shape.append(size)
  group_dims = [i for i in range(len(shape)) if i not in member_dims]
  table = _device_ids(ids, math.prod(shape)).reshape(shape)
  members = math.prod(shape[i] for i in member_dims)
  return np.transpose(table, group_dims + member_dims).reshape(-1, members)


def _device_ids(text: str, count: int) -> np.ndarray:
  if match := _TRANSPOSED_IDS.search(text):
    table = np.arange(count).reshape(_ints(match[1]))
    return np.transpose(table, _ints(match[2] or '') or range(table.ndim))
  return np.array(_ints(text) or range(count))


def axes(collective: Collective, mesh: Mapping[str, int]) -> tuple[str, ...]:
  """Returns the mesh axes along which devices of a group differ.

  Args:
    collective: from `of_module`.
    mesh: sizes by axis, as Mesh.shape.
  """
  positions = [
    np.unravel_index(group, tuple(mesh.values())) for group in collective.groups
  ]
  return tuple(
    name
    for i, name in enumerate(mesh)
    if any(len(set(position[i].tolist())) > 1 for position in positions)
  )


def seconds(
  collective: Collective, devices: Sequence[jax.Device], chip: ChipSpec
) -> float:
  """Returns the minimal network time of all executions.

  Assumes that a group's box of chips uses all its links, in both directions
  where the torus wraps around, and that nothing else is on them. Groups that
  span slices use the bandwidth between slices.

  Args:
    collective: from `of_module`.
    devices: devices of the mesh, flat.
    chip: their specification.
  """
  members = [devices[i] for i in collective.groups[0]]
  if len({getattr(x, 'slice_index', 0) for x in members}) > 1:
    return collective.sent_bytes / chip.dcn_bandwidth
  box = _extents(members)
  if not box:  # all devices are on one chip
    return collective.sent_bytes / chip.hbm_bandwidth
  if collective.kind == 'collective-permute':
    return collective.sent_bytes / chip.ici_bandwidth
  torus = _extents(devices)
  bandwidth = {
    dim: chip.ici_bandwidth
    * _directions(extent, torus[dim], chip.min_ring_size)
    for dim, extent in box.items()
  }
  if collective.kind == 'all-to-all':
    # Half of all bytes cross the middle of the longest side, half of these in
    # each direction.
    dim = max(box, key=lambda d: box[d] / bandwidth[d])
    total = collective.executions * collective.nbytes
    return total * box[dim] / 4 / bandwidth[dim]
  return collective.sent_bytes / sum(bandwidth.values())


def links(
  collective: Collective, devices: Sequence[jax.Device]
) -> frozenset[Link]:
  """Returns the links that a collective uses.

  A permutation along one dimension uses one direction of it, other collectives
  use both directions of all dimensions of their box of chips.

  Args:
    collective: from `of_module`.
    devices: devices of the mesh, flat.
  """
  members = [devices[i] for i in collective.groups[0]]
  if len({getattr(x, 'slice_index', 0) for x in members}) > 1:
    return frozenset({('slices', 0)})
  box = _extents(members)
  if collective.kind == 'collective-permute' and len(box) == 1:
    (dim,) = box
    torus = len({x.coords[dim] for x in devices})
    sender, receiver = (x.coords[dim] for x in members)
    # On a ring, the shorter way; half of it counts as up.
    is_up = (receiver - sender) % torus <= torus // 2
    return frozenset({(str(dim), 1 if is_up else -1)})
  return frozenset((str(dim), sign) for dim in box for sign in (1, -1))


def _extents(devices: Sequence[jax.Device]) -> dict[int, int]:
  """Lengths of the sides of the box of chips, without those of length 1."""
  coordinates = zip(*(x.coords for x in devices), strict=True)
  lengths = {dim: len(set(values)) for dim, values in enumerate(coordinates)}
  return {dim: length for dim, length in lengths.items() if length > 1}


def _directions(extent: int, torus_extent: int, min_ring_size: int) -> int:
  """2 if the side wraps around: it spans the torus in complete rings."""
  return 2 if extent == torus_extent and extent % min_ring_size == 0 else 1


def table(
  items: Sequence[Collective],
  mesh: Mapping[str, int],
  devices: Sequence[jax.Device],
  chip: ChipSpec | None,
  exposed_seconds: Sequence[float] = (),
) -> list[dict]:
  """Groups collectives by kind and mesh axes, the most bytes first.

  Args:
    items: from `of_module`.
    mesh: sizes by axis.
    devices: devices of the mesh, flat.
    chip: their specification; None if unknown, then seconds are None.
    exposed_seconds: of each collective, see overlap.exposed_seconds.

  Returns:
    Rows with kind, axes, count, sent_bytes (of a device), seconds and
    exposed_seconds.
  """
  rows: dict = collections.defaultdict(lambda: [0, 0.0, 0.0, 0.0])
  exposed_or_zero = exposed_seconds or [0.0] * len(items)
  for x, exposed in zip(items, exposed_or_zero, strict=True):
    row = rows[x.kind, axes(x, mesh)]
    row[0] += x.executions
    row[1] += x.sent_bytes
    row[2] += seconds(x, devices, chip) if chip else 0.0
    row[3] += exposed
  table_rows = [
    {
      'kind': kind,
      'axes': list(over),
      'count': count,
      'sent_bytes': round(sent),
      'seconds': time if chip else None,
      'exposed_seconds': exposed if chip else None,
    }
    for (kind, over), (count, sent, time, exposed) in rows.items()
  ]
  return sorted(table_rows, key=lambda row: -row['sent_bytes'])
