"""Bradley-Terry reward models, and helpers of all judges with scalar heads."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import tqdm

from grm_jax.errors import UserError
from grm_jax.judgement import prompt_builder
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.judgement import ExampleError, JudgedExample, Judgement
from grm_jax.judgement.prompt_builder import PromptTokens
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
  return query_tokens(tokenizer, example), [
    chat_format.model_turn(tokenizer, x) for x in example.responses
  ]


def query_tokens(
  tokenizer: Tokenizer, example: JudgingExample
) -> Sequence[int]:
  """Returns the query as the prompt."""
  turns = [{'role': t.role, 'content': t.text} for t in example.query]
  return chat_format.render(tokenizer, turns)


def fit_query(
  example: JudgingExample, tokenizer: Tokenizer, limit: int, too_long: str
) -> PromptTokens | None:
  """Returns the query as the prompt, shortened if necessary.

  None if it does not fit in `limit` tokens.
  """
  return prompt_builder.fit(
    dataclasses.replace(example, responses=('-',), best=None, rewards=None),
    functools.partial(query_tokens, tokenizer),
    limit,
    ('query',) if too_long == 'shorten' else (),
  )


@dataclasses.dataclass(frozen=True)
class ScorerInput:
  """Input of a scalar model for an example.

  Attributes:
    example_id: id of the example.
    items: prompts, each with the texts that follow it.
    shortened: whether they lack text of the example.
  """

  example_id: str
  items: Sequence[PromptWithTexts]
  shortened: bool = False


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


def score_inputs(
  scorer: ScalarScorer, inputs: Sequence[ScorerInput | ExampleError]
) -> list[list[np.ndarray] | ExampleError]:
  """Scores the items of all examples together.

  Args:
    scorer: the scalar model.
    inputs: input of each example, or why it has none.

  Returns:
    For each example, one array of scores per item, or its error. A score that
    is not finite is an error.
  """
  scores = iter(
    scorer.score(
      [item for x in inputs if isinstance(x, ScorerInput) for item in x.items]
    )
  )
  results: list[list[np.ndarray] | ExampleError] = []
  for scorer_input in inputs:
    if isinstance(scorer_input, ExampleError):
      results.append(scorer_input)
      continue
    values = [next(scores) for _ in scorer_input.items]
    if all(np.isfinite(x).all() for x in values):
      results.append(values)
    else:
      reason = 'the model computed a score that is not finite'
      results.append(ExampleError(scorer_input.example_id, reason))
  return results


def single_judgement(
  example: JudgingExample, scores: Sequence[float], shortened: bool
) -> JudgedExample:
  """Returns an example with one judgement that has scores but no text."""
  judgement = Judgement(
    order=tuple(range(len(scores))),
    text='',
    num_tokens=0,
    finish='',
    scores=tuple(map(float, scores)),
    shortened=shortened,
  )
  return JudgedExample(example, (judgement,))


class ScalarJudge:
  """Scores responses by a scalar head; see generative.Judge.

  The query is the prompt and its responses follow it, so a query is computed
  once for any number of responses (Bradley-Terry reward models).
  """

  def __init__(
    self,
    scorer: ScalarScorer,
    tokenizer: Tokenizer,
    too_long: str = 'shorten',
    full_template: bool = False,
  ):
    """Shortens or refuses long examples, see judgement/prompt_builder.py.

    Args:
      scorer: the scalar model.
      tokenizer: its tokenizer.
      too_long: 'shorten' or 'refuse'.
      full_template: see trained_judge.TrainedJudge.
    """
    self.scorer, self.tokenizer, self.too_long = scorer, tokenizer, too_long
    self.full_template = full_template

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
    inputs = [self._input(x) for x in examples]
    scores = score_inputs(self.scorer, inputs)
    for example, values, x in zip(examples, scores, inputs, strict=True):
      if isinstance(values, ExampleError):
        yield values
      else:
        yield single_judgement(example, values[0], x.shortened)

  def _input(
    self, example: JudgingExample | ExampleError
  ) -> ScorerInput | ExampleError:
    """Returns the example's only item, or why it cannot be judged."""
    example = row_limits.limited(example)
    if isinstance(example, ExampleError):
      return example
    try:
      return self._fit(example)
    except Exception as error:
      return faults.example_error(example.id, error)

  def _fit(self, example: JudgingExample) -> ScorerInput:
    """Returns the example's item, shortened if necessary."""
    query = fit_query(
      example, self.tokenizer, self.scorer.prompt_buckets[-1], self.too_long
    )
    texts = [
      prompt_builder.fit_text(
        response,
        lambda x: chat_format.model_turn(self.tokenizer, x, self.full_template),
        self.scorer.max_new_tokens,
        self.too_long,
      )
      for response in example.responses
    ]
    fitted = [x for x in (query, *texts) if x is not None]
    if len(fitted) <= len(texts):
      item = query_and_responses(example, self.tokenizer)
      raise UserError(self.scorer.rejection_reason(item))
    prompt, *tokens = (x.tokens for x in fitted)
    return ScorerInput(
      example.id, [(prompt, tokens)], any(x.shortened for x in fitted)
    )
