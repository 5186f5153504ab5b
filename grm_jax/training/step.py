"""Training steps: pure functions of (state, batch); jit is the caller's.

Callers write `jax.jit(functools.partial(supervised_step, model, optimizer),
donate_argnums=0, out_shardings=...)`, so that shardings and donation show
where the step is used.
"""

import jax
import jax.numpy as jnp
import optax

from grm_jax.model import head
from grm_jax.model.batch import Batch
from grm_jax.model.gemma import Gemma
from grm_jax.training.state import TrainState


def supervised_loss(
  model: Gemma, params: dict, batch: Batch
) -> tuple[jax.Array, jax.Array]:
  """Cross-entropy of generation tokens, as (sum over tokens, token count).

  The two are kept apart so that accumulation and devices add them up and
  divide once: a mean of means is wrong for ragged lengths.

  Args:
    model: the network.
    params: its parameters.
    batch: prompts with generations; prompts carry no loss.

  Returns:
    float32 scalars.
  """
  logps, _ = head.generation_logps(model, params, batch)
  count = jnp.sum(batch.generation_lengths).astype(jnp.float32)
  return -jnp.sum(logps), count


def supervised_step(
  model: Gemma,
  optimizer: optax.GradientTransformation,
  state: TrainState,
  batch: Batch,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One update on one batch.

  Returns:
    The next state, and float32 scalars: loss (mean per token), tokens,
    grad_norm.
  """

  def mean_loss(params):
    total, count = supervised_loss(model, params, batch)
    return total / jnp.maximum(count, 1.0), count

  (loss, count), grads = jax.value_and_grad(mean_loss, has_aux=True)(
    state.params
  )
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  metrics = {
    'loss': loss,
    'tokens': count,
    'grad_norm': optax.tree.norm(grads),
  }
  return TrainState(state.step + 1, params, opt_state), metrics
