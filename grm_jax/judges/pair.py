"""Pairwise scalar judges: is the first response better than the second?

In the way of PairRM (arXiv 2306.02561): the query and both responses are read
together. The query and the first response are the prompt and the second ones
follow it, so that n responses take n prompts and not n * (n - 1).
"""

import functools
from collections.abc import Iterable, Iterator

import numpy as np

from grm_jax.errors import UserError
from grm_jax.judges.scalar import in_batches
from grm_jax.judging import prompt, template
from grm_jax.judging.example import JudgingExample
from grm_jax.judging.judgement import Fault, Judged, Judgement
from grm_jax.model import chat
from grm_jax.model.tokenizer import Tokenizer
from grm_jax.sampling.values import Item, Values


def pair_prompt(
  example: JudgingExample, first: int, tokenizer: Tokenizer, limit: int
) -> tuple[int, ...]:
  """The query and the response `first`, as a prompt.

  Raises:
    UserError: it does not fit in `limit` tokens, however shortened.
  """
  render = functools.partial(chat.render_user, tokenizer)
  asked = template.load('pair')
  return prompt.tokenize(asked, example, (first,), render, limit=limit)


def pair_text(response: str, tokenizer: Tokenizer) -> list[int]:
  """The second response, as it follows the prompt."""
  return [*tokenizer.encode(response), tokenizer.end_of_turn]


class PairJudge:
  """Scores are the mean chance to be better than another response.

  Each pair is read in both orders, so that a preference for a place evens out.
  The interface is that of scalar.ScalarJudge.
  """

  def __init__(self, values: Values, tokenizer: Tokenizer):
    self.values, self.tokenizer = values, tokenizer

  def judge(
    self,
    examples: Iterable[JudgingExample | Fault],
    k: int = 1,
    *,
    progress: str = '',
    total: int = 0,
  ) -> Iterator[Judged | Fault]:
    """One judgement of each example, in their order; k changes nothing."""
    del k
    yield from in_batches(
      self._judge_some, examples, self.values.prompts, progress, total
    )

  def _judge_some(self, some):
    made = [self._items(example) for example in some]
    good = [item for own in made if not isinstance(own, Fault) for item in own]
    values = iter(self.values.of(good))
    for example, own in zip(some, made, strict=True):
      if isinstance(own, Fault):
        yield own
        continue
      scores = tuple(chances([next(values) for _ in own]))
      order = tuple(range(len(scores)))
      yield Judged(example, (Judgement(order, '', 0, '', scores),))

  def _items(self, example: JudgingExample | Fault) -> list[Item] | Fault:
    """A prompt for each response, with the others; or why there is none."""
    if isinstance(example, Fault):
      return example
    if len(example.responses) < 2:
      return Fault(example.id, 'one response has no other to be better than')
    texts = [pair_text(x, self.tokenizer) for x in example.responses]
    items = []
    for i in range(len(texts)):
      try:
        asked = pair_prompt(example, i, self.tokenizer, self.values.buckets[-1])
      except UserError as error:
        return Fault(example.id, str(error))
      item = asked, texts[:i] + texts[i + 1 :]
      reason = self.values.fault(item)
      if reason:
        return Fault(example.id, reason)
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
