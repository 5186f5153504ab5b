"""Sources of SFT examples: the specs of config.data.texts and .general.

  practice, practice:COUNT   judgements by the synthetic teacher
  basics, basics:COUNT       short texts that train single steps of these
  texts:PATH                 rows {query | messages, generation |
                             generations[, id]}: general instruction data
  judged:PATH                rows {query | messages, responses, generation |
                             generations[, id, order]}: written judgements,
                             whose prompt is rendered here
  verdicts:SOURCE            labels of a source of judging examples
                             (example_sources.py), written as judgements
                             without reasoning (label_only_judgements.py)
  prometheus:PATH            pairs made from Prometheus' feedback on single
                             responses (datasets/prometheus.py)
  tulu3:PATH, no_robots:PATH, openassistant:PATH
                             general instruction data as published
                             (datasets/instructions.py)
  no_principles:TEXTS        any of the above with judgements cut to begin at
                             the heading Analysis
  seqio:[MODULE/]NAME:SPLIT  inputs and targets of a seqio Task or Mixture
                             (seqio_source.py)

PATH is a .jsonl, .json or .parquet file, local or gs://, or tfds:NAME:SPLIT; of
published instruction data also hf:OWNER/NAME (hub_source.py).

`tokenize` renders the prompt of an example in exactly the form in which the
model is prompted at inference.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from grm_jax.data import dataset_files, example_sources, label_only_judgements
from grm_jax.data.datasets import instructions, prometheus
from grm_jax.data.tokenized_example import TokenizedExample, token_array
from grm_jax.errors import UserError
from grm_jax.judgement import example as examples_lib
from grm_jax.judgement import row_values
from grm_jax.judgement.example import JudgingExample, Turn
from grm_jax.judgement.judgement import ExampleError
from grm_jax.judgement.prompt_format import PromptFormat
from grm_jax.tokenizer import chat_format
from grm_jax.tokenizer.tokenizer import Tokenizer

# Prefixes of specs.
PRACTICE, BASICS, VERDICTS = 'practice', 'basics', 'verdicts'
PROMETHEUS, NO_PRINCIPLES = 'prometheus', 'no_principles'

_DEFAULT_BASICS_COUNT = 20_000
# Keeps the problems of `basics` distinct from those of `practice`.
_BASICS_SEED_OFFSET = 1000
_ANALYSIS_HEADING = 'Analysis:'


@dataclasses.dataclass(frozen=True)
class SFTExample:
  """A prompt and its target generations, before tokenization.

  Either `turns` or `example` is set.

  Attributes:
    id: unique within its source.
    source: name of the mixture component.
    generations: at least one.
    turns: the prompt, as a conversation.
    example: the judging example whose rendered prompt is the prompt.
    order: order[position] is the index of the response shown there.
  """

  id: str
  source: str
  generations: tuple[str, ...]
  turns: tuple[Turn, ...] = ()
  example: JudgingExample | None = None
  order: tuple[int, ...] = ()


def read(
  spec: str,
  split: str,
  source: str,
  teacher_error_rate: float = 0.0,
  seed: int = 0,
) -> Iterator[SFTExample | ExampleError]:
  """Returns an iterator over examples, with an ExampleError for each bad row.

  Args:
    spec: see the module docstring.
    split: 'train', 'validation' or 'held_out', for practice, basics and
      verdicts; a file is read as a whole for every split.
    source: name of the mixture component.
    teacher_error_rate: fraction of the synthetic teacher's judgements with a
      mistake.
    seed: seed of the teacher, the primitive-skill texts and response orders.

  Raises:
    UserError: the spec is unknown or a file cannot be read.
  """
  prefix, _, rest = spec.partition(':')
  if prefix == PRACTICE:
    return _practice(spec, split, source, teacher_error_rate, seed)
  if prefix == VERDICTS and rest:
    return _label_only(rest, split, source, seed)
  if prefix == PROMETHEUS and rest:
    return _prometheus(rest, source, seed)
  if prefix in instructions.NAMES and rest:
    return _instructions(prefix, rest, source)
  if prefix == NO_PRINCIPLES and rest:
    examples = read(rest, split, source, teacher_error_rate, seed)
    return map(_without_principles, examples)
  if prefix == BASICS:
    return _primitive_skills(spec, split, source, seed)
  row_parsers = {'texts': _from_text_row, 'judged': _from_judged_row}
  if prefix not in row_parsers or not rest:
    raise UserError(
      f'{spec!r} is not a source of SFT texts; set config.data.texts and '
      'config.data.general to practice:COUNT, basics:COUNT, texts:PATH, '
      'judged:PATH, verdicts:SOURCE, prometheus:PATH, tulu3:PATH, '
      'no_robots:PATH, openassistant:PATH or seqio:NAME:SPLIT'
    )
  return _read_file(rest, source, row_parsers[prefix])


def _practice(
  spec: str, split: str, source: str, teacher_error_rate: float, seed: int
) -> Iterator[SFTExample | ExampleError]:
  # Imported on demand: the import takes seconds and few runs need it.
  from grm_jax.data.synthetic import teacher

  for example in example_sources.read(spec, split):
    assert isinstance(example, JudgingExample)  # synthetic: no bad rows
    order = label_only_judgements.random_order(example, seed)
    text = teacher.write(
      example, error_rate=teacher_error_rate, seed=seed, order=order
    )
    yield SFTExample(example.id, source, (text,), example=example, order=order)


def _label_only(
  spec: str, split: str, source: str, seed: int
) -> Iterator[SFTExample | ExampleError]:
  for example in example_sources.read(spec, split):
    if isinstance(example, ExampleError):
      yield example
      continue
    order = label_only_judgements.random_order(example, seed)
    try:
      text = label_only_judgements.write(example, order)
    except UserError as error:
      yield ExampleError(example.id, f'{spec}: {error}')
      continue
    yield SFTExample(example.id, source, (text,), example=example, order=order)


def _prometheus(
  path: str, source: str, seed: int
) -> Iterator[SFTExample | ExampleError]:
  for item in prometheus.judgements(path, seed):
    if isinstance(item, ExampleError):
      yield item
      continue
    example, order, text = item
    yield SFTExample(example.id, source, (text,), example=example, order=order)


def _instructions(
  name: str, path: str, source: str
) -> Iterator[SFTExample | ExampleError]:
  for item in instructions.read(name, path):
    if isinstance(item, ExampleError):
      yield item
    else:
      yield SFTExample(item.id, source, (item.answer,), turns=item.turns)


def _without_principles(
  item: SFTExample | ExampleError,
) -> SFTExample | ExampleError:
  """Cuts judgements to begin at the analysis; other texts are unchanged."""
  if isinstance(item, ExampleError) or item.example is None:
    return item
  # find() returns -1 for a text without the heading, which is kept whole.
  generations = tuple(
    text[max(0, text.find(_ANALYSIS_HEADING)) :] for text in item.generations
  )
  return dataclasses.replace(item, generations=generations)


def _primitive_skills(
  spec: str, split: str, source: str, seed: int
) -> Iterator[SFTExample | ExampleError]:
  count = example_sources.parse_count(spec, _DEFAULT_BASICS_COUNT)
  from grm_jax.data.synthetic import primitive_skills

  for id, prompt, generation in primitive_skills.skill_texts(
    split, count, seed=seed + _BASICS_SEED_OFFSET
  ):
    yield SFTExample(id, source, (generation,), turns=(Turn('user', prompt),))


def _read_file(
  path: str, source: str, parse: Callable[[Any, int, str], SFTExample]
) -> Iterator[SFTExample | ExampleError]:
  rows = dataset_files.convert_rows(
    path, lambda row, number: parse(row, number, source)
  )
  return dataset_files.with_row_location(path, rows)


def _from_text_row(row: Any, number: int, source: str) -> SFTExample:
  if not isinstance(row, dict):
    raise UserError('the row is not a JSON object')
  # Parsed as a judging example with a placeholder response.
  fields = {key: row[key] for key in ('id', 'query', 'messages') if key in row}
  if fields.get('query') is None and fields.get('messages') is None:
    raise row_values.missing_field('query or messages', row)
  example = examples_lib.from_row(fields | {'responses': ['']}, number)
  return SFTExample(example.id, source, _generations(row), turns=example.query)


def _from_judged_row(row: Any, number: int, source: str) -> SFTExample:
  example = examples_lib.from_row(row, number)
  n = len(example.responses)
  order = row.get('order')
  order = list(range(n)) if order is None else order
  order = (
    list(map(row_values.integer, order)) if isinstance(order, list) else []
  )
  if set(order) != set(range(n)) or len(order) != n:
    raise UserError(
      f'order is {row["order"]!r:.60}; it must list the indices of the {n} '
      'responses, from 0, once each'
    )
  return SFTExample(
    example.id, source, _generations(row), example=example, order=tuple(order)
  )


def _generations(row: dict[str, Any]) -> tuple[str, ...]:
  generation, generations = row.get('generation'), row.get('generations')
  if generation is None and generations is None:
    raise row_values.missing_field('generation or generations', row)
  if generation is not None and generations is not None:
    raise UserError('a row must have either generation or generations')
  texts = [generation] if generations is None else generations
  is_text_list = isinstance(texts, list) and all(
    isinstance(x, str) for x in texts
  )
  if not is_text_list or not texts:
    raise UserError('generations must be a list of at least one text')
  return tuple(texts)


def tokenize(
  example: SFTExample,
  prompt_format: PromptFormat,
  tokenizer: Tokenizer,
  limit: int,
) -> TokenizedExample:
  """Tokenizes an example; each generation ends with the end of the turn.

  Args:
    example: the example to tokenize.
    prompt_format: renders the prompts of judging examples.
    tokenizer: tokenizer of the model.
    limit: maximum number of tokens of a rendered judging prompt.

  Raises:
    UserError: the prompt is too long, or its turns do not make a conversation;
      or it has one response and the generations name the best of several.
  """
  is_single = len(example.order) == 1
  if is_single and prompt_format.reads == 'best':
    raise UserError('a single response, but config.prompt.reads is best')
  prompt: Sequence[int]
  if example.example is None:
    messages = [{'role': t.role, 'content': t.text} for t in example.turns]
    prompt = chat_format.render(tokenizer, messages)
  else:
    prompt = prompt_format.tokenize(
      example.example,
      example.order,
      functools.partial(chat_format.render_user, tokenizer),
      limit=limit,
    ).tokens
  return TokenizedExample(
    example.id,
    token_array(prompt),
    tuple(
      token_array(chat_format.model_turn(tokenizer, text))
      for text in example.generations
    ),
    example.source,
  )


def text_lines(
  examples: Iterable[SFTExample], prompt_format: PromptFormat
) -> Iterator[str]:
  """Yields all lines of prompts and generations, to train a tokenizer on."""
  for example in examples:
    if example.example is None:
      prompts = [turn.text for turn in example.turns]
    else:
      prompts = [prompt_format.render(example.example, example.order)]
    for text in (*prompts, *example.generations):
      # The tokenizer trainer rejects lone surrogates, which JSON can hold.
      yield from text.encode('utf-8', 'replace').decode().split('\n')
