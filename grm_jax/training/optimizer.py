"""AdamW or Muon with warm-up, a schedule, clipping, and no decay of norms.

Gradient accumulation is done outside: one update per call, one count per
update. The learning rate of the n-th update is schedule(n - 1), n from 1.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from optax import contrib

from grm_jax.errors import UserError
from grm_jax.training.host_offload import HostOffloadedOptimizer

Optimizer = optax.GradientTransformation | HostOffloadedOptimizer

KINDS = ('adamw', 'muon')
SCHEDULES = ('constant', 'cosine')
MOMENT_DTYPES = ('float32', 'bfloat16')

# Setting -> what it must be, in words and as a test. NaN passes none of them.
_BOUNDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
  'kind': (f'one of {", ".join(KINDS)}', lambda x: x in KINDS),
  'learning_rate': ('positive', lambda x: 0 < x < math.inf),
  'warmup_steps': ('0 or more', lambda x: x >= 0),
  'schedule': (f'one of {", ".join(SCHEDULES)}', lambda x: x in SCHEDULES),
  'end_fraction': ('from 0 to 1', lambda x: 0 <= x <= 1),
  'weight_decay': ('0 or more', lambda x: 0 <= x < math.inf),
  'max_grad_norm': ('0 (off) or more', lambda x: 0 <= x < math.inf),
  'b1': ('from 0 to below 1', lambda x: 0 <= x < 1),
  'b2': ('from 0 to below 1', lambda x: 0 <= x < 1),
  'eps': ('positive', lambda x: 0 < x < math.inf),
  'moment_dtype': (
    f'one of {", ".join(MOMENT_DTYPES)}',
    lambda x: x in MOMENT_DTYPES,
  ),
}
# Kernels that Muon orthogonalizes, as matrices from the axes of inputs to those
# of outputs. Axis 0 counts layers, each of which is a matrix of its own.
_IN_1 = contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
_TO_HEADS = contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=(2, 3))
_FROM_HEADS = contrib.MuonDimensionNumbers(reduction_axis=(1, 2), output_axis=3)
_MATRICES = {
  'query': _TO_HEADS,
  'key': _TO_HEADS,
  'value': _TO_HEADS,
  'out': _FROM_HEADS,
  'gate': _IN_1,
  'up': _IN_1,
  'down': _IN_1,
}
# Root mean square of Muon's updates, times the learning rate: that of AdamW's
# in practice (arXiv 2502.16982), so that both take the same rates.
_MUON_RMS = 0.2


def make(
  total_steps: int,
  *,
  learning_rate: float,
  warmup_steps: int,
  schedule: str,
  weight_decay: float,
  max_grad_norm: float,
  b2: float,
  moment_dtype: str,
  offload_to_host: bool = False,
  kind: str = 'adamw',
  b1: float = 0.9,
  eps: float = 1e-8,
  end_fraction: float = 0.1,
  key: str = 'config.optimizer',
) -> tuple[Optimizer, optax.Schedule]:
  """The optimizer and its learning rate as a function of updates done.

  Args:
    total_steps: updates of the whole run; where the cosine ends.
    learning_rate: the highest; reached after the warm-up.
    warmup_steps: updates of the linear warm-up. The first has a rate of
      1 / (warmup_steps + 1) of the highest, so that none is lost at 0.
    schedule: after the warm-up; 'constant' or 'cosine'.
    end_fraction: of the highest rate, where the cosine ends; not used by
      'constant'.
    weight_decay: decoupled (AdamW), times the learning rate; see `decays`.
    max_grad_norm: highest norm of the gradient of all parameters together; larger
      ones are scaled down to it. 0 is off.
    b1, b2: decay of the first and second moments.
    eps: added to the root of the second moment.
    kind: 'adamw', or 'muon': the kernels of layers by Muon, embeddings, norms
      and heads by Adam with Nesterov's momentum and no decay, as optax has it.
      Small models from scratch learn faster by it.
    moment_dtype: of the first moment only. The second one has its parameter's
      dtype, which should be float32: at b2 near 1 bfloat16 would round its
      changes away.
    key: config key of these settings, for messages.
    offload_to_host: moments and exact parameters of layers rest in the host's memory,
      see host_state.py.

  Raises:
    UserError: a value out of bounds.
  """
  _check(total_steps, locals(), key)
  rate = _rate(total_steps, learning_rate, warmup_steps, schedule, end_fraction)
  inner = (
    _muon(rate, b1, b2, weight_decay, moment_dtype)
    if kind == 'muon'
    else _adamw(rate, b1, b2, eps, weight_decay, moment_dtype)
  )
  if offload_to_host:
    return HostOffloadedOptimizer(inner, max_grad_norm), rate
  # Off or on, the state has the same structure and so have checkpoints.
  first = (
    optax.clip_by_global_norm(max_grad_norm)
    if max_grad_norm
    else optax.identity()
  )
  return optax.chain(first, inner), rate


def _adamw(rate, b1, b2, eps, weight_decay, moment_dtype):
  return optax.adamw(
    rate,
    b1=b1,
    b2=b2,
    eps=eps,
    mu_dtype=moment_dtype,
    weight_decay=weight_decay,
    mask=weight_decay_mask,
  )


def _muon(rate, b1, b2, weight_decay, moment_dtype):
  return contrib.muon(
    rate,
    weight_decay=weight_decay,
    mu_dtype=moment_dtype,
    adam_b1=b1,
    adam_b2=b2,
    muon_weight_dimension_numbers=muon_dims,
    consistent_rms=_MUON_RMS,
  )


def muon_dims(params: Any) -> Any:
  """Tree of what Muon orthogonalizes, and by which axes; None: by Adam."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: _MATRICES.get(path[-1].key), params
  )


def weight_decay_mask(params: Any) -> Any:
  """Tree of bools: which parameters decay, all but the scales of norms.

  A norm multiplies by 1 + scale, so that decay would pull it to 1; it has no
  matrix whose size could grow.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key != 'scale', params
  )


def _rate(total_steps, highest, warmup_steps, schedule, end_fraction):
  begin = highest / (warmup_steps + 1)
  if schedule == 'constant':
    return optax.warmup_constant_schedule(begin, highest, warmup_steps)
  return optax.warmup_cosine_decay_schedule(
    begin, highest, warmup_steps, total_steps, highest * end_fraction
  )


def _check(total_steps: int, settings: Mapping[str, Any], key: str) -> None:
  for name, (what, fits) in _BOUNDS.items():
    if not fits(settings[name]):
      raise UserError(f'{key}.{name} is {settings[name]!r}; it must be {what}')
  warmup_steps = settings['warmup_steps']
  if warmup_steps >= total_steps:
    raise UserError(
      f'{key}.warmup_steps is {warmup_steps}, the run has '
      f'{total_steps} steps; it must be fewer'
    )
