"""Time of a compiled program by XLA's own cost model, plus kernels.

XLA for TPU chooses tiles, layouts and fusions by a cost model of each fusion,
and writes the result into the module: `estimated_cycles` in the backend_config
of every fusion and copy. The sum over the schedule, loops by their iterations,
is a far better prediction of the time on the cores than FLOPs at peak: it knows
how well a product fills the matrix unit and how fast memory can feed it.

Kernels (Pallas calls) have no estimate. The cycles of splash attention are in
`sharding/chip_specs.py`; they come from the instruction schedule that libtpu
makes for the kernel.
"""

import dataclasses
import math
import re

from grm_jax.aot import hlo_parser, matmul_flops
from grm_jax.aot.hlo_parser import ExecutedInstruction, HloModule, Instruction
from grm_jax.aot.overlap import Line
from grm_jax.model import splash
from grm_jax.model.row_mask import RowMask
from grm_jax.sharding.chip_specs import ChipSpec

# libtpu writes the largest integer where it has no estimate.
_NO_ESTIMATE = 2**62
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
# Matrix products of a tile in the kernels of splash attention. Forward: logits
# and the weighted sum. Backward: these two again, and the gradients of the
# queries, or of the keys and values.
_PRODUCTS = {'fwd': 2, 'dq': 3, 'dkv': 4}
_KERNEL = re.compile(r'splash_m[hq]a_(fwd|dq|dkv)')
_OPERANDS = re.compile(r'operand_layout_constraints=\{(.*?\})\}')
_NUM_SLOWEST = 12


@dataclasses.dataclass(frozen=True)
class SplashCall:
  """A kernel of splash attention.

  Attributes:
    kind: of _PRODUCTS.
    heads: prompts times query heads.
    head_dim: H.
    tiles: tiles with a visible key, of one head.
    block: side of a tile.
    grid_steps: steps of the grid of one head, with and without a visible key.
  """

  kind: str
  heads: int
  head_dim: int
  tiles: int
  block: int
  grid_steps: int

  @property
  def flops(self) -> int:
    """FLOPs of its matrix products."""
    tile = 2 * self.block**2 * self.head_dim
    return _PRODUCTS[self.kind] * self.heads * self.tiles * tile

  def seconds(self, chip: ChipSpec) -> float:
    """Returns the time of one execution."""
    if chip.splash is None:
      return self.flops / chip.peak_flops
    area = (self.block / chip.splash.block) ** 2
    tile = area * chip.splash.tile_cycles(self.kind, self.head_dim)
    cycles = self.tiles * tile + self.grid_steps * chip.splash.step_cycles
    # Cores share the heads.
    return math.ceil(self.heads / chip.num_cores) * cycles / chip.clock


def splash_call(x: Instruction, mask: RowMask | None) -> SplashCall | None:
  """Returns the kernel that a custom call executes; None for other calls.

  Args:
    x: an instruction.
    mask: mask of the program's rows on global layers; None if its attention is
      not splash.
  """
  kernel = _KERNEL.search(x.name)
  operands = _OPERANDS.search(x.attributes)
  if mask is None or kernel is None or operands is None:
    return None
  shapes = hlo_parser.array_shapes(operands[1])
  # The first operands describe tiles, [heads or 1, rows, columns]; the first
  # one of another size is the queries.
  _, rows, columns = shapes[0]
  *heads, size, head_dim = next(x for x in shapes if x[-2:] != (rows, columns))
  block = size // rows
  if '/local/' not in x.attributes:
    mask = dataclasses.replace(mask, window=None)
  return SplashCall(
    kind=kernel[1],
    heads=math.prod(heads),
    head_dim=head_dim,
    tiles=splash.num_tiles(mask, size, block),
    block=block,
    grid_steps=rows * columns,
  )


def kernel_flops(mask: RowMask | None) -> matmul_flops.KernelFlops:
  """Returns a function: FLOPs of a custom call; 0 if it is not splash.

  Args:
    mask: as `splash_call`.
  """

  def flops(x: Instruction) -> int:
    """Returns the FLOPs of one execution of `x`."""
    call = splash_call(x, mask)
    return call.flops if call else 0

  return flops


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Time of a program on the cores of a device.

  Attributes:
    line_seconds: of one execution of each scheduled line that takes time.
    seconds: of all executions of all lines.
    kernel_seconds: the part of splash attention.
    slowest: lines with the most time, as (seconds, name, JAX operation).
    unestimated: executions of fusions without an estimate, left out above.
  """

  line_seconds: dict[Line, float]
  seconds: float
  kernel_seconds: float
  slowest: tuple[tuple[float, str, str], ...]
  unestimated: int


def of_module(
  module: HloModule, chip: ChipSpec, mask: RowMask | None, name: str = ''
) -> Estimate:
  """Adds up the scheduled lines, each as often as it executes.

  Args:
    module: module of one device.
    chip: chip that it was compiled for.
    mask: as `splash_call`.
    name: computation to begin with; '' is ENTRY.
  """
  line_seconds: dict[Line, float] = {}
  lines, kernel_seconds, unestimated = [], 0.0, 0
  for x in _scheduled(module, name):
    if _cycles(x) >= _NO_ESTIMATE:
      unestimated += x.executions
      continue
    call = splash_call(x.instruction, mask)
    seconds = call.seconds(chip) if call else _cycles(x) / chip.clock
    if not seconds:
      continue
    line_seconds[x.frame, x.line] = seconds
    lines.append((x.executions * seconds, x.line, x.instruction.source))
    kernel_seconds += lines[-1][0] if call else 0.0
  return Estimate(
    line_seconds,
    sum(x[0] for x in lines),
    kernel_seconds,
    tuple(sorted(lines, reverse=True)[:_NUM_SLOWEST]),
    unestimated,
  )


def _scheduled(module: HloModule, name: str) -> list[ExecutedInstruction]:
  """Instructions that are scheduled, without those inside of fusions."""
  return [
    x
    for x in hlo_parser.walk(module, name)
    if x.computation == x.frame and x.line == x.instruction.name
  ]


def _cycles(x: ExecutedInstruction) -> int:
  """Returns XLA's estimate of an instruction; 0 if it has none."""
  cycles = _CYCLES.search(x.instruction.attributes)
  return int(cycles[1]) if cycles else 0
