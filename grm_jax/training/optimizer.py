"""AdamW or Muon with warm-up, a schedule, clipping, and no decay of norms.

Gradients are accumulated before (train_step.py): one call is one update. The
learning rate of the n-th update is schedule(n - 1), with n from 1.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import optax
from optax import contrib

from grm_jax import settings
from grm_jax.errors import UserError
from grm_jax.training.host_offload import HostOffloadedOptimizer

Optimizer: TypeAlias = optax.GradientTransformation | HostOffloadedOptimizer

KINDS = ('adamw', 'muon')
SCHEDULES = ('constant', 'cosine')
MOMENT_DTYPES = ('float32', 'bfloat16')

# Rules of config.optimizer.
SETTINGS = {
  'kind': settings.one_of(*KINDS),
  'learning_rate': settings.number(0, 1e6, above=True),
  'warmup_steps': settings.integer(0),
  'schedule': settings.one_of(*SCHEDULES),
  'weight_decay': settings.number(0, 1e6),
  'max_grad_norm': settings.number(0, 1e30),
  'b2': settings.number(0, 1, below=True),
  'moment_dtype': settings.one_of(*MOMENT_DTYPES),
  'offload_to_host': settings.BOOLEAN,
}
# Rules of the arguments of `make` that no config has.
_CONSTANTS = {
  'b1': settings.number(0, 1, below=True),
  'eps': settings.number(0, above=True),
  'end_fraction': settings.FRACTION,
}
# Kernels that Muon orthogonalizes, as matrices from input axes to output axes.
# Axis 0 counts layers: each layer is a separate matrix.
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
# Root mean square of Muon's updates relative to the learning rate. It is about
# that of AdamW (arXiv 2502.16982), so that both use the same learning rates.
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
  """Returns the optimizer, and its learning rate by the number of updates.

  Args:
    total_steps: updates of the whole run; the cosine schedule ends there.
    learning_rate: the highest rate, reached after the warm-up.
    warmup_steps: updates of the linear warm-up. The first has the highest rate
      divided by warmup_steps + 1, so that no update has rate 0.
    schedule: schedule after the warm-up, 'constant' or 'cosine'.
    weight_decay: decoupled decay (AdamW), times the learning rate; see
      `weight_decay_mask`.
    max_grad_norm: largest norm of the gradient of all parameters; a larger
      gradient is scaled down to it. 0 is off.
    b2: decay of the second moment.
    moment_dtype: dtype of the first moment. The second moment has its
      parameter's dtype, which should be float32: with b2 near 1, bfloat16
      would round its changes away.
    offload_to_host: keep moments and master parameters of layers in the host's
      memory, see host_offload.py.
    kind: 'adamw', or 'muon': Muon for the kernels of layers, and for
      embeddings, norms and heads Adam with Nesterov momentum and no decay (as
      in optax). Small models from scratch learn faster with it.
    b1: decay of the first moment.
    eps: added to the root of the second moment.
    end_fraction: where the cosine ends, as a fraction of the highest rate.
    key: config key of these settings, for messages.

  Raises:
    UserError: a value is out of range.
  """
  check(total_steps, locals(), key)
  rate = _rate(total_steps, learning_rate, warmup_steps, schedule, end_fraction)
  inner = (
    _muon(rate, b1, b2, weight_decay, moment_dtype)
    if kind == 'muon'
    else _adamw(rate, b1, b2, eps, weight_decay, moment_dtype)
  )
  if offload_to_host:
    return HostOffloadedOptimizer(inner, max_grad_norm), jax.jit(rate)
  # With and without clipping the state, and so a checkpoint, has the same
  # structure.
  clip = (
    optax.clip_by_global_norm(max_grad_norm)
    if max_grad_norm
    else optax.identity()
  )
  # Without jit a loop that logs the rate runs 20 operations for each step.
  return optax.chain(clip, inner), jax.jit(rate)


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
  """Returns the axes of matrices for Muon; None for parameters of Adam."""

  def dims(path, _):
    name = path[-1].key
    if name not in ('a', 'b'):
      return _MATRICES.get(name)
    # A factor of an adapter has the inputs or the outputs of its kernel.
    dims = _MATRICES[path[-2].key]
    if name == 'a':
      return _FROM_HEADS if dims == _FROM_HEADS else _IN_1
    return _TO_HEADS if dims == _TO_HEADS else _IN_1

  return jax.tree_util.tree_map_with_path(dims, params)


def weight_decay_mask(params: Any) -> Any:
  """Returns which parameters decay: all but the scales of norms.

  A norm multiplies by 1 + scale, so decay would pull the factor to 1.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key != 'scale', params
  )


def _rate(total_steps, highest, warmup_steps, schedule, end_fraction):
  first = highest / (warmup_steps + 1)
  if schedule == 'constant':
    return optax.warmup_constant_schedule(first, highest, warmup_steps)
  return optax.warmup_cosine_decay_schedule(
    first, highest, warmup_steps, total_steps, highest * end_fraction
  )


def check(total_steps: int, values: Mapping[str, Any], key: str) -> None:
  """Checks the arguments of `make`.

  Args:
    total_steps: see `make`.
    values: the settings by name.
    key: config key of the settings, for messages.

  Raises:
    UserError: a setting is wrong.
  """
  settings.check_values(values, SETTINGS | _CONSTANTS, key)
  warmup_steps = values['warmup_steps']
  if warmup_steps >= total_steps:
    stage_key = key.rpartition('.')[0]
    raise UserError(
      f'{key}.warmup_steps ({warmup_steps}) must be less than '
      f'{stage_key}.steps ({total_steps})'
    )
