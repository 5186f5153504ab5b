"""FLOPs of the matrix products in a compiled module, loops included.

XLA for TPU writes every product as a convolution, batch dimensions as windows
that are mostly padding: counted are the multiplications with what is there.
"""

import collections
import math
import re
from collections.abc import Callable

import numpy as np

from grm_jax.aot import hlo_parser
from grm_jax.aot.hlo_parser import HloModule, Instruction, sizes

_CONTRACTED = re.compile(r'lhs_contracting_dims=\{([\d,]*)\}')
_LABELS = re.compile(r'dim_labels=(\w+)_(\w+)->(\w+)')
_WINDOW = re.compile(r'window=\{([^}]*)\}')


def of_module(
  module: HloModule,
  kernel: Callable[[Instruction], int] = lambda x: 0,
  name: str = '',
) -> int:
  """FLOPs of one device: 2 for each multiplication and its addition.

  Args:
    module: from module.parse.
    kernel: FLOPs of a custom call, which XLA knows nothing of.
    name: of the computation to begin with; '' is ENTRY.

  Raises:
    ValueError: a product that cannot be read.
  """
  return sum(
    run.passes * _of_run(module, run, kernel)
    for run in hlo_parser.runs(module, name)
  )


def by_line(
  module: HloModule,
  kernel: Callable[[Instruction], int] = lambda x: 0,
  name: str = '',
) -> dict[tuple[str, str], int]:
  """FLOPs of a pass of each scheduled line that has any.

  Args:
    module, kernel, name: as `of_module`.

  Returns:
    By (frame, line) as module.Run has them.

  Raises:
    ValueError: a product that cannot be read.
  """
  found = collections.Counter()
  for run in hlo_parser.runs(module, name):
    if flops := _of_run(module, run, kernel):
      found[run.frame, run.line] += flops
  return dict(found)


def _of_run(module, run, kernel) -> int:
  """Of one pass of an instruction, what it calls left out."""
  x = run.instruction
  if x.op == 'custom-call':
    return kernel(x)
  if x.op not in ('dot', 'convolution'):
    return 0
  lines = module[run.computation].lines
  left, right = (sizes(lines[name].shape)[0] for name in x.operands[:2])
  return (_dot if x.op == 'dot' else _convolution)(x, left, right)


def _dot(x, left, right):
  del right
  found = _CONTRACTED.search(x.attributes)
  places = [int(n) for n in found[1].split(',') if n] if found else []
  (out,) = sizes(x.shape)
  return 2 * math.prod(out) * math.prod(left[i] for i in places)


def _convolution(x, left, right):
  labels = _LABELS.search(x.attributes)
  if labels is None:
    raise ValueError(f'a convolution without dim_labels: {x.name}')
  of_left, of_right, of_out = labels.groups()
  (out,) = sizes(x.shape)
  window = _WINDOW.search(x.attributes)
  own = dict(part.split('=') for part in window[1].split()) if window else {}
  total = 2 * out[of_out.index('b')] * out[of_out.index('f')]
  total *= right[of_right.index('i')]
  for d, label in enumerate(sorted(set(of_out) - {'b', 'f'})):
    total *= _pairs(
      inputs=left[of_left.index(label)],
      outputs=out[of_out.index(label)],
      size=right[of_right.index(label)],
      stride=_number(own, 'stride', d, 1),
      before=_number(own, 'pad', d, 0),
      spread=_number(own, 'lhs_dilate', d, 1),
      apart=_number(own, 'rhs_dilate', d, 1),
    )
  return total


def _number(window, key, dim, default):
  """Of 'size=3x1 pad=1_1x0_0', the first number of a dimension."""
  if key not in window:
    return default
  return int(window[key].split('x')[dim].split('_')[0])


def _pairs(*, inputs, outputs, size, stride, before, spread, apart):
  """How often an output meets an input that is not padding."""
  place = np.arange(outputs)[:, None] * stride - before
  place = place + np.arange(size)[None] * apart
  real = (place >= 0) & (place <= (inputs - 1) * spread)
  return int(np.sum(real & (place % spread == 0)))
