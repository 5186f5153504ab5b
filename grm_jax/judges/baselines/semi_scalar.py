"""Semi-scalar judges: a critique of each response, then a number for it.

The model writes about every response on its own, and its scalar head reads
the prompt and what was written (CLoud, arXiv 2408.11791). k critiques give k
numbers, which the votes add up.

  example -> one example a response -> critiques -> values -> example
"""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence

from grm_jax.errors import UserError
from grm_jax.judgement import prompt_builder, template
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.judgement import ExampleError, JudgedExample, Judgement
from grm_jax.judges.generative import Judge
from grm_jax.sampling.scalar_scorer import Item, ScalarScorer
from grm_jax.tokenizer import chat_format

# Whose critiques, one for each response; what could not be written about.
_Critiques = tuple[JudgingExample, Sequence[JudgedExample | ExampleError]]


class SemiScalarJudge:
  """Values of critiques as scores; see generative.Judge.

  Attributes:
    inner: writes critiques of single responses, by a template like `critic`.
      What it reads in them is not looked at.
    values: a model with a scalar head.
  """

  def __init__(self, judge: Judge, values: ScalarScorer):
    """The scalar model reads what `judge` writes, by the same tokenizer.

    Raises:
      UserError: the judge writes by principles, which its texts then begin
        with.
    """
    name = judge.settings.template
    self.inner, self.values = judge, values
    self._template = template.load(name)
    if 'principles' in self._template.used:
      raise UserError(
        f'config.prompt.template={name} judges by principles, which a '
        'semi-scalar judge cannot; give a template without them'
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
    """Judgements of a stream of examples, in its order.

    Args:
      examples: read as the engine gets free; faults are passed through.
      k: critiques of each response; 0 is one greedy critique of each.
      progress: name of a progress bar over critiques.
      total: not used: how many responses there are is not known before.
    """
    del total
    written = self._written(examples, k, progress)
    while some := list(itertools.islice(written, self.values.prompts)):
      yield from self._rate(some)

  def _written(
    self, examples, k, progress
  ) -> Iterator[_Critiques | ExampleError]:
    """The critiques of each example, and the faults among the examples."""
    begun = collections.deque()
    items = self.inner.judge(_singles(examples, begun), k, progress=progress)
    for first in items:
      example = begun.popleft()
      if isinstance(example, ExampleError):
        yield example
        continue
      others = itertools.islice(items, len(example.responses) - 1)
      yield example, (first, *others)

  def _rate(self, some: Sequence[_Critiques | ExampleError]):
    asked = [
      x if isinstance(x, ExampleError) else self._items(*x) for x in some
    ]
    good = [
      item for x in asked if not isinstance(x, ExampleError) for item in x
    ]
    values = iter(self.values.of(good))
    for one, items in zip(some, asked, strict=True):
      if isinstance(items, ExampleError):
        yield items
        continue
      example, parts = one
      yield _together(example, parts, [next(values) for _ in parts])

  def _items(self, example, parts) -> list[Item] | ExampleError:
    """What the scalar head reads, or why it cannot."""
    items = []
    for number, part in enumerate(parts, 1):
      bad = isinstance(part, ExampleError)
      item = None if bad else self._item(part)
      reason = part.reason if bad else self.values.fault(item)
      if reason:
        return ExampleError(example.id, f'response {number}: {reason}')
      items.append(item)
    return items

  def _item(self, part: JudgedExample) -> Item:
    """A response's prompt, as it was written to, and its critiques.

    A critique that is longer than `values.size` is read up to there.
    """
    tokens = prompt_builder.tokenize(
      self._template,
      part.example,
      (0,),
      self._chat,
      limit=self.inner.engine.limits.prompt,
      too_long=self.inner.settings.too_long,
    )
    return tokens, [self._text(sample.text) for sample in part.samples]

  def _text(self, text):
    words = self.inner.tokenizer
    return [*words.encode(text)[: self.values.size - 1], words.end_of_turn]


def _singles(examples, begun) -> Iterator[JudgingExample | ExampleError]:
  """An example of each response; whole ones are put into `begun` as well."""
  for example in examples:
    begun.append(example)
    if isinstance(example, ExampleError):
      yield example
      continue
    for i, response in enumerate(example.responses):
      yield dataclasses.replace(
        example,
        id=f'{example.id}/{i}',
        responses=(response,),
        best=None,
        rewards=None,
      )


def _together(example, parts, values) -> JudgedExample:
  """The example with sample j made of the j-th critique of each response."""
  samples = zip(*(part.samples for part in parts), strict=True)
  scores = zip(*values, strict=True)
  pairs = zip(samples, scores, strict=True)
  return JudgedExample(example, tuple(_sample(*pair) for pair in pairs))


def _sample(critiques: Sequence[Judgement], scores) -> Judgement:
  cut = any(critique.finish == 'length' for critique in critiques)
  return Judgement(
    order=tuple(range(len(critiques))),
    text='\n\n'.join(
      f'Critique of Response {number}:\n{critique.text}'
      for number, critique in enumerate(critiques, 1)
    ),
    num_tokens=sum(critique.num_tokens for critique in critiques),
    finish='length' if cut else 'stop',
    scores=tuple(map(float, scores)),
  )
