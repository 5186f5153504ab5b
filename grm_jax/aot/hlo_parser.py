"""The text of a compiled module: computations, instructions, loops.

`compiled.as_text()` is the one place where XLA tells what each device will
run, with its collectives and fusions. XLA's own cost analysis counts the body
of a loop once, and kernels not at all. A line of the text is

  %name = bf16[64,4608]{1,0:T(8,128)S(1)} op(%operand, ...), attributes

where S(n) with n >= 1 in a layout says that the array is not in HBM.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_BYTES = {
  **dict.fromkeys(('token', 'opaque'), 0),
  **dict.fromkeys(('pred', 's8', 'u8', 'f8e4m3fn', 'f8e5m2'), 1),
  **dict.fromkeys(('s16', 'u16', 'f16', 'bf16'), 2),
  **dict.fromkeys(('s32', 'u32', 'f32'), 4),
  **dict.fromkeys(('s64', 'u64', 'f64', 'c64'), 8),
  'c128': 16,
}
_ARRAY = re.compile(r'(\w+)\[([\d,]*)\](\{[^}]*\})?')
_COMPUTATION = re.compile(r'(ENTRY )?%?([\w.-]+) \(.*\{$')
_INSTRUCTION = re.compile(r'\s+(ROOT )?%?([\w.-]+) = (.*)')
_CALLED = re.compile(
  r'\b(?:calls|to_apply|body|branch_computations|true_computation'
  r'|false_computation)=(\{[^}]*\}|%[\w.-]+)'
)
_CONDITION = re.compile(r'\bcondition=%([\w.-]+)')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_NAME = re.compile(r'%([\w.-]+)')
# Of these what is called is a rule for one element, not a program.
_ELEMENTWISE = {
  'all-reduce',
  'map',
  'reduce',
  'reduce-scatter',
  'reduce-window',
  'scatter',
  'select-and-scatter',
  'sort',
}


@dataclasses.dataclass(frozen=True)
class Instruction:
  """A line of the text.

  Attributes:
    name: without the %.
    op: such as 'fusion'.
    shape: the type of what it writes.
    arguments: between the brackets.
    attributes: behind them.
  """

  name: str
  op: str
  shape: str
  arguments: str
  attributes: str

  @functools.cached_property
  def operands(self) -> list[str]:
    """Names of instructions of the same computation."""
    return _NAME.findall(self.arguments)

  @property
  def base(self) -> str:
    """The operation itself, whether or not it runs in the background."""
    return self.op.removesuffix('-start')

  @property
  def called(self) -> list[str]:
    """Names of the computations that it runs: of a loop, the body."""
    if self.base in _ELEMENTWISE:
      return []
    groups = _CALLED.findall(self.attributes)
    return [name for group in groups for name in _NAME.findall(group)]


@dataclasses.dataclass
class Computation:
  """Instructions by name in the order of the text; `root` is the result."""

  root: str = ''
  lines: dict[str, Instruction] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class HloModule:
  """All computations by name; `entry` is the one that is run."""

  computations: dict[str, Computation]
  entry: str

  def __getitem__(self, name: str) -> Computation:
    return self.computations[name]


@dataclasses.dataclass(frozen=True)
class ExecutedInstruction:
  """An instruction where it is run.

  Attributes:
    instruction: a line of the text.
    computation: that it stands in, which may be a fusion.
    frame: the computation that it is scheduled in: ENTRY, a loop's body or a
      branch.
    passes: how often it is run.
    line: of the frame, by name: the instruction itself, or the fusion or call
      that it is inside of.
  """

  instruction: Instruction
  computation: str
  frame: str
  passes: int
  line: str


def parse(text: str) -> HloModule:
  """Reads the text of a compiled module."""
  computations, entry, current = {}, '', None
  for line in text.splitlines():
    head = _COMPUTATION.match(line)
    if head:
      current = computations[head[2]] = Computation()
      entry = head[2] if head[1] else entry
      continue
    found = _INSTRUCTION.match(line)
    if found and current:
      x = _instruction(found[2], found[3])
      current.lines[x.name] = x
      current.root = x.name if found[1] else current.root
  return HloModule(computations, entry)


def runs(
  module: HloModule,
  name: str = '',
  frame: str = '',
  passes: int = 1,
  line: str = '',
) -> Iterator[ExecutedInstruction]:
  """All that is run, instructions inside of fusions and loops included.

  Of a conditional the branch with the fewest instructions counts: it is the
  one that is usually taken, such as a row's tokens drawn without truncation.

  Args:
    module: from `parse`.
    name: of the computation to begin with; '' is ENTRY.
    frame: see Run; '' is the computation itself.
    passes: how often it is run.
    line: see Run; '' is the instruction itself.
  """
  name = name or module.entry
  frame = frame or name
  for x in module[name].lines.values():
    own = line or x.name
    yield ExecutedInstruction(x, name, frame, passes, own)
    if x.op == 'while':
      whole = passes * trips(module, x)
      yield from runs(module, *x.called, passes=whole)
    elif x.op == 'conditional':
      few = min(x.called, key=lambda branch: len(module[branch].lines))
      yield from runs(module, few, passes=passes)
    else:
      for called in x.called:
        yield from runs(module, called, frame, passes, own)


def trips(module: HloModule, loop: Instruction) -> int:
  """How often a loop runs its body, 1 where the text does not tell.

  A scan counts from 0 and compares with its length.
  """
  known = _TRIPS.search(loop.attributes)
  if known:
    return int(known[1])
  condition = module[_CONDITION.search(loop.attributes)[1]]
  root = condition.lines[condition.root]
  if root.op != 'compare' or 'direction=LT' not in root.attributes:
    return 1
  limit = condition.lines[root.operands[1]]
  return int(limit.arguments) if limit.op == 'constant' else 1


def elements(shape: str) -> list[str]:
  """Types of a tuple's elements; an array is its own only one."""
  if not shape.startswith('('):
    return [shape]
  rest, found = shape[1:-1], []
  while rest:
    element, rest = _until(',', rest)
    found.append(element.strip())
  return found


def sizes(shape: str) -> list[tuple[int, ...]]:
  """The sizes of a type's arrays."""
  found = _ARRAY.findall(shape)
  return [tuple(int(n) for n in own.split(',') if n) for _, own, _ in found]


def nbytes(shape: str, anywhere: bool = False) -> int:
  """Bytes of a type's arrays in HBM, or of all of them.

  Raises:
    ValueError: an element type whose size is not known in bytes.
  """
  total = 0
  for dtype, own, layout in _ARRAY.findall(shape):
    if dtype not in _BYTES:
      raise ValueError(
        f'the compiled module has {dtype}[{own}]; the bytes of a {dtype} '
        'are not known'
      )
    if anywhere or not re.search(r'S\([1-9]', layout):
      total += _BYTES[dtype] * math.prod(int(n) for n in own.split(',') if n)
  return total


def _instruction(name, text):
  shape, text = _until(' ', text)
  op, text = text.split('(', 1)
  arguments, attributes = _until(')', text)
  if op == 'copy-start':  # (target, source, ...)
    shape = elements(shape)[0]
  elif op.endswith('-start') and op != 'all-reduce-start':  # (from, to, ...)
    shape = elements(shape)[1]
  return Instruction(name, op, shape, arguments, attributes)


def _until(stop, text):
  """What is before and after the first `stop` outside of brackets."""
  depth = 0
  for i, letter in enumerate(text):
    if letter == stop and not depth:
      return text[:i], text[i + 1 :]
    depth += (letter in '([{') - (letter in ')]}')
  return text, ''
