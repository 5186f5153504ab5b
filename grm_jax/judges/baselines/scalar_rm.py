"""Judges with a scalar head: Bradley-Terry reward models and the meta RM."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import tqdm

from grm_jax.errors import UserError
from grm_jax.judgement import prompt_builder, template
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.judgement import ExampleError, JudgedExample, Judgement
from grm_jax.sampling.padding import PromptWithTexts
from grm_jax.sampling.scalar_scorer import ScalarScorer
from grm_jax.tokenizer import chat_format
from grm_jax.tokenizer.tokenizer import Tokenizer

META = 'meta'  # the template of meta RMs whose checkpoints name none


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


def meta_prompt(
  example: JudgingExample,
  order: Sequence[int],
  tokenizer: Tokenizer,
  limit: int,
  template_name: str,
) -> tuple[int, ...]:
  """Returns the meta RM's prompt for judgements with one order.

  Args:
    example: the judged example.
    order: order of its responses in the judge's prompt.
    tokenizer: tokenizer of the meta RM.
    limit: maximum number of tokens.
    template_name: template of the prompt.

  Raises:
    UserError: the prompt does not fit, even shortened.
  """
  chat = functools.partial(chat_format.render_user, tokenizer)
  meta_template = template.load(template_name)
  return prompt_builder.tokenize(
    meta_template, example, order, chat, limit=limit
  )


def meta_text(text: str, tokenizer: Tokenizer, limit: int) -> list[int]:
  """Returns a judgement for the meta RM, cut to `limit` tokens with its end."""
  return [*tokenizer.encode(text)[: limit - 1], tokenizer.end_of_turn_id]


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
  groups: Sequence[list[PromptWithTexts] | ExampleError],
) -> list[list[np.ndarray] | ExampleError]:
  """Scores the items of all groups together.

  Args:
    scorer: the scalar model.
    groups: items of each example, or why it has none.

  Returns:
    For each group, one array of scores per item, or its error.
  """
  items = [
    item
    for group in groups
    if not isinstance(group, ExampleError)
    for item in group
  ]
  scores = iter(scorer.score(items))
  return [
    group if isinstance(group, ExampleError) else [next(scores) for _ in group]
    for group in groups
  ]


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
    scores = score_groups(self.scorer, [self._items(x) for x in examples])
    for example, values in zip(examples, scores, strict=True):
      if isinstance(values, ExampleError):
        yield values
      else:
        yield single_judgement(example, values[0])

  def _items(
    self, example: JudgingExample | ExampleError
  ) -> list[PromptWithTexts] | ExampleError:
    """Returns the example's only item, or why it cannot be judged."""
    if isinstance(example, ExampleError):
      return example
    try:
      item = query_and_responses(example, self.tokenizer)
    except UserError as error:
      return ExampleError(example.id, str(error))
    reason = self.scorer.rejection_reason(item)
    return ExampleError(example.id, reason) if reason else [item]


class MetaJudge:
  """Scores judgements by the meta RM: arXiv 2504.02495, section 4.

  Its prompt is the conversation and the responses in the order of the judge's
  prompt. The judgements with that order are the texts that follow.
  """

  def __init__(
    self,
    scorer: ScalarScorer,
    tokenizer: Tokenizer,
    template_name: str = META,
  ):
    self.scorer, self.tokenizer = scorer, tokenizer
    self.template_name = template_name

  def rate(self, judged: JudgedExample) -> JudgedExample | ExampleError:
    """Returns the example with `meta` in every sample, or why it cannot.

    The meta RM reads the first `max_new_tokens` tokens of a longer judgement.
    """
    try:
      return self._rate(judged)
    except UserError as error:
      return ExampleError(judged.example.id, f'meta RM: {error}')

  def _rate(self, judged: JudgedExample) -> JudgedExample:
    by_order: dict[tuple[int, ...], list[int]] = {}
    for index, sample in enumerate(judged.samples):
      by_order.setdefault(sample.order, []).append(index)
    items = [
      self._item(judged, order, indices) for order, indices in by_order.items()
    ]
    samples = list(judged.samples)
    scores = self.scorer.score(items)
    for indices, values in zip(by_order.values(), scores, strict=True):
      for index, value in zip(indices, values, strict=True):
        samples[index] = dataclasses.replace(samples[index], meta=float(value))
    return dataclasses.replace(judged, samples=tuple(samples))

  def _item(self, judged, order, indices) -> PromptWithTexts:
    """Returns the prompt of an order and the judgements that follow it."""
    prompt_limit = self.scorer.prompt_buckets[-1]
    text_limit = self.scorer.max_new_tokens
    prompt = meta_prompt(
      judged.example, order, self.tokenizer, prompt_limit, self.template_name
    )
    texts = [judged.samples[i].text for i in indices]
    return prompt, [meta_text(x, self.tokenizer, text_limit) for x in texts]
