"""The reference policy of GRPO's KL penalty: frozen parameters.

The parameters come from a checkpoint and are read from it again when a run
resumes. Checkpoints of the run do not contain them, only their provenance.
They are sharded like the policy, in a dtype of their own, and can be kept in
host memory while they are not used.
"""

from collections.abc import Mapping
from typing import Any

import jax

from grm_jax import settings
from grm_jax.checkpoint import adapter_base, model_directory
from grm_jax.errors import UserError
from grm_jax.model.batch import Batch
from grm_jax.model.transformer import Transformer
from grm_jax.sharding.rules import HOST_MEMORY
from grm_jax.training import grpo_loss

# Rules of config.reference; the stage grpo also has `checkpoint`.
SETTINGS = {
  'dtype': settings.one_of('float32', 'bfloat16'),
  'offload_to_host': settings.BOOLEAN,
}


class ReferencePolicy:
  """Frozen parameters and the compiled function that scores with them.

  Attributes:
    provenance: checkpoint, step and digest of the parameters, as JSON values;
      stored in the run's checkpoints for `check_provenance`.
  """

  def __init__(
    self,
    params: dict,
    provenance: dict[str, Any],
    model: Transformer,
    *,
    offload_to_host: bool = False,
  ):
    """Keeps parameters.

    Args:
      params: the parameters.
      provenance: see the class.
      model: the policy's network.
      offload_to_host: whether to keep them in host memory between uses.
    """
    self.provenance = provenance
    self._device_shardings = jax.tree.map(lambda x: x.sharding, params)
    self._offload_to_host = offload_to_host
    if offload_to_host:
      host_shardings = jax.tree.map(
        lambda x: x.with_memory_kind(HOST_MEMORY), self._device_shardings
      )
      params = jax.device_put(params, host_shardings)
    self._params = params
    self._logps = grpo_loss.jit_logps(model)

  @classmethod
  def load(
    cls,
    directory: str,
    step: int | None,
    model: Transformer,
    *,
    dtype: str,
    offload_to_host: bool,
    seed: int = 0,
  ) -> 'ReferencePolicy':
    """Returns the policy of a model directory.

    Args:
      directory: a model directory with the configuration of the policy.
      step: None for the latest.
      model: the policy's network.
      dtype: dtype of the stored parameters.
      offload_to_host: whether to keep them in host memory between uses.
      seed: seed of random weights.

    Raises:
      UserError: unsupported dtype; a checkpoint of another configuration or
        with a scalar head.
    """
    settings.check_value(dtype, SETTINGS['dtype'], 'config.reference.dtype')
    provenance = _provenance(directory, step, seed)
    params = _load(directory, provenance['step'], model, dtype, seed)
    return cls(params, provenance, model, offload_to_host=offload_to_host)

  def check_provenance(self, saved: Mapping[str, Any] | None) -> None:
    """Checks that a resumed run has the reference that it started with.

    Args:
      saved: `provenance` from the run's checkpoint; None if the run had no
        reference.

    Raises:
      UserError: the parameters differ.
    """
    if saved and saved['digest'] != self.provenance['digest']:
      current = self.provenance
      raise UserError(
        f'the run used the reference {saved["checkpoint"]}, step '
        f'{saved["step"]}, but this reference is {current["checkpoint"]}, step '
        f'{current["step"]}, with other parameters; set '
        'config.reference.checkpoint or config.checkpoint to the original '
        'reference, or start a new run'
      )

  def logps(self, batches: list[Batch]) -> list[jax.Array]:
    """Returns log-probabilities float32 [P, R, T] of each batch's tokens."""
    params = self._params
    if self._offload_to_host:
      params = jax.device_put(params, self._device_shardings)
    results = [self._logps(params, batch) for batch in batches]
    if self._offload_to_host:
      # Without the wait, the device copy would still exist when the update
      # begins, which needs the memory.
      jax.block_until_ready(results)
    return results


def _provenance(directory: str, step: int | None, seed: int) -> dict[str, Any]:
  if not directory:
    raise UserError(
      'config.reference.checkpoint and config.checkpoint are empty; a resumed '
      'run also needs its reference: give the checkpoint it started with'
    )
  return adapter_base.provenance(directory, step, seed)


def _load(
  directory: str, step: int | None, model: Transformer, dtype: str, seed: int
) -> dict:
  """Returns the parameters in `dtype` and in the shardings of the policy."""
  is_random = directory == model_directory.RANDOM
  if is_random:
    loaded, _, params = model_directory.open_model(
      directory, step, model.compute, model.layout, seed=seed
    )
  else:
    loaded = model_directory.build_model(
      directory, step, model.compute, model.layout
    )
  if (loaded.config, loaded.scalar) != (model.config, model.scalar):
    raise UserError(
      f'config.reference.checkpoint={directory} is {_describe(loaded)}, the '
      f'policy is {_describe(model)}; give a checkpoint of the same model'
    )
  if is_random:
    return jax.tree.map(lambda x: x.astype(dtype), params)
  return model_directory.load_params(directory, step, model, dtype)


def _describe(model: Transformer) -> str:
  return f'{model.config}{" with a scalar head" if model.scalar else ""}'
