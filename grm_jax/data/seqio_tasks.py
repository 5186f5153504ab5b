"""Our data as seqio Tasks and Mixtures, for users of t5x and of seqio's tools.

A Task has the features `inputs` and `targets`, whose vocabulary is the
checkpoint's own tokenizer.model, and besides `id` and `truth`. The ids in them
are ready: inputs are a prompt in the model's chat form from bos on, targets
what the model writes, up to <end_of_turn>. They are made by our tokenizer,
since SentencePieceVocabulary.encode turns the letters '<end_of_turn>' in a
text into the id that ends a turn. Do not tokenize them again.

Each split comes from a function, through seqio.FunctionDataSource, or is a
`tfds:NAME:SPLIT`, through seqio.TfdsDataSource. Sources are read in their own
order; seqio shuffles by the seed that get_dataset is given, so that the same
seed gives the same order. To go on after n examples take dataset.skip(n).
"""

import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from grm_jax.data import seqio_source, tfds
from grm_jax.judging import example as examples_lib
from grm_jax.judging import outcome
from grm_jax.judging.example import JudgingExample
from grm_jax.judging.forms import Forms
from grm_jax.model import chat
from grm_jax.model import tokenizer as tokenizers

Splits = Mapping[str, Callable[[], Iterable[Any]] | str]
Encoded = dict[str, Any]
Truth = Mapping[str, Any]
_END = '<end_of_turn>'
_FORMS = Forms('pointwise', 'single')


def register_texts(name: str, splits: Splits, tokenizer_path: str) -> Any:
  """Registers general instruction data: what is asked, and the answer.

  Args:
    name: of the Task.
    splits: for each a function that gives (inputs, targets), the same each
      time, or a TFDS spec with text fields of these names.
    tokenizer_path: of the checkpoint's tokenizer.model.

  Returns:
    The seqio.Task. It has no metrics.

  Raises:
    ValueError: a name that is taken, a wrong spec or tokenizer.
  """
  tokenizer = tokenizers.load(tokenizer_path)

  def encode(item):
    id, asked, answer = _text_of(item)
    return _encoded(
      id,
      chat.render_user(tokenizer, asked),
      [*tokenizer.encode(answer), tokenizer.end_of_turn],
    )

  return _register(name, splits, encode, tokenizer_path)


def register_judging(
  name: str,
  splits: Splits,
  tokenizer_path: str,
  *,
  limit: int,
  forms: Forms = _FORMS,
) -> Any:
  """Registers judging examples, with the generations that are to be learnt.

  Its metrics are `strict_accuracy` and `parse_failures`.

  Args:
    name: of the Task.
    splits: for each a function that gives (example, generation), the same
      each time, or a TFDS spec of rows (data/tfds.py) that may have a text
      `generation`. Where that is '' the targets are empty but for their end,
      and serve for evaluation alone.
    tokenizer_path: of the checkpoint's tokenizer.model.
    limit: tokens that a prompt may have; longer ones are shortened.
    forms: how examples are asked, responses in their own order, and how
      predictions are read; of one response, 0 or 1 as in training.

  Returns:
    The seqio.Task.

  Raises:
    ValueError: a name that is taken, a wrong spec, template or tokenizer.
  """
  tokenizer = tokenizers.load(tokenizer_path)
  forms.check()
  render = functools.partial(chat.render_user, tokenizer)

  def encode(item):
    id, example, text = _judging_of(item)
    order = tuple(range(len(example.responses)))
    return _encoded(
      id,
      forms.tokenize(example, order, render, limit=limit),
      [*tokenizer.encode(text), tokenizer.end_of_turn],
      truth_of(example),
    )

  return _register(
    name,
    splits,
    encode,
    tokenizer_path,
    postprocess_fn=functools.partial(postprocess, forms=forms),
    metric_fns=[strict_accuracy, parse_failures],
  )


def mixture(name: str, rates: Mapping[str, float]) -> Any:
  """Registers a seqio.Mixture of Tasks, or Mixtures, by rate.

  Raises:
    ValueError: a name that is taken or is no Task, or a rate not above 0.
  """
  seqio = seqio_source.load()
  known = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
  for task, rate in rates.items():
    if task not in known:
      raise ValueError(f'mixture {name!r}: no Task {task!r} is registered')
    if not 0 < rate < float('inf'):
      raise ValueError(f'mixture {name!r}: the rate of {task!r} is {rate}')
  return seqio.MixtureRegistry.add(name, list(rates.items()))


def truth_of(example: JudgingExample) -> str:
  """What is right, as JSON: the feature `truth`.

  Raises:
    ValueError: the example does not say.
  """
  outcome.is_correct(None, example)  # raises
  n = len(example.responses)
  if n > 1:
    return json.dumps({'num_responses': n, 'best': example.best})
  return json.dumps({'num_responses': 1, 'label': example.rewards[0]})


def postprocess(
  output: str,
  example: Mapping[str, Any],
  is_target: bool = False,
  forms: Forms = _FORMS,
) -> Truth | tuple[int, ...] | None:
  """What metrics compare: of targets the truth, of predictions the scores.

  Args:
    output: decoded ids; of a prediction, what comes before the turn's end.
    example: the Task's, with its `truth`.
    is_target: which of the two `output` is.
    forms: how predictions are read.

  Returns:
    The truth; or the scores, None for a parse failure.
  """
  truth = json.loads(example['truth'])
  if is_target:
    return truth
  return forms.read(output.partition(_END)[0], truth['num_responses'])


def strict_accuracy(
  targets: Sequence[Truth], predictions: Sequence[tuple[int, ...] | None]
) -> dict[str, float]:
  """Share of predictions that are right by equation 10 (judging/outcome.py)."""
  right = [
    _right(truth, found)
    for truth, found in zip(targets, predictions, strict=True)
  ]
  return {'strict_accuracy': sum(right) / len(right)}


def parse_failures(
  targets: Sequence[Truth], predictions: Sequence[tuple[int, ...] | None]
) -> dict[str, float]:
  """Share of predictions without scores."""
  failed = [found is None for found in predictions]
  return {'parse_failures': sum(failed) / len(targets)}


def _right(truth, found):
  if truth['num_responses'] > 1:
    return outcome.correct(found, truth['best'])
  return outcome.correct_single(found and found[0], truth['label'])


def _text_of(item):
  """(id or '', inputs, targets) of what a function gives, or of a row."""
  if isinstance(item, tuple):
    return '', *item
  for key in ('inputs', 'targets'):
    if not isinstance(item.get(key), str):
      raise ValueError(f'a row has no text {key}, only {", ".join(item)}')
  return str(item.get('id', '')), item['inputs'], item['targets']


def _judging_of(item):
  """(id or '', example, generation) of what a function gives, or of a row."""
  if isinstance(item, tuple):
    return item[0].id, *item
  example = examples_lib.from_row(tfds.native(item), 0)
  return str(item.get('id', '')), example, item.get('generation', '')


def _encoded(id, inputs, targets, truth='') -> Encoded:
  return {'id': id, 'inputs': inputs, 'targets': targets, 'truth': truth}


def _register(name, splits, encode, tokenizer_path, **metrics):
  seqio = seqio_source.load()
  specs = [isinstance(place, str) for place in splits.values()]
  if not splits or len(set(specs)) > 1:
    raise ValueError(
      f'task {name!r}: give splits, all of them functions or all tfds: specs'
    )
  vocabulary = seqio.SentencePieceVocabulary(str(tokenizer_path))
  feature = seqio.Feature(vocabulary, add_eos=False)
  if specs[0]:
    source = _tfds_source(name, splits)
    preprocessors = [_encoder(source, encode)]
  else:
    source, preprocessors = _function_source(splits, encode), []
  return seqio.TaskRegistry.add(
    name,
    source=source,
    preprocessors=preprocessors,
    output_features={'inputs': feature, 'targets': feature},
    **metrics,
  )


def _signature():
  import tensorflow as tf

  text = tf.TensorSpec((), tf.string)
  ids = tf.TensorSpec((None,), tf.int32)
  return _encoded(text, ids, ids, text)


def _function_source(splits, encode):
  import tensorflow as tf

  # seqio asks for these arguments; it shuffles by the seed itself.
  def dataset(split, shuffle_files, seed=None):
    return tf.data.Dataset.from_generator(
      lambda: map(encode, splits[split]()), output_signature=_signature()
    )

  return seqio_source.load().FunctionDataSource(dataset, tuple(splits))


def _tfds_source(name, splits):
  found = {split: tfds.parse(spec) for split, spec in splits.items()}
  names = {dataset for dataset, _ in found.values()}
  if len(names) > 1:
    raise ValueError(
      f'task {name!r}: its splits are of {", ".join(sorted(names))}; a Task is '
      'of one dataset, mix several Tasks'
    )
  # Of the folder, not the name: seqio would download and run code for it.
  folder = tfds.find(next(iter(splits.values())), names.pop())
  return seqio_source.load().TfdsDataSource(
    tfds_data_dir=str(folder),
    splits={split: part for split, (_, part) in found.items()},
    read_only=True,
  )


def _encoder(source, encode):
  """A preprocessor that makes ready ids of rows of a TfdsDataSource."""

  def preprocess(dataset):
    import tensorflow as tf

    features, signature = source.tfds_dataset.info.features, _signature()

    # Plain Python: AutoGraph would only make a copy of it.
    @tf.autograph.experimental.do_not_convert
    def encode_row(row):
      def call(*leaves):
        packed = tf.nest.pack_sequence_as(row, leaves)
        fields = tfds.decoded(tfds.shaped(features, tfds.plain(packed)))
        made = encode(fields)
        return [made[key] for key in signature]

      dtypes = [spec.dtype for spec in signature.values()]
      made = tf.py_function(call, tf.nest.flatten(row), dtypes)
      for tensor, spec in zip(made, signature.values(), strict=True):
        tensor.set_shape(spec.shape)
      return dict(zip(signature, made, strict=True))

    return dataset.map(encode_row, num_parallel_calls=tf.data.AUTOTUNE)

  return preprocess
