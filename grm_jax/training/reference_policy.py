"""The reference policy: frozen parameters that the KL term is measured from.

They come from a checkpoint of their own and are read from there again when a
run goes on: no checkpoint of the run holds them, but each says which they are.
In a dtype of their own, split over devices as the policy is, and if asked for
in the host's memory while they are not used.
"""

import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax

from grm_jax.checkpoint import model_directory, orbax_checkpoint
from grm_jax.errors import UserError
from grm_jax.model.batch import Batch
from grm_jax.model.transformer import Transformer
from grm_jax.sharding.rules import HOST_MEMORY
from grm_jax.training import grpo_loss

DTYPES = ('float32', 'bfloat16')


class ReferencePolicy:
  """Parameters at rest, and the program that uses them; see `logps`.

  Attributes:
    provenance: where they are from, for `check`: checkpoint, step, and a digest
      of the parameters, as JSON values.
  """

  def __init__(
    self,
    directory: str,
    step: int | None,
    model: Transformer,
    *,
    dtype: str,
    offload_to_host: bool,
    seed: int = 0,
  ):
    """Reads the parameters.

    Args:
      directory: a model directory of the policy's size.
      step: None for the newest.
      model: the policy's network.
      dtype: of the parameters at rest.
      offload_to_host: keep them in the host's memory between two uses.
      seed: of random weights.

    Raises:
      UserError: another dtype; a checkpoint of another size, or one with a
        scalar head.
    """
    check_dtype(dtype)
    self.provenance = _provenance(directory, step, seed)
    params = _load(directory, self.provenance['step'], model, dtype, seed)
    self._homes = jax.tree.map(lambda x: x.sharding, params)
    self._params, self._on_host = params, offload_to_host
    if offload_to_host:
      rests = jax.tree.map(
        lambda x: x.with_memory_kind(HOST_MEMORY), self._homes
      )
      self._params = jax.device_put(self._params, rests)
    self._logps = jax.jit(functools.partial(grpo_loss.logps, model))

  def check(self, saved: Mapping[str, Any] | None) -> None:
    """UserError where a run that goes on was measured from others.

    Args:
      saved: its `provenance`; None if it had no reference.
    """
    if saved and saved['digest'] != self.provenance['digest']:
      ours = self.provenance
      raise UserError(
        f'the run was measured from {saved["checkpoint"]}, step '
        f'{saved["step"]}, this reference is {ours["checkpoint"]}, step '
        f'{ours["step"]}, of other parameters; give the one that was, as '
        'config.reference.checkpoint or config.checkpoint, or begin a new run'
      )

  def logps(self, batches: list[Batch]) -> list[jax.Array]:
    """float32 [P, R, T] of each batch: log-probabilities of its tokens."""
    params = self._params
    if self._on_host:
      params = jax.device_put(params, self._homes)
    found = [self._logps(params, batch) for batch in batches]
    if self._on_host:
      # Or the copy would be freed only some time after the update has begun.
      jax.block_until_ready(found)
    return found


def check_dtype(dtype: str, key: str = 'config.reference.dtype') -> None:
  """UserError, with the config key, if a reference cannot have this dtype."""
  if dtype not in DTYPES:
    raise UserError(f'{key} is {dtype!r}; it can be {", ".join(DTYPES)}')


def _provenance(directory, step, seed) -> dict[str, Any]:
  if directory == model_directory.RANDOM:
    return {'checkpoint': directory, 'step': None, 'digest': f'seed {seed}'}
  if not directory:
    raise UserError(
      'config.reference.checkpoint and config.checkpoint are empty; a run that '
      'goes on needs its reference, too: give what it began with'
    )
  if step is None:
    step = max(orbax_checkpoint.steps(directory), default=None)
  arrays = orbax_checkpoint.read_json(directory, 'index', step)['arrays'][
    'params'
  ]
  text = json.dumps(arrays, sort_keys=True).encode()
  digest = hashlib.sha256(text).hexdigest()[:12]
  return {'checkpoint': str(directory), 'step': step, 'digest': digest}


def _load(directory, step, model, dtype, seed) -> dict:
  """The parameters in their dtype, where those of the policy are."""
  if directory == model_directory.RANDOM:
    loaded, _, params = model_directory.open_model(
      directory, step, model.compute, model.layout, seed=seed
    )
  else:
    loaded = model_directory.build(directory, step, model.compute, model.layout)
  if (loaded.size, loaded.scalar) != (model.size, model.scalar):
    raise UserError(
      f'config.reference.checkpoint={directory} is {_words(loaded)}, the '
      f'policy {_words(model)}; give one of the same size'
    )
  if directory == model_directory.RANDOM:
    return jax.tree.map(lambda x: x.astype(dtype), params)
  return model_directory.load_params(directory, step, model, dtype)


def _words(model: Transformer) -> str:
  return f'{model.size}{", with a scalar head" if model.scalar else ""}'
