"""What the runs of GRPO in tests begin with: a judge that guesses.

Its tokenizer has each of two verdicts as one token, and its parameters make
these and the end of a turn likely everywhere: about a third of what it writes
is right, and which token is right it can learn in a few steps.
"""

import contextlib
import dataclasses
import json

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from grm_jax.checkpoint import model_directory
from grm_jax.model import config as model_config
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.model.transformer import Transformer
from grm_jax.sharding import mesh
from grm_jax.stages.grpo import train as grpo_train
from grm_jax.tokenizer import tiny as tiny_tokenizer
from tests import test_configs, test_main
from tests.model import tiny

RIGHT, WRONG = r'\boxed{9,2}', r'\boxed{2,9}'
STEPS = 16
SETTINGS = {
  'order': 'fixed',
  'prompts': 16,
  'group_size': 4,
  'batch.micro_batch_prompts': 16,
  'batch.prompt_buckets': (32,),
  'batch.generation_buckets': (8,),
  'rollout.prompts': 16,
  'rollout.generations_per_prompt': 4,
  'rollout.decode_steps_per_call': 4,
  'steps': STEPS,
  'optimizer.learning_rate': 1.5e-2,
  'optimizer.warmup_steps': 1,
  'save_every': 2,
  'texts_every': 4,
  'evaluation.every': 4,
  'evaluation.k': 2,
  'evaluation.max_parse_failure_rate': 1.0,
}
TEMPLATE = (
  '{% for turn in query %}{{ turn.text }}{% endfor %}'
  '{% for response in responses %} {{ response }}{% endfor %}'
)


def write_rows(path, count):
  """Pairs, of which the first response is always the best."""
  rows = [
    {'id': f'e{i}', 'query': f'{i}?', 'responses': ['a', 'b'], 'best': 0}
    for i in range(count)
  ]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def write_model(path, seed=0, likely=9.0, **changes):
  """A model directory; compiles nothing."""
  with pytest.MonkeyPatch.context() as patch:
    symbols = [*tiny_tokenizer._SYMBOLS, RIGHT, WRONG]
    patch.setattr(tiny_tokenizer, '_SYMBOLS', symbols)
    words = tiny_tokenizer.train(path / 'tokenizer.model')
  size = dataclasses.replace(
    tiny.SIZE,
    num_layers=2,
    vocab_size=model_config.named('tiny').vocab_size,
    final_softcap=30.0,
    **changes,
  )
  model = Transformer(size, ComputeConfig(), mesh.one_device())
  params = jax.tree_util.tree_map_with_path(_quiet, tiny.params(model, seed))
  table = np.array(params['embedder']['table']) + 0.1
  ids = [words.encode(x) for x in (RIGHT, WRONG)]
  assert all(len(x) == 1 for x in ids)
  # All hidden states point the same way, and so do these rows most.
  table[[*sum(ids, []), words.end_of_turn]] += likely / size.width
  params['embedder']['table'] = jax.numpy.asarray(table)
  model_directory.save(str(path), 0, model, params, {})


def _quiet(path, x):
  """Small, and layers add nothing: norms multiply by 1 + scale."""
  is_post = path[-2].key.startswith('post')
  return 0.0 * x - 1.0 if is_post else 0.1 * x


@dataclasses.dataclass(frozen=True)
class Given:
  """What all runs begin with."""

  folder: object
  settings: dict

  def arguments(self, **changes):
    settings = self.settings | changes
    return ['--config=configs/grpo.py:tiny'] + [
      f'--config.{key}={value}' for key, value in settings.items()
    ]

  def config(self, **changes):
    config = test_configs.load(test_main.ROOT / 'configs/grpo.py', 'tiny')
    config.update_from_flattened_dict(self.settings | changes)
    return config

  def run(self, workdir, **changes):
    """A run in this process, on one of its devices."""
    whole = mesh.from_config

    def on_one(config, devices=None, weights=None):
      return whole(config, jax.devices()[:1], weights)

    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(mesh, 'from_config', on_one)
      grpo_train.run(self.config(**changes), str(workdir))


@contextlib.contextmanager
def compiled_once(folder):
  """What one run in this process compiles the next ones read."""
  settings = {
    'jax_compilation_cache_dir': str(folder),
    'jax_persistent_cache_min_compile_time_secs': 0.0,
    'jax_persistent_cache_min_entry_size_bytes': -1,
  }
  before = {name: getattr(jax.config, name) for name in settings}
  for name, value in settings.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


def given(folder):
  """A base model, 20 pairs to train on, 8 that are held out."""
  write_model(folder / 'base')
  write_rows(folder / 'rows.jsonl', 20)
  write_rows(folder / 'held_out.jsonl', 8)
  (folder / 'template.txt').write_text(TEMPLATE)
  settings = SETTINGS | {
    'checkpoint': f'{folder}/base',
    'data': f'{folder}/rows.jsonl',
    'evaluation.data': f'{folder}/held_out.jsonl',
    'prompt.template': f'{folder}/template.txt',
  }
  return Given(folder, settings)
