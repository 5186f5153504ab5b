"""Judges that give a number without writing: scalar reward models, meta RM."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import tqdm

from grm_jax.errors import UserError
from grm_jax.judgement import prompt_builder, template
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.judgement import ExampleError, JudgedExample, Judgement
from grm_jax.sampling.scalar_scorer import Item, ScalarScorer
from grm_jax.tokenizer import chat_format
from grm_jax.tokenizer.tokenizer import Tokenizer

META = 'meta'  # the template of meta RMs that say nothing of theirs


def query_and_responses(example: JudgingExample, tokenizer: Tokenizer) -> Item:
  """The query as a prompt, and each response as the model's turn after it.

  Raises:
    UserError: the query's turns make no conversation.
  """
  turns = [{'role': t.role, 'content': t.text} for t in example.query]
  ends = [tokenizer.end_of_turn]
  query = chat_format.render(tokenizer, turns)
  return query, [tokenizer.encode(x) + ends for x in example.responses]


def meta_prompt(
  example: JudgingExample,
  order: Sequence[int],
  tokenizer: Tokenizer,
  limit: int,
  name: str,
) -> tuple[int, ...]:
  """What the meta RM reads before judgements of the example in this order.

  Args:
    example: what was judged.
    order: in which its responses were shown.
    tokenizer: the meta RM's.
    limit: most tokens.
    name: of the template.

  Raises:
    UserError: it does not fit in `limit` tokens, however shortened.
  """
  render = functools.partial(chat_format.render_user, tokenizer)
  asked = template.load(name)
  return prompt_builder.tokenize(asked, example, order, render, limit=limit)


def meta_text(text: str, tokenizer: Tokenizer, limit: int) -> list[int]:
  """A judgement as the meta RM reads it: up to `limit` tokens, its end one."""
  return [*tokenizer.encode(text)[: limit - 1], tokenizer.end_of_turn]


def in_batches(
  judge_some: Callable[[list[Any]], Iterator[JudgedExample | ExampleError]],
  examples: Iterable[JudgingExample | ExampleError],
  count: int,
  progress: str,
  total: int,
) -> Iterator[JudgedExample | ExampleError]:
  """What `judge_some` says of so many examples at a time, under a bar."""
  bar = tqdm.tqdm(
    desc=progress,
    total=total or None,
    unit='query',
    disable=None if progress else True,
  )
  examples = iter(examples)
  with bar:
    while some := list(itertools.islice(examples, count)):
      yield from judge_some(some)
      bar.update(len(some))


class ScalarJudge:
  """Values of responses as their scores; see generative.Judge.

  The query is the prompt and its responses follow it, so that a query is
  computed once however many responses it has (Bradley-Terry reward models).
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
    items = [self._item(example) for example in some]
    good = [item for item in items if not isinstance(item, ExampleError)]
    values = iter(self.values.of(good))
    for example, item in zip(some, items, strict=True):
      if isinstance(item, ExampleError):
        yield item
        continue
      scores = tuple(float(x) for x in next(values))
      order = tuple(range(len(scores)))
      yield JudgedExample(example, (Judgement(order, '', 0, '', scores),))

  def _item(
    self, example: JudgingExample | ExampleError
  ) -> Item | ExampleError:
    """Its tokens, or why it cannot be judged."""
    if isinstance(example, ExampleError):
      return example
    try:
      item = query_and_responses(example, self.tokenizer)
    except UserError as error:
      return ExampleError(example.id, str(error))
    reason = self.values.fault(item)
    return ExampleError(example.id, reason) if reason else item


class MetaJudge:
  """The meta RM's opinion of judgements: see arXiv 2504.02495, section 4.

  Its prompt is the conversation and the responses as the GRM saw them, and
  the judgements of that order are the texts that follow.
  """

  def __init__(
    self, values: ScalarScorer, tokenizer: Tokenizer, template_name: str = META
  ):
    self.values, self.tokenizer = values, tokenizer
    self.template_name = template_name

  def rate(self, judged: JudgedExample) -> JudgedExample | ExampleError:
    """The example with `meta` in every sample, or why that cannot be.

    A judgement that is longer than `values.size` is read up to there.
    """
    try:
      return self._rate(judged)
    except UserError as error:
      return ExampleError(judged.example.id, f'meta RM: {error}')

  def _rate(self, judged):
    by_order = {}
    for place, sample in enumerate(judged.samples):
      by_order.setdefault(sample.order, []).append(place)
    items = [
      self._item(judged, order, places) for order, places in by_order.items()
    ]
    samples = list(judged.samples)
    rated = zip(by_order.values(), self.values.of(items), strict=True)
    for places, values in rated:
      for place, value in zip(places, values, strict=True):
        samples[place] = dataclasses.replace(samples[place], meta=float(value))
    return dataclasses.replace(judged, samples=tuple(samples))

  def _item(self, judged, order, places) -> Item:
    limit, size = self.values.buckets[-1], self.values.size
    texts = [judged.samples[place].text for place in places]
    return (
      meta_prompt(
        judged.example, order, self.tokenizer, limit, self.template_name
      ),
      [meta_text(text, self.tokenizer, size) for text in texts],
    )
