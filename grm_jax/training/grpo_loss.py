"""The GRPO objective: what makes generations of high reward more likely.

For a generation of advantage A, at each of its tokens, with
ratio = policy / old policy (DeepSeekMath, arXiv 2402.03300, equation 3):

  maximise min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A) - kl_coef kl

One clip for both sides is PPO's and GRPO's, a higher upper one is DAPO's (arXiv
2503.14476, section 3.1). How tokens are averaged is the loss_agg_mode: GRPO's mean
over each generation ('sequence'), DAPO's over all tokens ('token', section
3.3), or Dr. GRPO's sum over a constant length ('constant', arXiv 2503.20783),
which favours no length.

Letters: P prompts, R generations of each, T generation places.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from grm_jax.errors import UserError
from grm_jax.model import batch as batches
from grm_jax.model import logprobs
from grm_jax.model.batch import Batch
from grm_jax.model.transformer import Transformer
from grm_jax.training.train_step import AuxMetrics

KLS = ('k1', 'k2', 'k3')
NORMALIZERS = ('sequence', 'token', 'constant')

# e^20 is 5e8: far outside of any sound update, and far inside of float32.
_CLAMP = 20.0
# A ratio of trainer to sampler outside of these is counted.
_NEAR = (0.9, 1.1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PolicyBatch:
  """A group of generations for each prompt, and what is known of them.

  Attributes:
    batch: prompts with generations.
    advantages: float32 [P, R].
    weights: float32 [P, R]: 1 for a generation that counts, 0 for padding.
    rollout_logps: float32 [P, R, T], the model's log-probabilities by the
      sampler; only measured against.
    ref_logps: float32 [P, R, T] by the reference; None without a reference.
    old_logps: float32 [P, R, T] by the trainer before the first update on this
      rollout; None if there is but one update: the ratio is then 1.

  What the arrays hold past a generation's length, or at weight 0, has no part
  in anything.
  """

  batch: Batch
  advantages: jax.Array
  weights: jax.Array
  rollout_logps: jax.Array
  ref_logps: jax.Array | None = None
  old_logps: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class GRPOLossConfig:
  """What is maximised; see the module's text.

  Attributes:
    kl_coef: weight of the divergence from the reference; 0 needs none.
    clip_low, clip_high: the ratio is clipped to 1 - clip_low, 1 + clip_high.
    kl_estimator: 'k1', 'k2' or 'k3', see `kl`.
    loss_agg_mode: 'sequence': the mean over a generation's tokens, then over
      generations; 'token': the mean over all tokens of the update; 'constant':
      a generation's sum over tokens / max_tokens, then the mean over
      generations. A generation of no tokens counts as 0.
    max_tokens: the length that 'constant' divides by.
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
    for name, good, legal in (
      ('kl_coef', 0 <= self.kl_coef < math.inf, '0 or more'),
      ('clip_low', 0 < self.clip_low <= 1, 'above 0, at most 1'),
      ('clip_high', 0 < self.clip_high < math.inf, 'above 0'),
      ('kl_estimator', self.kl_estimator in KLS, f'one of {", ".join(KLS)}'),
      (
        'loss_agg_mode',
        self.loss_agg_mode in NORMALIZERS,
        f'one of {", ".join(NORMALIZERS)}',
      ),
      ('max_tokens', self.max_tokens >= 1, '1 or more'),
    ):
      if not good:
        value = dataclasses.asdict(self)[name]
        raise UserError(f'{key}.{name} is {value!r}; use {legal}')


def logps(model: Transformer, params: dict, batch: Batch) -> jax.Array:
  """Log-probability of every generation token, by a reference or old policy.

  Args:
    model: the network.
    params: its parameters.
    batch: prompts with generations.

  Returns:
    float32 [P, R, T], 0 past each generation's length.

  Raises:
    ValueError: shapes or dtypes that contradict each other, no generations.
  """
  _check_batch(batch)
  return logprobs.generation_logps(model, params, batch)[0]


def surrogate(
  logps: jax.Array,
  old_logps: jax.Array | None,
  advantages: jax.Array,
  clip_low: float,
  clip_high: float,
) -> tuple[jax.Array, jax.Array]:
  """min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A), of each token.

  PPO (arXiv 1707.06347, equation 7), which GRPO takes over. Where the second
  is less, no gradient flows: the ratio has gone far enough the right way.

  Args:
    logps: float32 [P, R, T], of the policy.
    old_logps: float32 [P, R, T]. None: those of the policy itself, held fixed,
      so that the ratio is exactly 1 and its gradient is that of `logps`.
    advantages: float32 [P, R].
    clip_low, clip_high: see `Objective`.

  Returns:
    (what to maximise, where the clipped one is the lesser), [P, R, T]. The
    ratio is held within e^-20 and e^20.
  """
  old = jax.lax.stop_gradient(logps) if old_logps is None else old_logps
  # Infinite ratios would have gradients of 0 * inf even where they lose.
  ratio = jnp.exp(jnp.clip(logps - old, -_CLAMP, _CLAMP))
  free = ratio * advantages[..., None]
  near = jnp.clip(ratio, 1 - clip_low, 1 + clip_high) * advantages[..., None]
  return jnp.minimum(free, near), near < free


def kl(logps: jax.Array, ref_logps: jax.Array, kind: str) -> jax.Array:
  """Estimates KL(policy || reference) at each token, for a token it drew.

  J. Schulman, "Approximating KL divergence" (2020), with
  d = log reference - log policy:

    k1 = -d             unbiased, of large variance, may be negative
    k2 = d^2 / 2        biased, never negative
    k3 = e^d - d - 1    unbiased, never negative; d is held within -20 and 20

  Good estimates do not have the gradient of what they estimate. Used as a
  loss, in expectation over tokens that the policy drew:

    k1: log policy's own gradient, whose expectation is zero: noise, no pull
    k2: -d times it, the gradient of KL(policy || reference)
    k3: (1 - e^d) times it, the gradient of KL(reference || policy)

  For d near 0 those of k2 and k3 agree. GRPO uses k3 (DeepSeekMath, equation
  4).

  Args:
    logps, ref_logps: float32 of one shape.
    kind: 'k1', 'k2' or 'k3'.

  Returns:
    float32 of that shape.

  Raises:
    ValueError: another kind.
  """
  d = ref_logps - logps
  if kind == 'k1':
    return -d
  if kind == 'k2':
    return jnp.square(d) / 2
  if kind != 'k3':
    raise ValueError(f'kl is {kind!r}; use one of {", ".join(KLS)}')
  d = jnp.clip(d, -_CLAMP, _CLAMP)
  return jnp.expm1(d) - d


def grpo_loss(
  model: Transformer,
  objective: GRPOLossConfig,
  params: dict,
  policy_batch: PolicyBatch,
) -> tuple[jax.Array, jax.Array, AuxMetrics]:
  """The objective with its sign turned: see `measure`.

  With model and objective bound it is a `Loss` of training/train_step.py.

  Raises:
    ValueError: shapes or dtypes that contradict each other; kl_coef above 0
      without ref_logps.
  """
  _check(objective, policy_batch)
  ours, entropy = logprobs.generation_logps(model, params, policy_batch.batch)
  return measure(objective, ours, entropy, policy_batch)


def measure(
  objective: GRPOLossConfig,
  logps: jax.Array,
  entropy: jax.Array,
  policy_batch: PolicyBatch,
) -> tuple[jax.Array, jax.Array, AuxMetrics]:
  """Sums over tokens of kl_coef kl - surrogate, weighed by the loss_agg_mode.

  They add up over batches of other sizes: the loss of all is the sum of
  numerators over that of denominators.

  Args:
    objective: what to maximise.
    logps, entropy: float32 [P, R, T], of the policy.
    policy_batch: the generations and what is known of them.

  Returns:
    (numerator, denominator, extras). The denominator counts generations, or
    tokens for 'token'. Means over what counts, per token but for the first:
    policy_loss (the loss without the divergence), kl (with a reference),
    entropy, clip_fraction (where the clipped ratio is the active one),
    sampler_difference (of log-probabilities by trainer and sampler),
    sampler_outside (their ratio is outside [0.9, 1.1]). Maximum:
    sampler_difference_max. The trainer's are old_logps if there are any:
    later updates are not the sampler's doing.
  """
  weights = policy_batch.weights
  counts = _counts(policy_batch)

  def clean(x):
    return None if x is None else jnp.where(counts, x, 0.0)

  ours, old = clean(logps), clean(policy_batch.old_logps)
  ref, drawn = clean(policy_batch.ref_logps), clean(policy_batch.rollout_logps)
  gain, clipped = surrogate(
    ours,
    old,
    jnp.where(weights > 0, policy_batch.advantages, 0.0),
    objective.clip_low,
    objective.clip_high,
  )
  each = clean(weights[..., None])
  scale, denominator = _normalizer(objective, each, policy_batch)
  policy = numerator = -jnp.sum(scale * gain)
  tokens = {'entropy': clean(entropy), 'clip_fraction': clipped}
  if ref is not None:
    tokens['kl'] = kl(ours, ref, objective.kl_estimator)
    numerator = policy + objective.kl_coef * jnp.sum(scale * tokens['kl'])
  apart = (ours if old is None else old) - drawn
  ratio = jnp.exp(apart)
  tokens['sampler_difference'] = jnp.abs(apart)
  tokens['sampler_outside'] = (ratio < _NEAR[0]) | (ratio > _NEAR[1])
  means = {k: (jnp.sum(each * x), jnp.sum(each)) for k, x in tokens.items()}
  means['policy_loss'] = (policy, denominator)
  maxima = {'sampler_difference_max': jnp.max(jnp.abs(apart))}
  return numerator, denominator, AuxMetrics(means, maxima)


def _counts(policy_batch):
  """Bool [P, R, T]: real tokens of generations that count."""
  places = jnp.arange(policy_batch.batch.generations.shape[2])[None, None]
  real = places < policy_batch.batch.generation_lengths[..., None]
  return real & (policy_batch.weights > 0)[..., None]


def _normalizer(objective, each, policy_batch):
  """(what a token's term is multiplied by [P, R, T], denominator)."""
  if objective.loss_agg_mode == 'token':
    return each, jnp.sum(each)
  generations = jnp.sum(policy_batch.weights)
  if objective.loss_agg_mode == 'constant':
    return each / objective.max_tokens, generations
  lengths = jnp.maximum(policy_batch.batch.generation_lengths, 1)
  return each / lengths[..., None], generations


def _check_batch(batch):
  batches.check(batch)
  if batch.generations is None:
    raise ValueError('a policy has generations to score; the batch has none')


def _check(objective, policy_batch):
  _check_batch(policy_batch.batch)
  if policy_batch.ref_logps is None and objective.kl_coef > 0:
    raise ValueError(
      f'config.loss.kl_coef is {objective.kl_coef}, but there are no '
      'ref_logps; score the reference or use 0'
    )
  shape = policy_batch.batch.generations.shape
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
