"""FLOPs of the matrix products in a compiled module, loops included.

XLA for TPU writes every product as a convolution, whose batch dimensions are
windows that consist mostly of padding. Only multiplications with elements that
are not padding count.
"""

import collections
import math
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from grm_jax.aot import hlo_parser
from grm_jax.aot.hlo_parser import (
  ExecutedInstruction,
  HloModule,
  Instruction,
  array_shapes,
)

_CONTRACTED = re.compile(r'lhs_contracting_dims=\{([\d,]*)\}')
_LABELS = re.compile(r'dim_labels=(\w+)_(\w+)->(\w+)')
_WINDOW = re.compile(r'window=\{([^}]*)\}')

KernelFlops = Callable[[Instruction], int]


def _no_kernels(x: Instruction) -> int:
  del x
  return 0


def of_module(
  module: HloModule, kernel_flops: KernelFlops = _no_kernels, name: str = ''
) -> int:
  """Counts the FLOPs of one device: 2 for each multiply-add.

  Args:
    module: from hlo_parser.parse.
    kernel_flops: FLOPs of a custom call, which XLA does not know.
    name: computation to begin with; '' is ENTRY.

  Raises:
    ValueError: a product that cannot be parsed.
  """
  return sum(by_line(module, kernel_flops, name, every_execution=True).values())


def by_line(
  module: HloModule,
  kernel_flops: KernelFlops = _no_kernels,
  name: str = '',
  every_execution: bool = False,
) -> dict[tuple[str, str], int]:
  """Counts the FLOPs of each scheduled line that has any.

  Args:
    module: as `of_module`.
    kernel_flops: as `of_module`.
    name: as `of_module`.
    every_execution: count all executions of a line; by default one of them.

  Returns:
    FLOPs by (frame, line) of ExecutedInstruction.

  Raises:
    ValueError: a product that cannot be parsed.
  """
  total: collections.Counter[tuple[str, str]] = collections.Counter()
  for x in hlo_parser.walk(module, name):
    if flops := _flops(module, x, kernel_flops):
      times = x.executions if every_execution else 1
      total[x.frame, x.line] += times * flops
  return dict(total)


def _flops(
  module: HloModule, executed: ExecutedInstruction, kernel_flops: KernelFlops
) -> int:
  """FLOPs of one execution, without those of called computations."""
  x = executed.instruction
  if x.op == 'custom-call':
    return kernel_flops(x)
  if x.op not in ('dot', 'convolution'):
    return 0
  lines = module[executed.computation].lines
  left, right = (array_shapes(lines[y].shape)[0] for y in x.operands[:2])
  if x.op == 'dot':
    return _dot_flops(x, left)
  return _convolution_flops(x, left, right)


def _dot_flops(x: Instruction, left: Sequence[int]) -> int:
  match = _CONTRACTED.search(x.attributes)
  dims = [int(n) for n in match[1].split(',') if n] if match else []
  (out,) = array_shapes(x.shape)
  return 2 * math.prod(out) * math.prod(left[i] for i in dims)


def _convolution_flops(
  x: Instruction, left: Sequence[int], right: Sequence[int]
) -> int:
  labels = _LABELS.search(x.attributes)
  if labels is None:
    raise ValueError(f'a convolution without dim_labels: {x.name}')
  left_dims, right_dims, out_dims = labels.groups()
  (out,) = array_shapes(x.shape)
  match = _WINDOW.search(x.attributes)
  window = dict(part.split('=') for part in match[1].split()) if match else {}
  total = 2 * out[out_dims.index('b')] * out[out_dims.index('f')]
  total *= right[right_dims.index('i')]
  for dim, label in enumerate(sorted(set(out_dims) - {'b', 'f'})):
    total *= _real_pairs(
      inputs=left[left_dims.index(label)],
      outputs=out[out_dims.index(label)],
      size=right[right_dims.index(label)],
      stride=_window_number(window, 'stride', dim, 1),
      padding=_window_number(window, 'pad', dim, 0),
      input_dilation=_window_number(window, 'lhs_dilate', dim, 1),
      kernel_dilation=_window_number(window, 'rhs_dilate', dim, 1),
    )
  return total


def _window_number(
  window: Mapping[str, str], key: str, dim: int, default: int
) -> int:
  """The first number of a dimension; of 'size=3x1 pad=1_1x0_0', 1 and 0."""
  if key not in window:
    return default
  return int(window[key].split('x')[dim].split('_')[0])


def _real_pairs(
  *,
  inputs: int,
  outputs: int,
  size: int,
  stride: int,
  padding: int,
  input_dilation: int,
  kernel_dilation: int,
) -> int:
  """Number of (output, kernel element) pairs that meet a real input."""
  position = np.arange(outputs)[:, None] * stride - padding
  position = position + np.arange(size)[None] * kernel_dilation
  real = (position >= 0) & (position <= (inputs - 1) * input_dilation)
  return int(np.sum(real & (position % input_dilation == 0)))
