"""Pairwise scalar judges: is the first response better than the second?

In the way of PairRM (arXiv 2306.02561): the query and both responses are read
together. The query and the first response are the prompt and the second ones
follow it, so that n responses take n prompts and not n * (n - 1).
"""

import functools
from collections.abc import Iterable, Iterator

import numpy as np

from grm_jax.errors import UserError
from grm_jax.judgement import prompt_builder, template
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.judgement import ExampleError, JudgedExample, Judgement
from grm_jax.judges.baselines.scalar_rm import in_batches
from grm_jax.sampling.scalar_scorer import Item, ScalarScorer
from grm_jax.tokenizer import chat_format
from grm_jax.tokenizer.tokenizer import Tokenizer


def pair_prompt(
  example: JudgingExample, first: int, tokenizer: Tokenizer, limit: int
) -> tuple[int, ...]:
  """The query and the response `first`, as a prompt.

  Raises:
    UserError: it does not fit in `limit` tokens, however shortened.
  """
  render = functools.partial(chat_format.render_user, tokenizer)
  asked = template.load('pair')
  return prompt_builder.tokenize(asked, example, (first,), render, limit=limit)


def pair_text(response: str, tokenizer: Tokenizer) -> list[int]:
  """The second response, as it follows the prompt."""
  return [*tokenizer.encode(response), tokenizer.end_of_turn]


class PairJudge:
  """Scores are the mean chance to be better than another response.

  Each pair is read in both orders, so that a preference for a place evens out.
  The interface is that of scalar.ScalarJudge.
  """

  def __init__(self, values: ScalarScorer, tokenizer: Tokenizer):
    self.values, self.tokenizer = values, tokenizer

  def judge(
    self,
    examples: Iterable[JudgingExample | ExampleError],
    k: int = 1,
    *,
    progress: str = '',
    total: int = 0,
  ) -> Iterator[JudgedExample | ExampleError]:
    """One judgement of each example, in their order; k changes nothing."""
    del k
    yield from in_batches(
      self._judge_some, examples, self.values.prompts, progress, total
    )

  def _judge_some(self, some):
    made = [self._items(example) for example in some]
    good = [
      item for own in made if not isinstance(own, ExampleError) for item in own
    ]
    values = iter(self.values.of(good))
    for example, own in zip(some, made, strict=True):
      if isinstance(own, ExampleError):
        yield own
        continue
      scores = tuple(chances([next(values) for _ in own]))
      order = tuple(range(len(scores)))
      yield JudgedExample(example, (Judgement(order, '', 0, '', scores),))

  def _items(
    self, example: JudgingExample | ExampleError
  ) -> list[Item] | ExampleError:
    """A prompt for each response, with the others; or why there is none."""
    if isinstance(example, ExampleError):
      return example
    if len(example.responses) < 2:
      return ExampleError(
        example.id, 'one response has no other to be better than'
      )
    texts = [pair_text(x, self.tokenizer) for x in example.responses]
    items = []
    for i in range(len(texts)):
      try:
        asked = pair_prompt(example, i, self.tokenizer, self.values.buckets[-1])
      except UserError as error:
        return ExampleError(example.id, str(error))
      item = asked, texts[:i] + texts[i + 1 :]
      reason = self.values.fault(item)
      if reason:
        return ExampleError(example.id, reason)
      items.append(item)
    return items


def chances(values: list[np.ndarray]) -> list[float]:
  """Each response's mean chance to be better than another.

  Args:
    values: n of [n - 1]: values[i] are logits that response i is better than
      each of the others, which stand in their order without i.

  Returns:
    n numbers in 0..1 whose mean is 1/2.
  """
  n = len(values)
  won = np.full((n, n), np.nan)
  for i, own in enumerate(values):
    logits = np.asarray(own, np.float64)
    won[i, np.arange(n) != i] = 0.5 * (1 + np.tanh(0.5 * logits))
  # Read as the first and as the second of each pair.
  both = 0.5 * (won + (1 - won.T))
  return np.nanmean(both, axis=1).tolist()
