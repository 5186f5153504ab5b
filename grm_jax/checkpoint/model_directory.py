"""Models as directories: a checkpoint, its size, and its tokenizer.

A model directory is a checkpoint directory (checkpoints.py) whose `model`
item says which size it is and whether it has a scalar head, with the
tokenizer's files beside the steps:

    <directory>/<step>/params, model, ...
    <directory>/tokenizer.model (Gemma-2) or tokenizer.json (SmolLM2)
"""

import dataclasses
import os
import tempfile
from collections.abc import Iterable
from typing import Any

import jax
from absl import logging
from etils import epath

from grm_jax.checkpoint import orbax_checkpoint
from grm_jax.errors import UserError
from grm_jax.io import atomic_io
from grm_jax.model import config as model_config
from grm_jax.model import init as model_init
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.model.config import ModelConfig
from grm_jax.model.transformer import Transformer
from grm_jax.sharding.rules import ShardingLayout
from grm_jax.tokenizer import tiny as tiny_tokenizer
from grm_jax.tokenizer import tokenizer

TOKENIZER = 'tokenizer.model'
BPE_TOKENIZER = 'tokenizer.json'  # read where there is no tokenizer.model
RANDOM = 'random'  # in place of a directory: small random weights
_POST_SCALE = 0.3  # 1 + scale of the post-norms of a new model
SCRATCH = 'scratch'  # the same, with a tokenizer trained on the data
# Files that travel with a model unchanged, both ways; all but the first two
# only matter to Hugging Face's side.
COMPANIONS = (
  TOKENIZER,
  BPE_TOKENIZER,
  'tokenizer_config.json',
  'special_tokens_map.json',
  'generation_config.json',
  'chat_template.jinja',
)


def describe(model: Transformer) -> dict[str, Any]:
  """The `model` item of a checkpoint of this model."""
  return {'size': dataclasses.asdict(model.size), 'scalar': model.scalar}


def build(
  directory: str,
  step: int | None,
  compute: ComputeConfig,
  layout: ShardingLayout,
) -> Transformer:
  """The model that a checkpoint is of, without its parameters.

  Raises:
    UserError: no such checkpoint, or it was written by other code.
  """
  item = orbax_checkpoint.read_json(directory, 'model', step)
  try:
    size = ModelConfig(**item['size'])
    return Transformer(size, compute, layout, item['scalar'])
  except (KeyError, TypeError) as error:
    raise UserError(
      f'{directory}: item model does not describe a Gemma-2: {error}'
    ) from error


def load_params(
  directory: str, step: int | None, model: Transformer, dtype: str = 'source'
) -> dict:
  """Parameters in the shardings of `model.layout`.

  Args:
    directory: the model directory.
    step: None for the newest.
    model: from `build`.
    dtype: 'source' keeps what was saved, or 'float32', 'bfloat16'.
  """
  abstract = model_init.abstract_params(model)
  index = orbax_checkpoint.read_json(directory, 'index', step)
  saved = index['arrays']['params']

  def wanted(path, leaf):
    name = '/'.join(key.key for key in path)
    kind = dtype
    if kind == 'source':
      # A leaf that was not saved is for the restore to report.
      kind = saved[name]['dtype'] if name in saved else leaf.dtype
    return jax.ShapeDtypeStruct(leaf.shape, kind, sharding=leaf.sharding)

  abstract = jax.tree_util.tree_map_with_path(wanted, abstract)
  return orbax_checkpoint.restore_params(directory, abstract, step)


def load_tokenizer(directory: str, size: ModelConfig) -> tokenizer.Tokenizer:
  """The tokenizer of a model directory.

  Raises:
    UserError: there is none, or it has pieces that the model has no row for.
  """
  path = _tokenizer_path(directory)
  loaded = tokenizer.load(path)
  if loaded.vocab_size > size.vocab_size:
    raise UserError(
      f'{path} has {loaded.vocab_size} pieces, but the model has '
      f'{size.vocab_size} embedding rows; they do not belong together'
    )
  return loaded


def _tokenizer_path(directory):
  names = (TOKENIZER, BPE_TOKENIZER)
  there = [x for x in names if (epath.Path(directory) / x).exists()]
  return os.path.join(directory, (there or names)[0])


def save(
  directory: str, step: int, model: Transformer, params: dict, meta: dict
) -> None:
  """Writes parameters as a step of a model directory, whole or not at all."""
  # One gigabyte at a time: the host need not hold the model twice.
  with orbax_checkpoint.CheckpointManager(directory, host_gb=1) as writer:
    writer.save(step, params, model=describe(model), meta=meta)


def copy_companions(source: str, target: str) -> None:
  """Copies the tokenizer's files, each whole or not at all."""
  if not epath.Path(_tokenizer_path(source)).exists():
    logging.warning(
      '%s has no %s; put it into %s before text is scored',
      source,
      TOKENIZER,
      target,
    )
  for name in COMPANIONS:
    path = epath.Path(source) / name
    if path.exists():
      atomic_io.write_whole(epath.Path(target) / name, path.read_bytes())


def step_of(number: int) -> int | None:
  """`config.checkpoint_step` as functions take it: None, the newest, for -1."""
  return None if number < 0 else number


def open_model(
  directory: str,
  step: int | None,
  compute: ComputeConfig,
  layout: ShardingLayout,
  *,
  scalar: bool = False,
  seed: int = 0,
) -> tuple[Transformer, tokenizer.Tokenizer, dict]:
  """(model, tokenizer, parameters) of a model directory.

  Args:
    directory: written by the stage `convert` or by training, or 'random' for
      small random weights that show that everything runs.
    step: None for the newest.
    compute, layout: how and where.
    scalar: whether a random model has a scalar head.
    seed: of random weights.
  """
  if not directory:
    raise UserError(
      "config.checkpoint is empty; give a directory, or 'random' (to train a "
      "model also 'scratch')"
    )
  if directory == RANDOM:
    model = Transformer(model_config.named('tiny'), compute, layout, scalar)
    with tempfile.TemporaryDirectory() as made:
      # Only the first process writes the file, but each gets what was trained.
      words = tiny_tokenizer.train(os.path.join(made, TOKENIZER))
    return model, words, random(model, seed)
  model = build(directory, step, compute, layout)
  words = load_tokenizer(directory, model.size)
  return model, words, load_params(directory, step, model)


def write_tiny_tokenizer(target: str) -> None:
  """The tokenizer of size `tiny`, for random models."""
  tiny_tokenizer.train(os.path.join(target, TOKENIZER))


def random(model: Transformer, seed: int) -> dict:
  """Random parameters; the same for a seed whatever the mesh."""
  return model_init.init_params(model, jax.random.key(seed))


def scratch(
  size: str,
  lines: Iterable[str],
  target: str,
  compute: ComputeConfig,
  layout: ShardingLayout,
  seed: int,
) -> tuple[Transformer, tokenizer.Tokenizer, dict]:
  """A new model and a tokenizer trained on these lines.

  Args:
    size: a name in model/config.py, whose vocabulary is the tiny tokenizer's.
    lines: text.
    target: the model directory, which gets the tokenizer.
    compute, layout: how and where.
    seed: of the weights.

  Raises:
    UserError: another size of vocabulary.
  """
  model = Transformer(model_config.named(size), compute, layout)
  if model.size.vocab_size != tiny_tokenizer.VOCAB_SIZE:
    raise UserError(
      f'config.size={size} has a vocabulary of {model.size.vocab_size}, a '
      f'tokenizer that is trained has {tiny_tokenizer.VOCAB_SIZE}; give '
      'config.checkpoint=DIR'
    )
  words = tiny_tokenizer.train(os.path.join(target, TOKENIZER), lines)
  return model, words, _fresh(random(model, seed))


def _fresh(params: dict) -> dict:
  """Random parameters, made easier to train.

  Gemma-2 normalises what a layer adds. With scales of 1 from the start, what is
  random drowns the token itself after a few layers; a tiny model comes to the
  same loss in a tenth fewer steps where they begin at 0.3.
  """

  def begin(path, x):
    post = path[-1].key == 'scale' and path[-2].key.startswith('post')
    return x + (_POST_SCALE - 1.0) if post else x

  return jax.tree_util.tree_map_with_path(begin, params)
