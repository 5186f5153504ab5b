"""Scores texts that follow prompts; every prompt is computed once.

Scalar reward models (a value per response) and the meta RM (a value per
judgement) use it. Prompts are padded to the next bucket, and the numbers of
prompts and texts to powers of two, so that few functions are compiled.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from grm_jax.model import logprobs
from grm_jax.model.batch import Batch
from grm_jax.model.transformer import Transformer
from grm_jax.sampling.compiled_functions import check_divisible
from grm_jax.sampling.padding import PromptWithTexts, pad_items

# Texts that follow a prompt at once. The prompt is computed again for the other
# texts, so that the memory of a batch does not depend on the rows.
_MAX_TEXTS = 32


class ScalarScorer:
  """A model that gives a number to each text; see `score`.

  Attributes:
    prompts: P, prompts computed at once.
    prompt_buckets: lengths that prompts are padded to, ascending.
    max_new_tokens: maximum length of a text; all texts are padded to it.
  """

  def __init__(
    self,
    model: Transformer,
    params: dict,
    *,
    prompts: int,
    prompt_buckets: Sequence[int],
    max_new_tokens: int,
  ):
    """A model without a scalar head scores by mean log-probabilities.

    Raises:
      UserError: the mesh does not divide the number of prompts.
    """
    check_divisible(model, 'config.sampling.concurrent_prompts', prompts)
    self.prompts, self.max_new_tokens = prompts, max_new_tokens
    self.prompt_buckets = tuple(sorted(set(prompt_buckets)))
    self._ways = model.layout.num_shards('prompts')
    self._params = params
    self._score_batch = jax.jit(
      _score_function(model), out_shardings=model.layout.sharding(())
    )

  def rejection_reason(self, item: PromptWithTexts) -> str | None:
    """Returns why an item does not fit, or None if it fits."""
    prompt, texts = item
    longest = max(map(len, texts))
    if len(prompt) > self.prompt_buckets[-1]:
      return (
        f'the prompt has {len(prompt)} tokens, more than the longest of '
        f'config.sampling.prompt_buckets ({self.prompt_buckets[-1]})'
      )
    if longest > self.max_new_tokens:
      return (
        f'the longest response has {longest} tokens, more than '
        f'config.sampling.max_new_tokens ({self.max_new_tokens})'
      )
    return None

  def score(self, items: Sequence[PromptWithTexts]) -> list[np.ndarray]:
    """Returns float32 [number of texts] for each item."""
    if not items:
      return []
    parts = _split(items)
    rows = []
    for first in range(0, len(parts), self.prompts):
      chunk = parts[first : first + self.prompts]
      output = self._score_batch(self._params, self._pad(chunk))
      output = np.asarray(output.addressable_data(0))  # [P, R]
      rows += [
        row[: len(texts)]
        for row, (_, texts) in zip(output, chunk, strict=False)
      ]
    ends = np.cumsum([len(texts) for _, texts in items])
    return np.split(np.concatenate(rows), ends[:-1])

  def _pad(self, items: Sequence[PromptWithTexts]) -> Batch:
    """Returns the batch of up to P items; dummies fill it up."""
    longest = max(len(prompt) for prompt, _ in items)
    s = next(x for x in self.prompt_buckets if longest <= x)
    # Powers of two: few shapes, and few dummies for few items. Every shard of
    # the mesh gets the same number of prompts.
    p = self._ways * _next_power_of_two(-(-len(items) // self._ways))
    p = min(p, self.prompts)
    r = _next_power_of_two(max(len(texts) for _, texts in items))
    return pad_items(items, (p, s, r, self.max_new_tokens))


def _split(items: Sequence[PromptWithTexts]) -> list[PromptWithTexts]:
  """Returns the items in parts of at most _MAX_TEXTS texts, in order."""
  return [
    (prompt, texts[first : first + _MAX_TEXTS])
    for prompt, texts in items
    for first in range(0, len(texts), _MAX_TEXTS)
  ]


def _next_power_of_two(n: int) -> int:
  """Returns the smallest power of two that is at least n."""
  return 1 << (n - 1).bit_length()


def _score_function(model: Transformer) -> Callable[[dict, Batch], jax.Array]:
  """Returns a function (params, batch) -> float32 [P, R]."""
  if model.scalar:
    return lambda params, batch: logprobs.values(model, params, batch)

  def mean_logp(params, batch):
    logps, _ = logprobs.generation_logps(model, params, batch)  # [P, R, T]
    return jnp.sum(logps, axis=-1) / jnp.maximum(batch.generation_lengths, 1)

  return mean_logp
