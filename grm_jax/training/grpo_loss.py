"""The GRPO loss: clipped policy gradient with a KL penalty.

For a generation with advantage A, at each of its tokens, with
ratio = policy / old policy (DeepSeekMath, arXiv 2402.03300, equation 3):

  loss = kl_coef kl - min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A)

clip_low = clip_high is the clip of PPO and GRPO; a larger clip_high is DAPO's
clip-higher (arXiv 2503.14476, section 3.1). loss_agg_mode selects how tokens
are averaged: GRPO's mean over each generation ('sequence'), DAPO's mean over
all tokens ('token', section 3.3), or Dr. GRPO's sum divided by a constant
length ('constant', arXiv 2503.20783), which favors no length.

Letters: P prompts, R generations per prompt, T generation tokens.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from grm_jax import settings
from grm_jax.model import batch as batches
from grm_jax.model import compute_config, logprobs
from grm_jax.model.batch import Batch
from grm_jax.model.transformer import Transformer
from grm_jax.training.train_step import AuxMetrics

KL_ESTIMATORS = ('k1', 'k2', 'k3')
LOSS_AGG_MODES = ('sequence', 'token', 'constant')
# Rules of config.loss.
SETTINGS = {
  'kl_coef': settings.number(0),
  'kl_estimator': settings.one_of(*KL_ESTIMATORS),
  'clip_low': settings.number(0, 1, above=True),
  'clip_high': settings.number(0, above=True),
  'loss_agg_mode': settings.one_of(*LOSS_AGG_MODES),
}

# Bound of |log ratio|. e^20 is 5e8: far outside of any sound update, and far
# inside of float32.
_MAX_LOG_RATIO = 20.0
# Metric: the fraction of tokens whose trainer/sampler ratio is outside.
_RATIO_RANGE = (0.9, 1.1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PolicyBatch:
  """Groups of generations with advantages and log-probabilities.

  Values past a generation's length, or of generations with weight 0, do not
  affect the loss or the metrics.

  Attributes:
    batch: prompts with generations.
    advantages: float32 [P, R].
    weights: float32 [P, R], 1 for a generation, 0 for padding.
    rollout_logps: float32 [P, R, T], the untempered log-probabilities that the
      sampler computed; for metrics only.
    ref_logps: float32 [P, R, T] of the reference; None without a reference.
    old_logps: float32 [P, R, T] that the trainer computed before the first
      update on this rollout; None if there is only one update, which makes the
      ratio 1.
  """

  batch: Batch
  advantages: jax.Array
  weights: jax.Array
  rollout_logps: jax.Array
  ref_logps: jax.Array | None = None
  old_logps: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class GRPOLossConfig:
  """Settings of the GRPO loss.

  Attributes:
    kl_coef: weight of the KL divergence from the reference; 0 needs no
      reference.
    clip_low: the ratio is clipped from below to 1 - clip_low.
    clip_high: the ratio is clipped from above to 1 + clip_high.
    kl_estimator: 'k1', 'k2' or 'k3', see `kl`.
    loss_agg_mode: 'sequence': mean over the tokens of a generation, then over
      generations; 'token': mean over all tokens of the update; 'constant': sum
      over the tokens of a generation / max_tokens, then mean over generations.
      An empty generation counts as 0.
    max_tokens: length that 'constant' divides by.
    key: config key of these settings, for messages; not stored.

  Raises:
    UserError: a value outside its range.
  """

  kl_coef: float
  clip_low: float
  clip_high: float
  kl_estimator: str
  loss_agg_mode: str
  max_tokens: int
  key: dataclasses.InitVar[str] = 'config.loss'

  def __post_init__(self, key):
    settings.check_values(dataclasses.asdict(self), SETTINGS, key)


def logps(model: Transformer, params: dict, batch: Batch) -> jax.Array:
  """Returns the log-probability of every generation token.

  Args:
    model: the network.
    params: parameters of the reference or the old policy.
    batch: prompts with generations.

  Returns:
    float32 [P, R, T], 0 past each generation's length.

  Raises:
    ValueError: inconsistent shapes or dtypes, or no generations.
  """
  _generations(batch)
  return logprobs.generation_logps(model, params, batch)[0]


def jit_logps(model: Transformer) -> Any:
  """Returns the jitted function: params, batch -> `logps`."""
  options = compute_config.compiler_options(
    model.compute, model.layout.platform
  )
  return jax.jit(functools.partial(logps, model), compiler_options=options)


def grpo_loss(
  model: Transformer,
  loss_config: GRPOLossConfig,
  params: dict,
  policy_batch: PolicyBatch,
) -> tuple[jax.Array, jax.Array, AuxMetrics]:
  """Returns the GRPO loss of a batch, see `token_loss`.

  With `model` and `loss_config` bound it is a `Loss` of train_step.py.

  Raises:
    ValueError: inconsistent shapes or dtypes, or kl_coef above 0 without
      ref_logps.
  """
  _check(loss_config, policy_batch)
  policy_logps, entropy = logprobs.generation_logps(
    model, params, policy_batch.batch
  )
  return token_loss(loss_config, policy_logps, entropy, policy_batch)


def token_loss(
  loss_config: GRPOLossConfig,
  logps: jax.Array,
  entropy: jax.Array,
  policy_batch: PolicyBatch,
) -> tuple[jax.Array, jax.Array, AuxMetrics]:
  """Sums kl_coef kl - surrogate over tokens, weighted by loss_agg_mode.

  Micro-batches add up exactly: the loss of an update is the sum of their
  numerators divided by the sum of their denominators.

  Args:
    loss_config: settings of the loss.
    logps: float32 [P, R, T], of the policy.
    entropy: float32 [P, R, T], of the policy.
    policy_batch: generations, advantages and log-probabilities.

  Returns:
    (numerator, denominator, metrics). The denominator counts generations, or
    tokens for 'token'. Means:
      policy_loss: the loss without the KL term, in the mode of the loss.
      kl: per token; only with a reference.
      entropy: per token.
      clip_fraction: fraction of tokens where the clipped term is active.
      logp_diff_mean: |log-probability by the trainer - by the sampler|.
      ratio_outside_0.9_1.1: fraction of tokens where the ratio of the two is
        outside [0.9, 1.1].
    Maximum: logp_diff_max. The trainer's log-probabilities are old_logps if
    present, since later updates legitimately move away from the sampler.
  """
  generations, lengths = _generations(policy_batch.batch)
  weights = policy_batch.weights
  positions = jnp.arange(generations.shape[2])[None, None]
  # Real tokens of generations that are not padding: bool [P, R, T].
  mask = (positions < lengths[..., None]) & (weights > 0)[..., None]

  # Masked positions may hold NaN or infinity. Replace them before any
  # arithmetic: 0 * NaN would reach the sums and the gradient.
  def masked(x):
    """Returns x [P, R, T] with zeros at positions without a token."""
    return jnp.where(mask, x, 0.0)

  policy, rollout = masked(logps), masked(policy_batch.rollout_logps)
  old, ref = (
    None if x is None else masked(x)
    for x in (policy_batch.old_logps, policy_batch.ref_logps)
  )
  gain, is_clipped = surrogate(
    policy,
    old,
    jnp.where(weights > 0, policy_batch.advantages, 0.0),
    loss_config.clip_low,
    loss_config.clip_high,
  )
  token_weights = masked(weights[..., None])  # [P, R, T]
  scale, denominator = _aggregation(
    loss_config, token_weights, weights, lengths
  )
  policy_loss = numerator = -jnp.sum(scale * gain)
  values = {'entropy': masked(entropy), 'clip_fraction': is_clipped}
  if ref is not None:
    values['kl'] = kl(policy, ref, loss_config.kl_estimator)
    numerator = policy_loss + loss_config.kl_coef * jnp.sum(
      scale * values['kl']
    )
  logp_diff = (policy if old is None else old) - rollout
  ratio = jnp.exp(logp_diff)
  values['logp_diff_mean'] = jnp.abs(logp_diff)
  low, high = _RATIO_RANGE
  values['ratio_outside_0.9_1.1'] = (ratio < low) | (ratio > high)
  means = {
    name: (jnp.sum(token_weights * x), jnp.sum(token_weights))
    for name, x in values.items()
  }
  means['policy_loss'] = (policy_loss, denominator)
  maxima = {'logp_diff_max': jnp.max(jnp.abs(logp_diff))}
  return numerator, denominator, AuxMetrics(means, maxima)


def surrogate(
  logps: jax.Array,
  old_logps: jax.Array | None,
  advantages: jax.Array,
  clip_low: float,
  clip_high: float,
) -> tuple[jax.Array, jax.Array]:
  """min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A) of each token.

  PPO (arXiv 1707.06347, equation 7), as used by GRPO. No gradient flows where
  the clipped term is smaller.

  Args:
    logps: float32 [P, R, T], of the policy.
    old_logps: float32 [P, R, T]. None for those of the policy itself without a
      gradient: the ratio is then exactly 1, with the gradient of `logps`.
    advantages: float32 [P, R].
    clip_low: see `GRPOLossConfig`.
    clip_high: see `GRPOLossConfig`.

  Returns:
    (objective to maximize, bool where the clipped term is smaller), [P, R, T].
    The ratio is bounded to [e^-20, e^20].
  """
  old = jax.lax.stop_gradient(logps) if old_logps is None else old_logps
  # An infinite ratio would have the gradient 0 * inf even where it is clipped.
  log_ratio = jnp.clip(logps - old, -_MAX_LOG_RATIO, _MAX_LOG_RATIO)
  ratio = jnp.exp(log_ratio)
  unclipped = ratio * advantages[..., None]
  clipped = jnp.clip(ratio, 1 - clip_low, 1 + clip_high) * advantages[..., None]
  return jnp.minimum(unclipped, clipped), clipped < unclipped


def kl(logps: jax.Array, ref_logps: jax.Array, estimator: str) -> jax.Array:
  """Estimates KL(policy || reference) at each token, sampled by the policy.

  J. Schulman, "Approximating KL divergence" (2020), with
  d = log reference - log policy:

    k1 = -d             unbiased, high variance, may be negative
    k2 = d^2 / 2        biased, never negative
    k3 = e^d - d - 1    unbiased, never negative; d is bounded to [-20, 20]

  The gradient of an estimator is not an estimator of the gradient. As a loss,
  in expectation over tokens that the policy samples, the gradients are

    k1: that of log policy, whose expectation is zero: noise without a pull
    k2: -d times it, the gradient of KL(policy || reference)
    k3: (1 - e^d) times it, the gradient of KL(reference || policy)

  Those of k2 and k3 agree for d near 0. GRPO uses k3 (DeepSeekMath, equation
  4).

  Args:
    logps: float32, of the policy.
    ref_logps: float32 of the same shape.
    estimator: 'k1', 'k2' or 'k3'.

  Returns:
    float32 of that shape.

  Raises:
    ValueError: unknown estimator.
  """
  d = ref_logps - logps
  if estimator == 'k1':
    return -d
  if estimator == 'k2':
    return jnp.square(d) / 2
  if estimator != 'k3':
    raise ValueError(
      f'kl_estimator is {estimator!r}; use one of {", ".join(KL_ESTIMATORS)}'
    )
  d = jnp.clip(d, -_MAX_LOG_RATIO, _MAX_LOG_RATIO)
  return jnp.expm1(d) - d


def _aggregation(
  loss_config: GRPOLossConfig,
  token_weights: jax.Array,
  weights: jax.Array,
  lengths: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Returns (factor of each token's loss [P, R, T], denominator)."""
  if loss_config.loss_agg_mode == 'token':
    return token_weights, jnp.sum(token_weights)
  num_generations = jnp.sum(weights)
  if loss_config.loss_agg_mode == 'constant':
    return token_weights / loss_config.max_tokens, num_generations
  return token_weights / jnp.maximum(lengths, 1)[..., None], num_generations


def _generations(batch: Batch) -> tuple[jax.Array, jax.Array]:
  """Returns generations [P, R, T] and their lengths [P, R], checked."""
  batches.check_batch(batch)
  if batch.generations is None or batch.generation_lengths is None:
    raise ValueError('the batch has no generations; the loss scores them')
  return batch.generations, batch.generation_lengths


def _check(loss_config: GRPOLossConfig, policy_batch: PolicyBatch) -> None:
  generations, _ = _generations(policy_batch.batch)
  if policy_batch.ref_logps is None and loss_config.kl_coef > 0:
    raise ValueError(
      f'config.loss.kl_coef is {loss_config.kl_coef}, but there are no '
      'ref_logps; score the generations with the reference or set it to 0'
    )
  shape = generations.shape
  for name, x, expected in (
    ('advantages', policy_batch.advantages, shape[:2]),
    ('weights', policy_batch.weights, shape[:2]),
    ('rollout_logps', policy_batch.rollout_logps, shape),
    ('ref_logps', policy_batch.ref_logps, shape),
    ('old_logps', policy_batch.old_logps, shape),
  ):
    if x is not None and (x.shape != expected or x.dtype != jnp.float32):
      raise ValueError(
        f'{name} is {x.dtype} {x.shape}, expected float32 {expected}'
      )
