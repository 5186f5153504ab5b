"""Bradley-Terry reward models, and helpers of all judges with scalar heads."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import tqdm

from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.judgement import ExampleError, JudgedExample, Judgement
from grm_jax.judges import faults, row_limits
from grm_jax.sampling.padding import PromptWithTexts
from grm_jax.sampling.scalar_scorer import ScalarScorer
from grm_jax.tokenizer import chat_format
from grm_jax.tokenizer.tokenizer import Tokenizer


def query_and_responses(
  example: JudgingExample, tokenizer: Tokenizer
) -> PromptWithTexts:
  """Returns the query as the prompt, and each response as a model turn.

  Raises:
    UserError: the turns of the query do not form a conversation.
  """
  turns = [{'role': t.role, 'content': t.text} for t in example.query]
  query = chat_format.render(tokenizer, turns)
  end = [tokenizer.end_of_turn_id]
  return query, [tokenizer.encode(x) + end for x in example.responses]


def in_batches(
  judge_batch: Callable[
    [list[JudgingExample | ExampleError]],
    Iterable[JudgedExample | ExampleError],
  ],
  examples: Iterable[JudgingExample | ExampleError],
  batch_size: int,
  progress: str,
  total: int,
) -> Iterator[JudgedExample | ExampleError]:
  """Yields the results of `judge_batch`, with a progress bar.

  Args:
    judge_batch: judges up to `batch_size` examples.
    examples: read as needed.
    batch_size: examples of one call.
    progress: name of the progress bar, '' for none.
    total: number of examples, 0 if unknown.
  """
  bar = tqdm.tqdm(
    desc=progress,
    total=total or None,
    unit='query',
    disable=None if progress else True,
  )
  examples = iter(examples)
  with bar:
    while batch := list(itertools.islice(examples, batch_size)):
      yield from judge_batch(batch)
      bar.update(len(batch))


def score_groups(
  scorer: ScalarScorer,
  ids: Iterable[str | int],
  groups: Sequence[list[PromptWithTexts] | ExampleError],
) -> list[list[np.ndarray] | ExampleError]:
  """Scores the items of all groups together.

  Args:
    scorer: the scalar model.
    ids: id of each example.
    groups: items of each example, or why it has none.

  Returns:
    For each group, one array of scores per item, or its error. A score that is
    not finite is an error.
  """
  items = [
    item
    for group in groups
    if not isinstance(group, ExampleError)
    for item in group
  ]
  scores = iter(scorer.score(items))
  results: list[list[np.ndarray] | ExampleError] = []
  for example_id, group in zip(ids, groups, strict=True):
    if isinstance(group, ExampleError):
      results.append(group)
      continue
    values = [next(scores) for _ in group]
    if all(np.isfinite(x).all() for x in values):
      results.append(values)
    else:
      reason = 'the model computed a score that is not finite'
      results.append(ExampleError(example_id, reason))
  return results


def single_judgement(
  example: JudgingExample, scores: Sequence[float]
) -> JudgedExample:
  """Returns an example with one judgement that has scores but no text."""
  order = tuple(range(len(scores)))
  judgement = Judgement(order, '', 0, '', tuple(map(float, scores)))
  return JudgedExample(example, (judgement,))


class ScalarJudge:
  """Scores responses by a scalar head; see generative.Judge.

  The query is the prompt and its responses follow it, so a query is computed
  once for any number of responses (Bradley-Terry reward models).
  """

  def __init__(self, scorer: ScalarScorer, tokenizer: Tokenizer):
    self.scorer, self.tokenizer = scorer, tokenizer

  def judge(
    self,
    examples: Iterable[JudgingExample | ExampleError],
    k: int = 1,
    *,
    progress: str = '',
    total: int = 0,
  ) -> Iterator[JudgedExample | ExampleError]:
    """Yields one judgement of each example, in order, whatever k is."""
    del k
    yield from in_batches(
      self._judge_batch, examples, self.scorer.prompts, progress, total
    )

  def _judge_batch(self, examples):
    ids = [x.id for x in examples]
    scores = score_groups(self.scorer, ids, [self._items(x) for x in examples])
    for example, values in zip(examples, scores, strict=True):
      if isinstance(values, ExampleError):
        yield values
      else:
        yield single_judgement(example, values[0])

  def _items(
    self, example: JudgingExample | ExampleError
  ) -> list[PromptWithTexts] | ExampleError:
    """Returns the example's only item, or why it cannot be judged."""
    example = row_limits.limited(example)
    if isinstance(example, ExampleError):
      return example
    try:
      item = query_and_responses(example, self.tokenizer)
    except Exception as error:
      return faults.example_error(example.id, error)
    reason = self.scorer.rejection_reason(item)
    return ExampleError(example.id, reason) if reason else [item]
