"""Parser for the text of a compiled XLA module.

`compiled.as_text()` lists what each device executes, including collectives,
fusions and loops. XLA's own cost analysis counts the body of a loop once and
custom kernels not at all, so the cost model reads the text instead. A line is

  %name = bf16[64,4608]{1,0:T(8,128)S(1)} op(%operand, ...), attributes

where S(n) with n >= 1 in a layout means that the array is not in HBM.
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
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_INDEX = re.compile(r'\bindex=(\d+)')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_NAME = re.compile(r'%([\w.-]+)')
_COPIES = ('copy', 'bitcast')
# The computation that these call describes one element; it is not a program.
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
    op: operation, such as 'fusion'.
    shape: type of the result.
    arguments: text inside the parentheses.
    attributes: text after the parentheses.
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
  def source(self) -> str:
    """Name of the JAX operation that it belongs to; '' if unknown."""
    match = _OP_NAME.search(self.attributes)
    return match[1] if match else ''

  @property
  def base_op(self) -> str:
    """The operation without the suffix of its asynchronous form."""
    return self.op.removesuffix('-start')

  @property
  def called(self) -> list[str]:
    """Names of the computations that it executes; of a loop, the body."""
    if self.base_op in _ELEMENTWISE:
      return []
    groups = _CALLED.findall(self.attributes)
    return [name for group in groups for name in _NAME.findall(group)]


@dataclasses.dataclass
class Computation:
  """Instructions by name in text order; `root` names the result."""

  root: str = ''
  lines: dict[str, Instruction] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class HloModule:
  """All computations by name; `entry` names the main one."""

  computations: dict[str, Computation]
  entry: str

  def __getitem__(self, name: str) -> Computation:
    return self.computations[name]


@dataclasses.dataclass(frozen=True)
class ExecutedInstruction:
  """An instruction at the place where it executes.

  Attributes:
    instruction: line of the text.
    computation: computation that contains it, which may be a fusion.
    frame: computation that is scheduled: ENTRY, a loop's body or a branch.
    executions: how many times it executes.
    line: name of the frame's line: the instruction itself, or the fusion or
      call that contains it.
  """

  instruction: Instruction
  computation: str
  frame: str
  executions: int
  line: str


def parse(text: str) -> HloModule:
  """Parses the text of a compiled module."""
  computations: dict[str, Computation] = {}
  entry = ''
  current: Computation | None = None
  for line in text.splitlines():
    head = _COMPUTATION.match(line)
    if head:
      current = computations[head[2]] = Computation()
      entry = head[2] if head[1] else entry
      continue
    match = _INSTRUCTION.match(line)
    if match and current is not None:
      x = _instruction(match[2], match[3])
      current.lines[x.name] = x
      current.root = x.name if match[1] else current.root
  return HloModule(computations, entry)


def walk(
  module: HloModule,
  name: str = '',
  frame: str = '',
  executions: int = 1,
  line: str = '',
) -> Iterator[ExecutedInstruction]:
  """Yields every executed instruction, inside fusions and loops as well.

  In a conditional only the branch with the fewest instructions is walked. It
  is the common case, such as sampling a token without truncation.

  Args:
    module: from `parse`.
    name: computation to begin with; '' is ENTRY.
    frame: see ExecutedInstruction; '' is the computation itself.
    executions: how many times the computation executes.
    line: see ExecutedInstruction; '' is the instruction itself.
  """
  name = name or module.entry
  frame = frame or name
  for x in module[name].lines.values():
    frame_line = line or x.name
    yield ExecutedInstruction(x, name, frame, executions, frame_line)
    if x.op == 'while':
      (body,) = x.called
      times = executions * trip_count(module, x)
      yield from walk(module, body, executions=times)
    elif x.op == 'conditional':
      smallest = min(x.called, key=lambda branch: len(module[branch].lines))
      yield from walk(module, smallest, executions=executions)
    else:
      for called in x.called:
        yield from walk(module, called, frame, executions, frame_line)


def trip_count(module: HloModule, loop: Instruction) -> int:
  """Returns how many times a loop executes its body; 1 if it is not known."""
  known = _TRIP_COUNT.search(loop.attributes)
  if known:
    return int(known[1])
  condition_name = _CONDITION.search(loop.attributes)
  if condition_name is None:
    return 1
  # A loop counts from 0 and compares the counter with its length.
  condition = module[condition_name[1]]
  root = condition.lines[condition.root]
  if root.op != 'compare' or 'direction=LT' not in root.attributes:
    return 1
  counter, limit = (skip(condition, x, *_COPIES) for x in root.operands)
  if limit.op != 'constant':
    return 1
  return -(-int(limit.arguments) // _increment(module, loop, counter))


def _increment(
  module: HloModule, loop: Instruction, counter: Instruction
) -> int:
  """Returns by how much an iteration increments the counter of a loop.

  It is not always 1: XLA unrolls its loops of products and transfers ("windowed
  einsum") by 2.

  Args:
    module: module of the loop.
    loop: its instruction.
    counter: the counter in the loop's condition.
  """
  index = _INDEX.search(counter.attributes)
  body = module[loop.called[0]]
  result = body.lines[body.root]
  if index is None or result.op != 'tuple':
    return 1
  new_value = skip(body, result.operands[int(index[1])], *_COPIES)
  if new_value.op != 'add':
    return 1
  operands = [skip(body, x, *_COPIES) for x in new_value.operands]
  constants = [int(x.arguments) for x in operands if x.op == 'constant']
  return max(constants, default=1)


def skip(computation: Computation, name: str, *ops: str) -> Instruction:
  """Returns the first instruction before `name` that is not one of `ops`.

  Args:
    computation: contains the instruction.
    name: of the instruction to begin with.
    *ops: operations whose operand 0 takes their place.
  """
  x = computation.lines[name]
  while x.op in ops:
    x = computation.lines[x.operands[0]]
  return x


def tuple_elements(shape: str) -> list[str]:
  """Splits a tuple type into its elements; an array is its only element."""
  if not shape.startswith('('):
    return [shape]
  rest, elements = shape[1:-1], []
  while rest:
    element, rest = _split_at(',', rest)
    elements.append(element.strip())
  return elements


def array_shapes(shape: str) -> list[tuple[int, ...]]:
  """Returns the dimensions of each array of a type."""
  return [
    tuple(int(n) for n in dims.split(',') if n)
    for _, dims, _ in _ARRAY.findall(shape)
  ]


def nbytes(shape: str, anywhere: bool = False) -> int:
  """Counts the bytes of a type's arrays.

  Args:
    shape: type in the text.
    anywhere: count all arrays; by default only those in HBM.

  Raises:
    ValueError: an element type of unknown size.
  """
  total = 0
  for dtype, dims, layout in _ARRAY.findall(shape):
    if dtype not in _BYTES:
      raise ValueError(
        f'the compiled module has an array {dtype}[{dims}]; the size of '
        f'{dtype} is unknown, add it to _BYTES'
      )
    if anywhere or not re.search(r'S\([1-9]', layout):
      total += _BYTES[dtype] * math.prod(int(n) for n in dims.split(',') if n)
  return total


def _instruction(name: str, text: str) -> Instruction:
  shape, text = _split_at(' ', text)
  op, text = text.split('(', 1)
  arguments, attributes = _split_at(')', text)
  if op == 'copy-start':  # the type is (target, source, ...)
    shape = tuple_elements(shape)[0]
  elif op.endswith('-start') and op != 'all-reduce-start':
    shape = tuple_elements(shape)[1]  # the type is (source, target, ...)
  return Instruction(name, op, shape, arguments, attributes)


def _split_at(separator: str, text: str) -> tuple[str, str]:
  """Splits at the first separator outside of brackets."""
  depth = 0
  for i, letter in enumerate(text):
    if letter == separator and not depth:
      return text[:i], text[i + 1 :]
    depth += (letter in '([{') - (letter in ')]}')
  return text, ''
