"""Semi-scalar judges: a critique of each response, then a value for it.

The model writes about every response separately (CLoud, arXiv 2408.11791). A
value model reads the query, the response and the critique. Without a value
model, a scalar head of the same model reads the prompt and the critique. k
critiques give k values, which the votes combine.

  example -> one example per response -> critiques -> values -> example
"""

import collections
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence

from grm_jax.errors import UserError
from grm_jax.judgement import example as examples_lib
from grm_jax.judgement import prompt_builder, template
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.judgement import ExampleError, JudgedExample, Judgement
from grm_jax.judgement.prompt_builder import PromptTokens
from grm_jax.judges import faults, row_limits
from grm_jax.judges.baselines.scalar_rm import (
  ScorerInput,
  fit_query,
  score_inputs,
)
from grm_jax.judges.generative import Judge
from grm_jax.sampling.padding import PromptWithTexts
from grm_jax.sampling.scalar_scorer import ScalarScorer
from grm_jax.tokenizer import chat_format
from grm_jax.tokenizer.tokenizer import Tokenizer


def critique_text(
  response: str,
  critique: str,
  tokenizer: Tokenizer,
  limit: int,
  too_long: str = 'shorten',
) -> PromptTokens:
  """Returns a response and its critique as two turns that follow the query.

  Args:
    response: the response.
    critique: cut to half of `limit`.
    tokenizer: tokenizer of the value model.
    limit: maximum number of tokens.
    too_long: 'shorten' or 'refuse' a response that does not fit in the rest.

  Raises:
    UserError: it does not fit.
  """
  critique_tokens = chat_format.model_turn(
    tokenizer, critique, limit=limit // 2
  )
  text = prompt_builder.fit_text(
    response,
    lambda x: [*chat_format.model_turn(tokenizer, x), *critique_tokens],
    limit,
    too_long,
  )
  if text is None:
    raise UserError(
      f'a response of {len(response)} characters and its critique are longer '
      f'than the {limit} tokens that the value model reads'
    )
  return text


# An example and the critiques of each of its responses.
_Critiques = tuple[JudgingExample, list[JudgedExample | ExampleError]]


class SemiScalarJudge:
  """Scores responses by values of their critiques; see generative.Judge.

  Attributes:
    inner: writes critiques of single responses, by a template like `critic`.
      The scores in its judgements are ignored.
    scorer: the value model, or the same model with a scalar head.
    value_tokenizer: tokenizer of the value model; None without one.
  """

  def __init__(
    self,
    judge: Judge,
    scorer: ScalarScorer,
    value_tokenizer: Tokenizer | None = None,
  ):
    """Without a value model, the judge and the scorer share a tokenizer.

    Raises:
      UserError: the template uses principles, which would begin the critiques.
    """
    name = judge.config.template
    self.inner, self.scorer = judge, scorer
    self.value_tokenizer = value_tokenizer
    self._template = template.load(name)
    if 'principles' in self._template.used_variables:
      raise UserError(
        f'config.prompt.template={name} uses principles, which '
        'config.judge=semi_scalar does not support; choose a template without '
        'principles'
      )
    self._chat = functools.partial(chat_format.render_user, judge.tokenizer)

  def judge(
    self,
    examples: Iterable[JudgingExample | ExampleError],
    k: int,
    *,
    progress: str = '',
    total: int = 0,
  ) -> Iterator[JudgedExample | ExampleError]:
    """Yields the judgements of a stream of examples, in its order.

    Args:
      examples: read as the engine gets free; an ExampleError is passed on.
      k: critiques of each response; 0 for one greedy critique of each.
      progress: name of a progress bar over critiques, '' for none.
      total: ignored, because the number of responses is unknown.
    """
    del total
    critiques = self._critiques(examples, k, progress)
    while chunk := list(itertools.islice(critiques, self.scorer.prompts)):
      yield from self._score(chunk)

  def _critiques(
    self, examples, k, progress
  ) -> Iterator[_Critiques | ExampleError]:
    """Yields the critiques of each example, and the errors in the stream."""
    started: collections.deque[JudgingExample | ExampleError] = (
      collections.deque()
    )
    items = self.inner.judge(_singles(examples, started), k, progress=progress)
    # The inner judge keeps the order, so the next len(responses) items belong
    # to the oldest example that was started.
    for first in items:
      example = started.popleft()
      if isinstance(example, ExampleError):
        yield example
        continue
      rest = itertools.islice(items, len(example.responses) - 1)
      yield example, [first, *rest]

  def _score(self, chunk: Sequence[_Critiques | ExampleError]):
    inputs = [
      x if isinstance(x, ExampleError) else self._input(*x) for x in chunk
    ]
    scores = score_inputs(self.scorer, inputs)
    for critiques, values in zip(chunk, scores, strict=True):
      if isinstance(critiques, ExampleError):
        yield critiques
      elif isinstance(values, ExampleError):
        yield values
      else:
        example, parts = critiques
        judged = [x for x in parts if isinstance(x, JudgedExample)]  # all
        yield _merge(example, judged, values)

  def _input(
    self, example: JudgingExample, parts
  ) -> ScorerInput | ExampleError:
    """Returns the input of the scalar head, or why there is none."""
    items = []
    for number, part in enumerate(parts, 1):
      try:
        item = self._item(part)
      except Exception as error:
        item = faults.example_error(example.id, error).reason
      if isinstance(item, str):
        return ExampleError(example.id, f'response {number}: {item}')
      items.append(item)
    return ScorerInput(example.id, items)

  def _item(self, part: JudgedExample | ExampleError) -> PromptWithTexts | str:
    """Returns the prompt for a response, followed by its critiques.

    Without a value model, the prompt is that of the critiques, and the scalar
    head reads the first `max_new_tokens` tokens of a critique. Returns the
    reason if it cannot read them.
    """
    if isinstance(part, ExampleError):
      return part.reason
    if self.value_tokenizer:
      return _value_item(
        part, self.value_tokenizer, self.scorer, self.inner.config.too_long
      )
    prompt = prompt_builder.tokenize(
      self._template,
      part.example,
      (0,),
      self._chat,
      limit=self.inner.engine.limits.max_prompt_tokens,
      too_long=self.inner.config.too_long,
    )
    tokenizer, limit = self.inner.tokenizer, self.scorer.max_new_tokens
    texts = [
      chat_format.model_turn(tokenizer, x.text, limit=limit)
      for x in part.samples
    ]
    item = prompt.tokens, texts
    return self.scorer.rejection_reason(item) or item


def _value_item(
  part: JudgedExample,
  tokenizer: Tokenizer,
  scorer: ScalarScorer,
  too_long: str,
) -> PromptWithTexts:
  """Returns the query, followed by the response with each critique."""
  limit = scorer.prompt_buckets[-1]
  query = fit_query(part.example, tokenizer, limit, too_long)
  if query is None:
    raise UserError(f'the query is longer than {limit} tokens')
  (response,) = part.example.responses
  limit = scorer.max_new_tokens
  texts = [
    critique_text(response, x.text, tokenizer, limit, too_long)
    for x in part.samples
  ]
  return query.tokens, [x.tokens for x in texts]


def _singles(examples, started) -> Iterator[JudgingExample | ExampleError]:
  """Yields one example per response; appends the originals to `started`."""
  for example in map(row_limits.limited, examples):
    started.append(example)
    if isinstance(example, ExampleError):
      yield example
      continue
    yield from examples_lib.single_responses(example)


def _merge(
  example: JudgingExample, parts: Sequence[JudgedExample], values
) -> JudgedExample:
  """Returns the example; sample j has the j-th critique of each response."""
  critiques = zip(*(part.samples for part in parts), strict=True)
  scores = zip(*values, strict=True)
  samples = itertools.starmap(_sample, zip(critiques, scores, strict=True))
  return JudgedExample(example, tuple(samples))


def _sample(critiques: Sequence[Judgement], scores) -> Judgement:
  truncated = any(critique.truncated for critique in critiques)
  return Judgement(
    order=tuple(range(len(critiques))),
    text='\n\n'.join(
      f'Critique of Response {number}:\n{critique.text}'
      for number, critique in enumerate(critiques, 1)
    ),
    num_tokens=sum(critique.num_tokens for critique in critiques),
    finish='length' if truncated else 'stop',
    scores=tuple(map(float, scores)),
    shortened=any(critique.shortened for critique in critiques),
  )
