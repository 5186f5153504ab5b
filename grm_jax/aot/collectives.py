"""Collectives of a compiled module, and how long a network takes for them.

XLA for TPU runs a collective in the background as several fusions, each with
the instruction in it, and writes a reduce-scatter as a fusion of an all-reduce:
both are counted as the one operation that they are. Between slices an operation
is a transfer to the host and back, among the devices at the same place of each.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from grm_jax.aot import hlo_parser
from grm_jax.aot.hlo_parser import HloModule, Instruction, nbytes
from grm_jax.sharding.chip_specs import ChipSpec

KINDS = (
  'all-gather',
  'reduce-scatter',
  'all-reduce',
  'all-to-all',
  'collective-permute',
)
# How XLA for TPU names the fusion that is a reduce-scatter.
_SCATTERED = 'all-reduce-scatter'
# And those that are a part of a collective beside other work.
_BESIDE = 'async_collective'
# What a transfer to the host is a part of, where it goes on to other slices.
_BETWEEN = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_CHANNEL = re.compile(r'\bchannel_id=(\d+)')
_MESH = re.compile(
  r'replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^{]*)\))? \{([^}]*)\}'
)
_TURNED = re.compile(r'\[([\d,]+)\](?:T\(([\d,]+)\))?')
_IOTA = re.compile(
  r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?'
)
_LISTS = re.compile(
  r'(?:replica_groups|source_target_pairs)=\{((?:\{[\d,]*\},?)*)\}'
)
_AXIS = re.compile(r"'([^']+)'=(\d+)")
_PART = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")


@dataclasses.dataclass(frozen=True)
class Collective:
  """One operation that devices do together.

  Attributes:
    kind: of KINDS.
    nbytes: of what each device has in the end, for an all-gather; of what it
      has to begin with, for the others.
    groups: devices that do it among themselves, by their place in the mesh;
      of a permutation, pairs of sender and receiver.
    passes: how often it is done.
    source: the operation of the program that it is for.
    hidden: whether it is a part of fusions that do other work meanwhile.
    frame, line: where it is begun, as module.Run has them.
  """

  kind: str
  nbytes: int
  groups: tuple[tuple[int, ...], ...]
  passes: int
  source: str = ''
  hidden: bool = False
  frame: str = ''
  line: str = ''

  @property
  def sent(self) -> float:
    """Bytes that a device sends, at the least, in all passes."""
    n = len(self.groups[0])
    if self.kind == 'collective-permute':
      return float(self.passes * self.nbytes)
    twice = 2 if self.kind == 'all-reduce' else 1
    return twice * self.passes * self.nbytes * (n - 1) / n


def of_module(
  module: HloModule, count: int, name: str = '', slices: int = 1
) -> list[Collective]:
  """All collectives of a program.

  Args:
    module: of one of `count` devices.
    count: of the mesh, whose outermost places are the slices.
    name: of the computation to begin with; '' is ENTRY.
    slices: that the devices are in; a module is of those of the first.

  Raises:
    ValueError: groups in a notation that is not known.
  """
  found = {}
  for run in hlo_parser.runs(module, name):
    x = run.instruction
    kind = _kind(run)
    if not kind:
      continue
    channel = _CHANNEL.search(x.attributes)
    source = re.search(r'op_name="([^"]*)"', x.attributes)
    source = source[1] if source else ''
    # On CPU different ones may have the same channel.
    key = (x.base, channel[1], source) if channel else (run.computation, x.name)
    hidden = run.computation.startswith(_BESIDE)
    if key in found:
      # What a loop inside goes on with is begun outside of it, once.
      found[key] = dataclasses.replace(
        found[key],
        passes=min(found[key].passes, run.passes),
        hidden=found[key].hidden or hidden,
      )
      continue
    if x.op == 'send':
      groups = _between(count, slices)
    else:
      groups = _groups(x.attributes, count // slices)
    size = _nbytes(x, module[run.computation].lines, kind, len(groups[0]))
    place = run.frame, run.line
    found[key] = Collective(
      kind, size, groups, run.passes, source, hidden, *place
    )
  return [x for x in found.values() if len(x.groups[0]) > 1]


def _kind(run: hlo_parser.ExecutedInstruction) -> str:
  """Which of KINDS an instruction is, '' for none."""
  x = run.instruction
  if x.op == 'send':
    between = _BETWEEN.search(x.attributes)
    kind = between[1].lower().replace('_', '-') if between else ''
    return 'collective-permute' if kind == 'one-to-one' else kind
  if x.base == 'all-reduce' and run.computation.startswith(_SCATTERED):
    return 'reduce-scatter'
  return x.base if x.base in KINDS else ''


def _nbytes(x: Instruction, lines, kind: str, members: int) -> int:
  """As Collective.nbytes."""
  given = sum(nbytes(lines[name].shape, True) for name in x.operands)
  if kind != 'all-gather':
    return given
  return members * given if x.op == 'send' else nbytes(x.shape, True)


def _between(count: int, slices: int) -> tuple[tuple[int, ...], ...]:
  """The devices at the same place of each slice."""
  own = count // slices
  return tuple(tuple(range(i, count, own)) for i in range(own))


def _groups(attributes: str, count: int) -> tuple[tuple[int, ...], ...]:
  if found := _MESH.search(attributes):
    table = _of_mesh(found[1], found[2] or '', found[3])
  elif found := _IOTA.search(attributes):
    shape, dims, order = (_ints(x or '') for x in found.groups())
    table = np.arange(math.prod(dims)).reshape(dims)
    table = np.transpose(table, order or range(len(dims))).reshape(shape)
  elif found := _LISTS.search(attributes):
    rows = [_ints(row) for row in re.findall(r'\{([\d,]*)\}', found[1])]
    return tuple(map(tuple, rows)) or (tuple(range(count)),)
  else:
    raise ValueError(
      f'a collective among devices that cannot be read: {attributes[:200]}'
    )
  return tuple(tuple(map(int, row)) for row in table)


def _ints(text):
  return [int(n) for n in text.split(',') if n]


def _of_mesh(axes: str, ids: str, over: str) -> np.ndarray:
  """[groups, members] of a mesh such as 'a'=4,'b'=2 over axes such as 'b'.

  Its devices are 0, 1, ..., or `ids`: a list, or [4,2]T(1,0), the sizes of an
  array of them and how it is turned. A part of an axis is 'a':(n)m, the m
  places behind those of n.
  """
  sizes = {name: int(size) for name, size in _AXIS.findall(axes)}
  shape, inside = [], []
  parts = {name: (before, size) for name, before, size in _PART.findall(over)}
  for name, size in sizes.items():
    before, own = parts.get(name, ('', ''))
    if own:
      before, own = int(before), int(own)
      inside.append(len(shape) + 1)
      shape += [before, own, size // before // own]
      continue
    if name in parts:
      inside.append(len(shape))
    shape.append(size)
  others = [i for i in range(len(shape)) if i not in inside]
  table = _ids(ids, math.prod(shape)).reshape(shape)
  members = math.prod(shape[i] for i in inside)
  return np.transpose(table, others + inside).reshape(-1, members)


def _ids(text: str, count: int) -> np.ndarray:
  if turned := _TURNED.search(text):
    table = np.arange(count).reshape(_ints(turned[1]))
    return np.transpose(table, _ints(turned[2] or '') or range(table.ndim))
  return np.array(_ints(text) or range(count))


def axes(collective: Collective, mesh: Mapping[str, int]) -> tuple[str, ...]:
  """The axes of the mesh along which it goes.

  Args:
    collective: from `of_module`.
    mesh: sizes by axis, as Mesh.shape.
  """
  places = [
    np.unravel_index(x, tuple(mesh.values())) for x in collective.groups
  ]
  return tuple(
    name
    for i, name in enumerate(mesh)
    if any(len(set(own[i].tolist())) > 1 for own in places)
  )


def seconds(
  collective: Collective, devices: Sequence[jax.Device], chip: ChipSpec
) -> float:
  """How long the network takes for it at the least, in all passes.

  All links of a group's box of chips are used, both directions where its ends
  are linked; nothing else is on them. Groups that span slices go at the rate
  between slices.

  Args:
    collective: from `of_module`.
    devices: of the mesh, flat.
    chip: that they are.
  """
  members = [devices[i] for i in collective.groups[0]]
  if len({getattr(x, 'slice_index', 0) for x in members}) > 1:
    return collective.sent / chip.slice_rate
  box = _extents(members)
  if not box:  # all on one chip
    return collective.sent / chip.hbm_rate
  whole = _extents(devices)
  rates = {
    dim: chip.link_rate * _directions(extent, whole[dim], chip.ring)
    for dim, extent in box.items()
  }
  if collective.kind == 'collective-permute':
    return collective.sent / chip.link_rate
  if collective.kind == 'all-to-all':
    # Half of all goes over the middle of the longest side, both ways at once.
    dim = max(box, key=lambda dim: box[dim] / rates[dim])
    return collective.passes * collective.nbytes * box[dim] / 4 / rates[dim]
  return collective.sent / sum(rates.values())


def _extents(devices) -> dict[int, int]:
  """Length of each side of the box of chips, those of 1 left out."""
  places = list(zip(*(x.coords for x in devices), strict=True))
  found = {dim: len(set(own)) for dim, own in enumerate(places)}
  return {dim: extent for dim, extent in found.items() if extent > 1}


def _directions(extent, whole, ring):
  """2 where the ends of a side are linked: a whole one, of full rings."""
  return 2 if extent == whole and extent % ring == 0 else 1


def table(
  found: Sequence[Collective],
  mesh: Mapping[str, int],
  devices: Sequence[jax.Device],
  chip: ChipSpec | None,
  waits: Sequence[float] = (),
) -> list[dict]:
  """Rows of a kind along some axes, those that send the most first.

  Each has kind, axes, count, sent_bytes (a device), seconds, and
  exposed_seconds: those of `waits`.

  Args:
    found: from `of_module`.
    mesh: sizes by axis.
    devices: of the mesh, flat.
    chip: that they are; None where that is not known, and seconds neither.
    waits: seconds that each keeps products waiting, see schedule.waits.
  """
  rows = collections.defaultdict(lambda: [0, 0.0, 0.0, 0.0])
  for x, wait in zip(found, waits or [0.0] * len(found), strict=True):
    row = rows[x.kind, axes(x, mesh)]
    row[0] += x.passes
    row[1] += x.sent
    row[2] += seconds(x, devices, chip) if chip else 0.0
    row[3] += wait
  made = [
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
  return sorted(made, key=lambda row: -row['sent_bytes'])
