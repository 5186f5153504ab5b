"""seqio Tasks and Mixtures as sources: the spec `seqio:MODULE/NAME:SPLIT`.

MODULE is imported and registers NAME, as in seqio:my_package.tasks/mix:train.
For a NAME that is already registered, write seqio:NAME:SPLIT. Examples are read
as the Task's preprocessors return them, untrimmed and in the Task's order.

From a Mixture, seqio draws one pass at the Mixture's rates, until the first of
its Tasks is exhausted.
"""

import difflib
import importlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from absl import logging

from grm_jax.data import tfds_source
from grm_jax.data.tokenized_example import TokenizedExample, token_array
from grm_jax.errors import UserError
from grm_jax.judgement.judgement import ExampleError
from grm_jax.tokenizer import chat_format
from grm_jax.tokenizer.tokenizer import Tokenizer

PREFIX = 'seqio:'
_SPEC = re.compile(
  r'seqio:(?:(?P<module>[A-Za-z_][\w.]*)/)?(?P<name>.+):(?P<split>[^:\[\]]+)'
)
_FEATURES = ('inputs', 'targets')


def import_seqio() -> Any:
  """Imports `seqio` on demand: the import takes seconds.

  Raises:
    UserError: it is not installed, or TensorFlow already holds an accelerator.
  """
  tfds_source.import_tensorflow()
  try:
    import seqio
  except ImportError as error:
    raise UserError(
      f"seqio sources need {error.name}; pip install 'seqio>=0.0.20,<0.1'"
    ) from error
  return seqio


def parse_spec(spec: str) -> tuple[str, str, str]:
  """Returns (MODULE or '', NAME, SPLIT) of a spec.

  Raises:
    UserError: a part is missing.
  """
  match = _SPEC.fullmatch(spec)
  if not match:
    raise UserError(
      f'{spec!r} is not a seqio source; write seqio:MODULE/NAME:SPLIT, such as '
      'seqio:my_package.tasks/my_task:train'
    )
  return match['module'] or '', match['name'], match['split']


def task_or_mixture(spec: str) -> Any:
  """Returns the registered seqio.Task or seqio.Mixture of a spec.

  Raises:
    UserError: the module cannot be imported, or the Task, Mixture or split
      does not exist; lists what exists.
  """
  module, name, split = parse_spec(spec)
  seqio = import_seqio()
  if module:
    try:
      importlib.import_module(module)
    except ImportError as error:
      raise UserError(
        f'{spec}: cannot import the module {module}: '
        f'{tfds_source.one_line(error)}'
      ) from error
  names = sorted({*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()})
  if name not in names:
    similar = difflib.get_close_matches(name, names, 5) or names[:5]
    raise UserError(
      f'{spec}: no Task or Mixture {name!r} is registered'
      + (f'; registered are {", ".join(similar)}' if similar else '')
      + ('' if module else '; name its module: seqio:MODULE/NAME:SPLIT')
    )
  provider = seqio.get_mixture_or_task(name)
  if split not in provider.splits:
    splits = ', '.join(sorted(provider.splits))
    raise UserError(
      f'{spec}: {name} does not have the split {split}; use one of {splits}'
    )
  return provider


def numbered_rows(
  spec: str,
) -> Iterator[tuple[int, dict[str, Any] | ExampleError]]:
  """Returns an iterator over (number from 1, fields or error) of every example.

  Args:
    spec: a Task or Mixture with text features. `messages` may have the form
      {role: texts, content: texts}.

  Raises:
    UserError: at once as `task_or_mixture`; during the iteration if code of
      the Task fails.
  """
  return (
    (number, _text_fields(example, number))
    for number, example in _examples(spec)
  )


def tokenized_examples(
  spec: str, tokenizer: Tokenizer
) -> Iterator[TokenizedExample]:
  """Returns an iterator over training examples: inputs and targets of a Task.

  Features with token ids are used as they are, after a bos if they do not begin
  with one; their content is the responsibility of the Task. Note that
  seqio.preprocessors.tokenize converts a literal '<end_of_turn>' in a text to
  the control id. Features with text become a user turn and the model's turn
  (tokenizer/chat_format.py), and text cannot create control ids.

  Args:
    spec: a Task or Mixture with the features `inputs` and `targets`.
    tokenizer: tokenizer of the model.

  Returns:
    Examples with the name of the Task or Mixture as source. The id is the
    feature `id`, or else the number of the example from 1.

  Raises:
    UserError: as `numbered_rows`; a feature is missing; the vocabulary is not
      that of the tokenizer.
  """
  provider = task_or_mixture(spec)
  tokenize = _tokenize_function(spec, provider.output_features, tokenizer)
  return (
    _make_example(
      _example_id(example) or str(number), provider.name, *tokenize(example)
    )
    for number, example in _examples(spec)
  )


def check_vocabulary(spec: str, feature: Any, tokenizer: Tokenizer) -> None:
  """Checks that a seqio.Feature has the ids of the tokenizer.

  Raises:
    UserError: the vocabularies differ.
  """
  vocabulary = feature.vocabulary
  if not isinstance(vocabulary, import_seqio().SentencePieceVocabulary):
    raise UserError(
      f'{spec}: its vocabulary is a {type(vocabulary).__name__}; define the '
      "Task with a SentencePieceVocabulary of the model's tokenizer.model"
    )
  file = vocabulary.sentencepiece_model_file
  size = vocabulary.tokenizer.get_piece_size()
  if size != tokenizer.vocab_size:
    raise UserError(
      f'{spec}: its vocabulary {file} has {size} pieces, the tokenizer of the '
      f'model has {tokenizer.vocab_size}; define the Task with the latter'
    )
  ids = list(range(size))
  pieces = vocabulary.tokenizer.id_to_piece(ids)
  for i, piece in zip(ids, pieces, strict=True):
    expected = tokenizer.codec.id_to_piece(i)
    if piece != expected:
      raise UserError(
        f'{spec}: id {i} is {piece!r} in its vocabulary {file} and '
        f'{expected!r} in the tokenizer of the model; define the Task with the '
        'latter'
      )


def _examples(spec: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
  """Returns an iterator over (number from 1, example); opens it at once."""
  import tensorflow as tf
  import tensorflow_datasets

  provider = task_or_mixture(spec)
  try:
    dataset = provider.get_dataset(
      sequence_length=None,
      split=parse_spec(spec)[2],
      shuffle=False,
      num_epochs=1,
    )
  except (ValueError, OSError, AssertionError) as error:
    raise UserError(f'{spec}: {tfds_source.one_line(error)}') from error
  logging.info('reading %s with seqio', spec)

  def numbered() -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yields (number from 1, example)."""
    number = 0
    try:
      for example in tensorflow_datasets.as_numpy(dataset):
        number += 1
        yield number, example
    except tf.errors.OpError as error:
      reason = tfds_source.one_line(error)
      raise UserError(f'{spec}, after example {number}: {reason}') from error

  return numbered()


def _text_fields(
  example: Mapping[str, Any], number: int
) -> dict[str, Any] | ExampleError:
  try:
    fields = tfds_source.decode_utf8(tfds_source.to_python(example))
  except UserError as error:
    return ExampleError(f'row {number}', str(error))
  messages = fields.get('messages')
  if not isinstance(messages, dict):
    return fields
  roles, contents = messages.get('role', ()), messages.get('content', ())
  if len(roles) != len(contents):
    reason = (
      f'messages have {len(roles)} roles and {len(contents)} contents; the '
      'numbers must be equal'
    )
    return ExampleError(f'row {number}', reason)
  pairs = zip(roles, contents, strict=True)
  turns = [{'role': role, 'content': content} for role, content in pairs]
  return fields | {'messages': turns}


def _example_id(example: Mapping[str, Any]) -> str:
  """Returns the feature `id` as text, '' without it."""
  value = tfds_source.to_python(example.get('id', b''))
  return str(tfds_source.decode_utf8(value, 'id'))


# Maps an example to the token ids of its prompt and of its generation.
_TokenizeFunction = Callable[
  [Mapping[str, Any]], tuple[Sequence[int], Sequence[int]]
]


def _tokenize_function(
  spec: str, features: Mapping[str, Any], tokenizer: Tokenizer
) -> _TokenizeFunction:
  import tensorflow as tf

  missing = [key for key in _FEATURES if key not in features]
  if missing:
    raise UserError(
      f'{spec}: the feature {missing[0]} is missing; the Task has only '
      f'{", ".join(features)}'
    )
  if {features[key].dtype for key in _FEATURES} == {tf.string}:
    return lambda example: _tokenize_texts(tokenizer, example)
  for key in _FEATURES:
    check_vocabulary(spec, features[key], tokenizer)
  return lambda example: _prefix_ids(tokenizer, example)


def _tokenize_texts(
  tokenizer: Tokenizer, example: Mapping[str, Any]
) -> tuple[Sequence[int], Sequence[int]]:
  inputs, targets = (
    tfds_source.decode_utf8(tfds_source.to_python(example[key]), key)
    for key in _FEATURES
  )
  prompt = chat_format.render_user(tokenizer, inputs)
  return prompt, chat_format.model_turn(tokenizer, targets)


def _prefix_ids(
  tokenizer: Tokenizer, example: Mapping[str, Any]
) -> tuple[Sequence[int], Sequence[int]]:
  prompt, generation = (
    tfds_source.to_python(example[key]) for key in _FEATURES
  )
  prefix = list(tokenizer.chat_format.prefix_ids)
  if prompt[: len(prefix)] != prefix:
    prompt = [*prefix, *prompt]
  return prompt, generation


def _make_example(
  id: str, source: str, prompt: Sequence[int], generation: Sequence[int]
) -> TokenizedExample:
  return TokenizedExample(
    id, token_array(prompt), (token_array(generation),), source
  )
