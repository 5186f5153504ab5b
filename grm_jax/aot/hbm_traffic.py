"""Bytes that a compiled program moves to and from HBM, read off its text.

A decode step is a pass of a loop, and its time is the bytes it moves. XLA's
own cost analysis cannot tell them: it counts the whole table for a gather of
a few rows, a whole cache for the one place written into it, and a prefetch
once as a copy and once more where it is used. Here an array is counted when
it crosses between HBM and the core, and as much of it as is really taken.

Sizes are logical. Left out are the padding of arrays to the chip's tiles, the
neighbours of a place that are read and written with it, and conditions of
loops. A kernel reads its operands and writes its results once.
"""

import dataclasses

from grm_jax.aot import hlo_parser
from grm_jax.aot.hlo_parser import HloModule, elements, nbytes

# They name what is there already, or compute it from nothing large. What a
# `-done` waits for is counted at its `-start`.
_FREE = {
  'parameter',
  'constant',
  'get-tuple-element',
  'tuple',
  'bitcast',
  'after-all',
  'partition-id',
}
_SLICING = {'slice', 'dynamic-slice', 'gather'}  # of operand 0


@dataclasses.dataclass(frozen=True)
class HbmTraffic:
  """What a program or one pass of its loop moves, per device.

  Attributes:
    hbm_bytes: read from HBM plus written to it.
    largest: the ten instructions with the most of them, most first, as
      (bytes, name, operation).
  """

  hbm_bytes: int
  largest: tuple[tuple[int, str, str], ...]


def of_module(module: HloModule, name: str = '') -> HbmTraffic:
  """The traffic of a whole program, or of what one computation runs.

  Of a conditional the branch that moves least counts: it is the one that is
  usually taken, such as a row's tokens drawn without truncation. A loop costs
  its passes, one where the text does not tell how many there are.

  Args:
    module: of one device.
    name: of the computation; '' is ENTRY.

  Raises:
    ValueError: an element type whose size is not known in bytes.
  """
  moves = _moves(module, name or module.entry, 1)
  largest = sorted(moves, key=lambda move: -move[0])[:10]
  return HbmTraffic(
    _hbm(moves), tuple((count, x.name, x.op) for count, x in largest)
  )


def main_loop(module: HloModule) -> str:
  """The body of the loop in ENTRY of which one pass moves the most.

  Raises:
    ValueError: the module has no loop; or as `of_module`.
  """
  loops = [x for x in module[module.entry].lines.values() if x.op == 'while']
  if not loops:
    raise ValueError('the compiled module has no loop in its ENTRY computation')
  bodies = [x.called[0] for x in loops]
  return max(bodies, key=lambda name: _hbm(_moves(module, name, 1)))


def _hbm(moves):
  return sum(count for count, _ in moves)


def _moves(module, name, passes):
  """[(HBM bytes, instruction)] of all that `name` runs so often."""
  moves, lines = [], module[name].lines
  for x in lines.values():
    if x.op == 'conditional':
      moves += min((_moves(module, b, passes) for b in x.called), key=_hbm)
    elif x.op == 'while':
      own = passes * hlo_parser.trips(module, x)
      moves += _moves(module, *x.called, own)
    elif x.op not in _FREE and not x.op.endswith('-done'):
      shapes = [lines[operand].shape for operand in x.operands]
      read = sum(_read(module, x, i, shape) for i, shape in enumerate(shapes))
      moves.append((passes * (read + _written(module, lines, x)), x))
  return moves


def _read(module, x, place, shape):
  """HBM bytes that `x` reads of its operand `place`, which has `shape`."""
  whole = nbytes(shape)
  taken = _taken(module, x, place)
  return whole if taken is None else min(taken, whole)


def _taken(module, x, place):
  """Bytes that `x` takes of its operand `place`; None for all of it."""
  if x.base in _SLICING and place == 0:
    return nbytes(x.shape, anywhere=True)
  if x.base == 'dynamic-update-slice' and place == 0:
    return 0
  if x.base != 'fusion':
    return None
  inside = module[x.called[0]]
  name = next(
    y.name
    for y in inside.lines.values()
    if y.op == 'parameter' and int(y.arguments) == place
  )
  return _taken_inside(module, inside, name)


def _taken_inside(module, inside, name, output=None):
  """Bytes that a fusion takes of its value `name`; None for all of it.

  `output` is what it takes where `name` is handed out as a result: nothing
  when it is the target of an update, which stays where it is.
  """
  parts = [output] if name == inside.root else []
  for user in inside.lines.values():
    for place in (i for i, o in enumerate(user.operands) if o == name):
      if user.op == 'bitcast':
        part = _taken_inside(module, inside, user.name, output)
      elif user.op == 'dynamic-update-slice' and place == 0:
        part = _taken_inside(module, inside, user.name, 0)
      elif user.op == 'tuple':
        part = output
      else:
        part = _taken(module, user, place)
      parts.append(part)
  return None if None in parts else sum(parts)


def _written(module, lines, x):
  """HBM bytes that `x` writes."""
  if x.base == 'dynamic-update-slice':
    return _updated(lines, x) if nbytes(x.shape) else 0
  if x.base != 'fusion':
    return nbytes(x.shape)
  inside = module[x.called[0]]
  root = inside.lines[inside.root]
  if root.op != 'tuple' and len(elements(x.shape)) > 1:  # a kernel's results
    return nbytes(x.shape)
  results = root.operands if root.op == 'tuple' else [root.name]
  total = 0
  for shape, name in zip(elements(x.shape), results, strict=True):
    whole = nbytes(shape)
    total += min(whole, _changed(module, inside, name, whole))
  return total


def _changed(module, inside, name, whole):
  """Bytes of a fusion's result `name` that it writes: an update, or `whole`."""
  x = _behind_bitcasts(inside, name)
  if x.op != 'dynamic-update-slice':
    return whole
  target = _behind_bitcasts(inside, x.operands[0])
  # In place only if nothing else reads the target; XLA copies it otherwise.
  if target.op != 'parameter':
    return whole
  if _taken_inside(module, inside, target.name) is None:
    return whole
  return _updated(inside.lines, x)


def _behind_bitcasts(inside, name):
  x = inside.lines[name]
  while x.op == 'bitcast':
    x = inside.lines[x.operands[0]]
  return x


def _updated(lines, x):
  """Bytes that a dynamic-update-slice puts into its target."""
  return nbytes(lines[x.operands[1]].shape, anywhere=True)
