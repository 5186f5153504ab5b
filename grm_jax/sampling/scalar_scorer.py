"""Scalar values of texts that follow prompts: each prompt is computed once.

What scalar reward models (a value per response) and the meta RM (a value per
judgement) share. Prompts are padded to the next of a few lengths and the
number of texts and of prompts to a power of two, so few programs are compiled.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from grm_jax.errors import UserError
from grm_jax.model import logprobs
from grm_jax.model.batch import Batch
from grm_jax.model.transformer import Transformer

# A prompt and the texts that follow it, as token ids.
Item = tuple[Sequence[int], Sequence[Sequence[int]]]


class ScalarScorer:
  """A model that gives a number to each text; call `of`.

  Attributes:
    prompts: P, prompts computed at once.
    buckets: lengths that prompts are padded to.
    size: most tokens of a text, which all are padded to.
  """

  def __init__(
    self,
    model: Transformer,
    params: dict,
    *,
    prompts: int,
    buckets: Sequence[int],
    size: int,
  ):
    """A model without a scalar head gives mean log-probabilities.

    Raises:
      UserError: the mesh cannot split the prompts.
    """
    ways = model.layout.split('prompts')
    if prompts % ways:
      raise UserError(
        f'config.sampling.prompts is {prompts}; the mesh splits prompts '
        f'{ways} ways, of which it must be a multiple'
      )
    self.prompts, self.size, self._ways = prompts, size, ways
    self.buckets = tuple(sorted(set(buckets)))
    self._params = params
    whole = model.layout.sharding(())
    self._function = jax.jit(_function(model), out_shardings=whole)

  def fault(self, item: Item) -> str | None:
    """Why an item does not fit, if it does not."""
    prompt, texts = item
    for name, found, limit, key in (
      ('query', len(prompt), self.buckets[-1], 'buckets'),
      ('longest response', max(map(len, texts)), self.size, 'size'),
    ):
      if found > limit:
        return (
          f'its {name} has {found} tokens, config.sampling.{key} allows {limit}'
        )
    return None

  def of(self, items: Sequence[Item]) -> list[np.ndarray]:
    """float32 [number of texts] for each item, P of them at a time."""
    out = []
    for first in range(0, len(items), self.prompts):
      some = items[first : first + self.prompts]
      values = self._function(self._params, self._pad(some))
      values = np.asarray(values.addressable_data(0))
      out += [
        own[: len(texts)] for own, (_, texts) in zip(values, some, strict=False)
      ]
    return out

  def _pad(self, items: Sequence[Item]) -> Batch:
    """Their batch; missing prompts and texts are short dummies."""
    longest = max(len(prompt) for prompt, _ in items)
    size = next(b for b in self.buckets if longest <= b)
    most = max(len(texts) for _, texts in items)
    # Few programs, and few dummies where there are few prompts.
    p = self._ways * _power(-(-len(items) // self._ways))
    p, r = min(p, self.prompts), _power(most)
    prompts = np.zeros((p, size), np.int32)
    lengths = np.ones(p, np.int32)
    generations = np.zeros((p, r, self.size), np.int32)
    generation_lengths = np.zeros((p, r), np.int32)
    for i, (prompt, texts) in enumerate(items):
      prompts[i, : len(prompt)] = prompt
      lengths[i] = len(prompt)
      for j, tokens in enumerate(texts):
        generations[i, j, : len(tokens)] = tokens
        generation_lengths[i, j] = len(tokens)
    return Batch(prompts, lengths, generations, generation_lengths)


def _power(least: int) -> int:
  """The smallest power of two that is not less."""
  return 1 << (least - 1).bit_length()


def _function(model: Transformer) -> Callable[[dict, Batch], jax.Array]:
  """(params, batch) -> float32 [P, R]."""
  if model.scalar:
    return lambda params, batch: logprobs.values(model, params, batch)

  def mean_logp(params, batch):
    logps, _ = logprobs.generation_logps(model, params, batch)
    return jnp.sum(logps, axis=-1) / jnp.maximum(batch.generation_lengths, 1)

  return mean_logp
