"""Texts to fine-tune on: `config.data.texts` and `config.data.general`.

  practice, practice:COUNT   judgements by the practice teacher
  basics, basics:COUNT       short texts of the steps that these consist of
  texts:PATH                 rows {query | messages, generation |
                             generations[, id]}: general instruction data
  judged:PATH                rows {query | messages, responses, generation |
                             generations[, id, order]}: written judgements,
                             whose prompt is rendered here
  verdicts:SOURCE            known verdicts of a source of judging examples
                             (sources.py), see verdicts.py: there is no teacher
  prometheus:PATH            pairs made of Prometheus' feedback on single
                             responses, see prometheus.py
  no_principles:TEXTS        any of the above, its judgements from the heading
                             Analysis on
  seqio:[MODULE/]NAME:SPLIT  inputs and targets of a seqio Task or Mixture,
                             see seqio_source.py

A PATH is a .jsonl, .json or .parquet file, local or gs://, or tfds:NAME:SPLIT.

A text is a prompt and one or more generations of it. It becomes a Record, as
token ids, in the very form in which the model is asked.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

from grm_jax.data import dataset_files, example_sources, label_only_judgements
from grm_jax.data.datasets import prometheus
from grm_jax.data.tokenized_example import TokenizedExample, tokens_of
from grm_jax.errors import UserError
from grm_jax.judgement import example as examples_lib
from grm_jax.judgement.example import JudgingExample, Turn
from grm_jax.judgement.judgement import ExampleError
from grm_jax.judgement.prompt_format import PromptFormat
from grm_jax.tokenizer import chat_format
from grm_jax.tokenizer.tokenizer import Tokenizer

PRACTICE, BASICS = 'practice', 'basics'
_BASICS = 20_000  # that many without a COUNT
VERDICTS, NO_PRINCIPLES = 'verdicts', 'no_principles'
PROMETHEUS = 'prometheus'
_ANALYSIS = 'Analysis:'


@dataclasses.dataclass(frozen=True)
class SFTExample:
  """A prompt and generations of it, before tokenizing.

  Attributes:
    id: unique within its source.
    source: the part of a mixture that it belongs to.
    turns: the prompt as a conversation, or
    example: what is judged, rendered with the responses in `order`.
    order: order[place] is the response that is shown there.
    generations: at least one.
  """

  id: str
  source: str
  generations: tuple[str, ...]
  turns: tuple[Turn, ...] = ()
  example: JudgingExample | None = None
  order: tuple[int, ...] = ()


def read(
  spec: str, split: str, source: str, mistakes: float = 0.0, seed: int = 0
) -> Iterator[SFTExample | ExampleError]:
  """Texts of a source, one by one, and a fault for each row that is bad.

  Args:
    spec: see above.
    split: 'train', 'validation' or 'held_out', of practice and verdicts; a
      file is whole in each.
    source: name of the part of a mixture.
    mistakes, seed: of the practice teacher; the seed also of the orders of
      verdicts and of pairs.

  Raises:
    UserError: there is no such source; a file that cannot be read.
  """
  prefix, _, rest = spec.partition(':')
  if prefix == PRACTICE:
    return _practice(spec, split, source, mistakes, seed)
  if prefix == VERDICTS and rest:
    return _verdicts(rest, split, source, seed)
  if prefix == PROMETHEUS and rest:
    return _prometheus(rest, source, seed)
  if prefix == NO_PRINCIPLES and rest:
    return map(_from_analysis, read(rest, split, source, mistakes, seed))
  if prefix == BASICS:
    return _basics(spec, split, source, seed)
  makers = {'texts': _plain, 'judged': _judged}
  if prefix not in makers or not rest:
    raise UserError(
      f'{spec!r} is no source of texts; config.data.texts and '
      'config.data.general are practice:COUNT, basics:COUNT, texts:PATH, '
      'judged:PATH, verdicts:SOURCE, prometheus:PATH or seqio:NAME:SPLIT'
    )
  return _of_file(rest, source, makers[prefix])


def _practice(spec, split, source, mistakes, seed):
  # On demand: it takes seconds, and few runs need it.
  from grm_jax.data.synthetic import teacher

  for item in example_sources.read(spec, split):
    order = label_only_judgements.order_of(item, seed)
    text = teacher.write(item, mistakes=mistakes, seed=seed, order=order)
    yield SFTExample(item.id, source, (text,), example=item, order=order)


def _verdicts(spec, split, source, seed):
  for item in example_sources.read(spec, split):
    if isinstance(item, ExampleError):
      yield item
      continue
    order = label_only_judgements.order_of(item, seed)
    try:
      text = label_only_judgements.write(item, order)
    except UserError as error:
      yield ExampleError(item.id, f'{spec}: {error}')
      continue
    yield SFTExample(item.id, source, (text,), example=item, order=order)


def _prometheus(path, source, seed):
  for item in prometheus.judgements(path, seed):
    if isinstance(item, ExampleError):
      yield item
      continue
    example, order, text = item
    yield SFTExample(example.id, source, (text,), example=example, order=order)


def _from_analysis(
  item: SFTExample | ExampleError,
) -> SFTExample | ExampleError:
  """A judgement without its principles; another text as it is."""
  if isinstance(item, ExampleError) or item.example is None:
    return item
  cut = (x[max(0, x.find(_ANALYSIS)) :] for x in item.generations)
  return dataclasses.replace(item, generations=tuple(cut))


def _basics(spec, split, source, seed):
  number = example_sources.count_of(spec, _BASICS)
  from grm_jax.data.synthetic import primitive_skills

  # Not of the examples that `practice` makes.
  for name, asked, written in primitive_skills.basics(
    split, number, seed=seed + 1000
  ):
    yield SFTExample(name, source, (written,), turns=(Turn('user', asked),))


def _of_file(path, source, make):
  rows = dataset_files.convert(path, functools.partial(make, source=source))
  return dataset_files.located(path, rows)


def _plain(row: Any, number: int, source: str) -> SFTExample:
  """A text of a conversation; a row of judging without its responses."""
  if not isinstance(row, dict):
    raise UserError('the row is not a JSON object')
  asked = {key: row[key] for key in ('id', 'query', 'messages') if key in row}
  found = examples_lib.from_row(asked | {'responses': ['']}, number)
  return SFTExample(found.id, source, _generations(row), turns=found.query)


def _judged(row: Any, number: int, source: str) -> SFTExample:
  found = examples_lib.from_row(row, number)
  n = len(found.responses)
  order = row.get('order')
  order = list(range(n)) if order is None else order
  whole = isinstance(order, list) and all(type(x) is int for x in order)
  if not whole or sorted(order) != list(range(n)):
    raise UserError(f'order {order!r} is no permutation of {n} responses')
  return SFTExample(
    found.id, source, _generations(row), example=found, order=tuple(order)
  )


def _generations(row):
  one, several = row.get('generation'), row.get('generations')
  if (one is None) == (several is None):
    raise UserError('a row has either a generation or generations')
  found = [one] if several is None else several
  good = isinstance(found, list) and all(isinstance(x, str) for x in found)
  if not good or not found:
    raise UserError('generations must be texts, at least one')
  return tuple(found)


def record(
  text: SFTExample, forms: PromptFormat, tokenizer: Tokenizer, limit: int
) -> TokenizedExample:
  """The text as token ids; each generation ends the model's turn.

  Args:
    text: what to tokenize.
    forms: how judging examples are asked.
    tokenizer: the model's.
    limit: most tokens of a prompt that is rendered here.

  Raises:
    UserError: the prompt is too long, or its turns make no conversation.
  """
  if text.example is None:
    turns = [{'role': t.role, 'content': t.text} for t in text.turns]
    prompt = chat_format.render(tokenizer, turns)
  else:
    prompt = forms.tokenize(
      text.example,
      text.order,
      functools.partial(chat_format.render_user, tokenizer),
      limit=limit,
    )
  ends = [tokenizer.end_of_turn]
  return TokenizedExample(
    text.id,
    tokens_of(prompt),
    tuple(tokens_of(tokenizer.encode(x) + ends) for x in text.generations),
    text.source,
  )


def lines(texts: Sequence[SFTExample], forms: PromptFormat) -> Iterator[str]:
  """All lines of all texts, for training a tokenizer on them."""
  for text in texts:
    if text.example is None:
      prompts = [turn.text for turn in text.turns]
    else:
      prompts = [forms.render(text.example, text.order)]
    for part in (*prompts, *text.generations):
      # The trainer takes no surrogates, which JSON may hold.
      part = part.encode('utf-8', 'replace').decode()
      yield from part.split('\n')
