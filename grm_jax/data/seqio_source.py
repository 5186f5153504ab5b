"""Tasks and Mixtures of seqio as sources: `seqio:MODULE/NAME:SPLIT`.

MODULE is imported and registers NAME, as in seqio:my_package.tasks/mix:train;
a NAME that is registered already is seqio:NAME:SPLIT. Examples are read as they
leave the Task's preprocessors, untrimmed, in the Task's own order.

Of a Mixture one pass is drawn at its rates, by seqio, until the first of its
Tasks is used up.
"""

import difflib
import importlib
import re
from collections.abc import Iterator
from typing import Any

from absl import logging

from grm_jax.data import tfds_source
from grm_jax.data.tokenized_example import TokenizedExample, tokens_of
from grm_jax.errors import UserError
from grm_jax.judgement.judgement import ExampleError
from grm_jax.tokenizer import chat_format
from grm_jax.tokenizer.tokenizer import Tokenizer

PREFIX = 'seqio:'
_SPEC = re.compile(
  r'seqio:(?:(?P<module>[A-Za-z_][\w.]*)/)?(?P<name>.+):(?P<split>[^:\[\]]+)'
)
_KEYS = ('inputs', 'targets')


def load() -> Any:
  """The module `seqio`, imported when it is first needed: it takes seconds.

  Raises:
    UserError: it is not installed, or TensorFlow has taken an accelerator.
  """
  tfds_source.tensorflow()
  try:
    import seqio
  except ImportError as error:
    raise UserError(
      f"seqio sources need {error.name}; pip install 'seqio>=0.0.20,<0.1'"
    ) from error
  return seqio


def parse(spec: str) -> tuple[str, str, str]:
  """(MODULE or '', NAME, SPLIT) of a spec.

  Raises:
    UserError: a part is missing.
  """
  match = _SPEC.fullmatch(spec)
  if not match:
    raise UserError(
      f'{spec!r} is no seqio source; it is seqio:MODULE/NAME:SPLIT, such as '
      'seqio:my_package.tasks/my_task:train'
    )
  return match['module'] or '', match['name'], match['split']


def provider(spec: str) -> Any:
  """The registered seqio.Task or seqio.Mixture of a spec.

  Raises:
    UserError: the module cannot be imported, or there is no such Task or
      Mixture, or it has no such split; says what there is.
  """
  module, name, split = parse(spec)
  seqio = load()
  if module:
    try:
      importlib.import_module(module)
    except ImportError as error:
      raise UserError(
        f'{spec}: module {module} cannot be imported: {tfds_source.one_line(error)}'
      ) from error
  known = sorted({*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()})
  if name not in known:
    near = difflib.get_close_matches(name, known, 5) or known[:5]
    raise UserError(
      f'{spec}: no Task or Mixture {name!r} is registered'
      + (f'; there are {", ".join(near)}' if near else '')
      + ('' if module else '; name its module: seqio:MODULE/NAME:SPLIT')
    )
  found = seqio.get_mixture_or_task(name)
  if split not in found.splits:
    splits = ', '.join(sorted(found.splits))
    raise UserError(f'{spec}: {name} has the splits {splits}, not {split}')
  return found


def values(spec: str) -> Iterator[tuple[int, dict[str, Any] | ExampleError]]:
  """(number from 1, fields or fault) of every example.

  Args:
    spec: of examples that have text in them. `messages` may be
      {role: texts, content: texts}.

  Raises:
    UserError: what `provider` raises, at once; what the Task's own code
      raises, when it is read.
  """
  return (
    (number, _fields(example, number)) for number, example in _examples(spec)
  )


def records(spec: str, tokenizer: Tokenizer) -> Iterator[TokenizedExample]:
  """Training texts: of every example its inputs and its targets.

  Features that are token ids are taken as they are, and begin with bos where
  they did not: what is in them is up to the Task. Note that
  seqio.preprocessors.tokenize makes a control id of '<end_of_turn>' in a text.
  Features that are texts become a user's turn and the model's answer to it,
  without control ids from the texts (tokenizer/chat_format.py).

  Args:
    spec: of a Task or Mixture with features `inputs` and `targets`.
    tokenizer: the model's.

  Returns:
    Records, whose source is the Task's or Mixture's name, and whose id is the
    example's feature `id`, or else its number from 1.

  Raises:
    UserError: what `values` raises; no such features; another vocabulary
      than the tokenizer's.
  """
  found = provider(spec)
  make = _maker(spec, found.output_features, tokenizer)
  return (
    make(_id(example) or str(number), found.name, example)
    for number, example in _examples(spec)
  )


def check_vocabulary(spec: str, feature: Any, tokenizer: Tokenizer) -> None:
  """UserError if a seqio.Feature has other ids than the tokenizer."""
  vocabulary = feature.vocabulary
  if not isinstance(vocabulary, load().SentencePieceVocabulary):
    raise UserError(
      f'{spec}: its ids are of a {type(vocabulary).__name__}; they must be of '
      "a SentencePieceVocabulary of the model's own tokenizer.model"
    )
  theirs, ours = vocabulary.tokenizer, tokenizer.codec
  name = vocabulary.sentencepiece_model_file
  size = theirs.get_piece_size()
  if size != tokenizer.vocab_size:
    raise UserError(
      f'{spec}: its vocabulary {name} has {size} pieces, the tokenizer of the '
      f'model {tokenizer.vocab_size}; make the Task with the latter'
    )
  ids = list(range(size))
  for i, their in zip(ids, theirs.id_to_piece(ids), strict=True):
    our = ours.piece(i)
    if their != our:
      raise UserError(
        f'{spec}: id {i} is {their!r} in its vocabulary {name} and {our!r} in '
        'the tokenizer of the model; make the Task with the latter'
      )


def _examples(spec):
  """(number from 1, example) of what the Task makes."""
  import tensorflow as tf
  import tensorflow_datasets

  found = provider(spec)
  try:
    dataset = found.get_dataset(
      sequence_length=None,
      split=parse(spec)[2],
      shuffle=False,
      num_epochs=1,
    )
  except (ValueError, OSError, AssertionError) as error:
    raise UserError(f'{spec}: {tfds_source.one_line(error)}') from error
  logging.info('%s is read from seqio', spec)

  def numbered():
    number = 0
    try:
      for example in tensorflow_datasets.as_numpy(dataset):
        number += 1
        yield number, example
    except tf.errors.OpError as error:
      reason = tfds_source.one_line(error)
      raise UserError(f'{spec}, after example {number}: {reason}') from error

  return numbered()


def _fields(example, number):
  try:
    fields = tfds_source.decoded(tfds_source.plain(example))
  except UserError as error:
    return ExampleError(f'row {number}', str(error))
  messages = fields.get('messages')
  if not isinstance(messages, dict):
    return fields
  roles, contents = messages.get('role', ()), messages.get('content', ())
  if len(roles) != len(contents):
    reason = f'messages have {len(roles)} roles and {len(contents)} contents'
    return ExampleError(f'row {number}', reason)
  pairs = zip(roles, contents, strict=True)
  turns = [{'role': role, 'content': content} for role, content in pairs]
  return fields | {'messages': turns}


def _id(example):
  """The feature `id` as text, '' if there is none."""
  return str(
    tfds_source.decoded(tfds_source.plain(example.get('id', b'')), 'id')
  )


def _maker(spec, features, tokenizer):
  """What makes a Record of (id, source, example)."""
  import tensorflow as tf

  missing = [key for key in _KEYS if key not in features]
  if missing:
    raise UserError(
      f'{spec}: it has no feature {missing[0]}, only {", ".join(features)}'
    )
  if {features[key].dtype for key in _KEYS} == {tf.string}:
    return lambda id, source, example: _of_texts(tokenizer, id, source, example)
  for key in _KEYS:
    check_vocabulary(spec, features[key], tokenizer)
  return lambda id, source, example: _of_ids(tokenizer, id, source, example)


def _of_texts(tokenizer, id, source, example):
  asked, answer = (
    tfds_source.decoded(tfds_source.plain(example[key]), key) for key in _KEYS
  )
  prompt = chat_format.render_user(tokenizer, asked)
  generation = [*tokenizer.encode(answer), tokenizer.end_of_turn]
  return _record(id, source, prompt, generation)


def _of_ids(tokenizer, id, source, example):
  prompt, generation = (tfds_source.plain(example[key]) for key in _KEYS)
  opening = list(tokenizer.turns.opening)
  if prompt[: len(opening)] != opening:
    prompt = [*opening, *prompt]
  return _record(id, source, prompt, generation)


def _record(id, source, prompt, generation):
  return TokenizedExample(
    id, tokens_of(prompt), (tokens_of(generation),), source
  )
