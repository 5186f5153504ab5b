"""Bytes that a compiled program moves to and from HBM, read from its text.

A decode step is one execution of a loop body, and its time is the time of the
bytes it moves. XLA's own cost analysis cannot tell them: it counts a whole
table for a gather of a few rows, a whole cache for one updated position, and a
prefetched array twice. Here an array counts when it crosses between HBM and
the core, and only the part that is really read or written.

Sizes are logical. The count leaves out the padding of arrays to the chip's
tiles, the neighbours of an element that are read and written with it, and the
conditions of loops. A kernel reads its operands and writes its results once.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from grm_jax.aot import hlo_parser
from grm_jax.aot.hlo_parser import (
  Computation,
  HloModule,
  Instruction,
  nbytes,
  tuple_elements,
)

# These name an existing array or compute it from nothing large. The array of a
# `-done` is counted at its `-start`.
_FREE = {
  'parameter',
  'constant',
  'get-tuple-element',
  'tuple',
  'bitcast',
  'after-all',
  'partition-id',
}
_SLICING = {'slice', 'dynamic-slice', 'gather'}  # they slice operand 0

_Moves = list[tuple[int, Instruction]]  # HBM bytes of each instruction


@dataclasses.dataclass(frozen=True)
class HbmTraffic:
  """HBM traffic of a program, or of one execution of its loop, per device.

  Attributes:
    hbm_bytes: bytes read from HBM plus bytes written to it.
    largest: the ten instructions with the most bytes, in descending order, as
      (bytes, name, operation).
  """

  hbm_bytes: int
  largest: tuple[tuple[int, str, str], ...]


def of_module(module: HloModule, name: str = '') -> HbmTraffic:
  """Counts the traffic of a program, or of one computation.

  A conditional counts only the branch that moves the fewest bytes. It is the
  common case, such as sampling a token without truncation. A loop counts
  once for each execution of its body, once if that number is unknown.

  Args:
    module: module of one device.
    name: computation; '' is ENTRY.

  Raises:
    ValueError: an element type of unknown size.
  """
  moves = _moves(module, name or module.entry, 1)
  largest = sorted(moves, key=lambda move: -move[0])[:10]
  return HbmTraffic(
    _total(moves), tuple((count, x.name, x.op) for count, x in largest)
  )


def main_loop(module: HloModule) -> str:
  """Returns the body of the loop in ENTRY that moves the most per execution.

  Args:
    module: module of one device.

  Raises:
    ValueError: the module has no loop; or as `of_module`.
  """
  loops = [x for x in module[module.entry].lines.values() if x.op == 'while']
  if not loops:
    raise ValueError('the compiled module has no loop in its ENTRY computation')
  bodies = [x.called[0] for x in loops]
  return max(bodies, key=lambda name: _total(_moves(module, name, 1)))


def _total(moves: Iterable[tuple[int, Instruction]]) -> int:
  return sum(count for count, _ in moves)


def _moves(module: HloModule, name: str, executions: int) -> _Moves:
  moves: _Moves = []
  lines = module[name].lines
  for x in lines.values():
    if x.op == 'conditional':
      branches = [_moves(module, branch, executions) for branch in x.called]
      moves += min(branches, key=_total)
    elif x.op == 'while':
      (body,) = x.called
      times = executions * hlo_parser.trip_count(module, x)
      moves += _moves(module, body, times)
    elif x.op not in _FREE and not x.op.endswith('-done'):
      shapes = [lines[operand].shape for operand in x.operands]
      read = sum(_read(module, x, i, shape) for i, shape in enumerate(shapes))
      moves.append((executions * (read + _written(module, lines, x)), x))
  return moves


def _read(module: HloModule, x: Instruction, index: int, shape: str) -> int:
  """HBM bytes that `x` reads of operand `index`, which has type `shape`."""
  whole = nbytes(shape)
  part = _part_read(module, x, index)
  return whole if part is None else min(part, whole)


def _part_read(module: HloModule, x: Instruction, index: int) -> int | None:
  """Bytes that `x` reads of operand `index`; None for all of it."""
  if x.base_op in _SLICING and index == 0:
    return nbytes(x.shape, anywhere=True)
  if x.base_op == 'dynamic-update-slice' and index == 0:
    return 0
  if x.base_op != 'fusion':
    return None
  fusion = module[x.called[0]]
  parameter = next(
    y.name
    for y in fusion.lines.values()
    if y.op == 'parameter' and int(y.arguments) == index
  )
  return _part_read_inside(module, fusion, parameter)


def _part_read_inside(
  module: HloModule,
  fusion: Computation,
  name: str,
  as_result: int | None = None,
) -> int | None:
  """Bytes that a fusion reads of its value `name`; None for all of it.

  Args:
    module: module of the fusion.
    fusion: its computation.
    name: a parameter or an intermediate value.
    as_result: bytes that count where `name` is a result of the fusion: 0 for
      the target of an in-place update, which stays where it is.
  """
  parts = [as_result] if name == fusion.root else []
  for user in fusion.lines.values():
    for index in (i for i, o in enumerate(user.operands) if o == name):
      if user.op == 'bitcast':
        part = _part_read_inside(module, fusion, user.name, as_result)
      elif user.op == 'dynamic-update-slice' and index == 0:
        part = _part_read_inside(module, fusion, user.name, 0)
      elif user.op == 'tuple':
        part = as_result
      else:
        part = _part_read(module, user, index)
      parts.append(part)
  known = [part for part in parts if part is not None]
  return sum(known) if len(known) == len(parts) else None


def _written(
  module: HloModule, lines: Mapping[str, Instruction], x: Instruction
) -> int:
  """HBM bytes that `x` writes."""
  if x.base_op == 'dynamic-update-slice':
    return _update_bytes(lines, x) if nbytes(x.shape) else 0
  if x.base_op != 'fusion':
    return nbytes(x.shape)
  fusion = module[x.called[0]]
  root = fusion.lines[fusion.root]
  if root.op != 'tuple' and len(tuple_elements(x.shape)) > 1:
    return nbytes(x.shape)  # the results of a kernel
  results: Sequence[str] = root.operands if root.op == 'tuple' else [root.name]
  total = 0
  for shape, name in zip(tuple_elements(x.shape), results, strict=True):
    whole = nbytes(shape)
    total += min(whole, _result_bytes(module, fusion, name, whole))
  return total


def _result_bytes(
  module: HloModule, fusion: Computation, name: str, whole: int
) -> int:
  """Bytes that a fusion writes of result `name`: an update, or `whole`."""
  x = hlo_parser.skip(fusion, name, 'bitcast')
  if x.op != 'dynamic-update-slice':
    return whole
  target = hlo_parser.skip(fusion, x.operands[0], 'bitcast')
  # The update is in place only if nothing else reads the target. Otherwise XLA
  # copies the target.
  if target.op != 'parameter':
    return whole
  if _part_read_inside(module, fusion, target.name) is None:
    return whole
  return _update_bytes(fusion.lines, x)


def _update_bytes(lines: Mapping[str, Instruction], x: Instruction) -> int:
  """Bytes that a dynamic-update-slice writes into its target."""
  return nbytes(lines[x.operands[1]].shape, anywhere=True)
