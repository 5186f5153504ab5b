"""Inputs of GRPO runs in tests: a policy that guesses, and pairs to judge.

The policy's tokenizer has a token for each of two score texts. Its parameters
make these tokens and the end of a turn likely everywhere, so that about a third
of its generations are right. It can learn the right token in a few steps.
"""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

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
  'response_order': 'fixed',
  'prompts_per_rollout': 16,
  'group_size': 4,
  'batch.micro_batch_prompts': 16,
  'batch.prompt_buckets': (32,),
  'batch.generation_buckets': (8,),
  'rollout.concurrent_prompts': 16,
  'rollout.generations_per_prompt': 4,
  'rollout.decode_steps_per_call': 4,
  'steps': STEPS,
  'optimizer.learning_rate': 1.5e-2,
  'optimizer.warmup_steps': 1,
  'save_every': 2,
  'log_samples_every': 4,
  'evaluation.every': 4,
  'evaluation.k': 2,
  'evaluation.max_parse_failure_rate': 1.0,
}
TEMPLATE = (
  '{% for turn in query %}{{ turn.text }}{% endfor %}'
  '{% for response in responses %} {{ response }}{% endfor %}'
)


def write_rows(path, count):
  """Writes pairs whose first response is always the best."""
  rows = [
    {'id': f'e{i}', 'query': f'{i}?', 'responses': ['a', 'b'], 'best': 0}
    for i in range(count)
  ]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def write_model(path, seed=0, likely=9.0, **changes):
  """Writes a model directory; compiles nothing.

  Args:
    path: the folder.
    seed: seed of the parameters.
    likely: how much likelier the two score texts and the end of a turn are
      than other tokens, in logits.
    **changes: fields of ModelConfig.
  """
  with pytest.MonkeyPatch.context() as patch:
    symbols = [*tiny_tokenizer._SYMBOLS, RIGHT, WRONG]
    patch.setattr(tiny_tokenizer, '_SYMBOLS', symbols)
    tokenizer = tiny_tokenizer.train(path / 'tokenizer.model')
  config = dataclasses.replace(
    tiny.CONFIG,
    num_layers=2,
    vocab_size=model_config.from_name('tiny').vocab_size,
    final_softcap=30.0,
    **changes,
  )
  model = Transformer(config, ComputeConfig(), mesh.one_device())
  params = jax.tree_util.tree_map_with_path(
    _remove_layers, tiny.params(model, seed)
  )
  table = np.array(params['embedder']['table']) + 0.1
  ids = [tokenizer.encode(x) for x in (RIGHT, WRONG)]
  assert all(len(x) == 1 for x in ids)
  # All hidden states have one direction, and these rows have it most.
  table[[*sum(ids, []), tokenizer.end_of_turn_id]] += likely / config.width
  params['embedder']['table'] = jax.numpy.asarray(table)
  model_directory.save(str(path), 0, model, params, {})


def _remove_layers(path, x):
  """Makes parameters small and layers add nothing: norms scale by 1 - 1."""
  is_post = path[-2].key.startswith('post')
  return 0.0 * x - 1.0 if is_post else 0.1 * x


@dataclasses.dataclass(frozen=True)
class GRPORunner:
  """Runs configs/grpo.py:tiny with the settings of the tests.

  Attributes:
    folder: folder with the inputs.
    settings: overrides for all runs, by key.
  """

  folder: pathlib.Path
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
    """Runs in this process, on one of its devices."""
    from_config = mesh.from_config

    def on_one_device(config, devices=None, weights=None):
      return from_config(config, jax.devices()[:1], weights)

    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(mesh, 'from_config', on_one_device)
      grpo_train.run(self.config(**changes), str(workdir))


def make_runner(folder):
  """Writes a base model, 20 training pairs and 8 held-out pairs."""
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
  return GRPORunner(folder, settings)
