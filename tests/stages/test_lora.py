"""Training stages with adapters: what they learn, store, resume and refuse.

GRPO runs in this process on one device, SFT and reward models as commands.
"""

import json
import shutil
import signal

import jax
import numpy as np
import pytest

from grm_jax.checkpoint import model_directory, orbax_checkpoint
from grm_jax.errors import UserError
from grm_jax.judges import factory as judge_factory
from grm_jax.model import lora
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.sampling import decode_weights
from grm_jax.sharding import mesh
from grm_jax.stages import convert
from grm_jax.stages.grpo.rollout import RolloutSampler
from tests import test_main
from tests.messages import naming, setting
from tests.processes import run_processes
from tests.stages.grpo import fixtures
from tests.stages.sft import test_train as sft_fixtures
from tests.stages.stage_runs import (
  StageRunner,
  assert_same_run,
  leaves,
  losses,
  params_of,
  rows_of,
  steps_in,
  wait_for,
  write_adapter,
  write_model,
)
from tests.stages.test_convert import load_config

CHANGES = {
  'lora.rank': 4,
  'lora.base_dtype': 'float32',
  'steps': 8,
  'optimizer.kind': 'adamw',
  'optimizer.learning_rate': 4e-3,
  'evaluation.data': '',
  'log_samples_every': 0,
}


def write_base(path):
  """Writes the model of the GRPO tests with layers that have an effect."""
  fixtures.write_model(path)
  model = model_directory.build_model(
    str(path), 0, ComputeConfig(), mesh.one_device()
  )
  params = model_directory.load_params(str(path), 0, model)
  for layer in params['pairs'].values():
    for name in ('post_attention_norm', 'post_mlp_norm'):
      layer[name]['scale'] += 0.1  # was -1: the layer was multiplied by 0
  shutil.rmtree(path / '0')
  model_directory.save(str(path), 0, model, params, {})


@pytest.fixture(scope='module')
def runner(tmp_path_factory):
  folder = tmp_path_factory.mktemp('fixtures')
  runner = fixtures.make_runner(folder)
  write_base(folder / 'layers')
  runner.settings.update(CHANGES, checkpoint=f'{folder}/layers')
  return runner


@pytest.fixture(scope='module')
def clean_run(runner, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('clean_run')
  runner.run(workdir)
  return workdir


def arrays_of(directory):
  return orbax_checkpoint.read_json(directory, 'index')['arrays']


def test_grpo_starts_at_its_reference(clean_run):
  rows = rows_of(clean_run)
  assert rows[0]['kl'] == 0 and rows[-1]['kl'] > 1e-3
  # The sampler has the sum of the base and the adapter.
  for row in rows:
    assert 0 < row['logp_diff_max'] < 1e-4


def test_checkpoints_have_the_adapter_alone(runner, clean_run):
  model = str(clean_run / 'model')
  arrays = arrays_of(model)
  assert {x.rsplit('/', 1)[1] for x in arrays['params']} == {'a', 'b'}
  assert len(arrays['params']) == 2 * 2 * 7
  trained = {x for x in arrays['opt_state'] if '/mu/' in x}
  assert len(trained) == len(arrays['params'])
  item = orbax_checkpoint.read_json(model, 'model')['adapter']
  assert item['base'] == f'{runner.folder}/layers' and item['base_step'] == 0
  assert item['rank'] == 4
  # Whoever opens it gets the sum, which differs from the base.
  merged, base = (
    leaves(model_directory.load_params(x, None, m))
    for x in (model, item['base'])
    for m in [
      model_directory.build_model(x, None, ComputeConfig(), mesh.one_device())
    ]
  )
  assert len(merged) == len(base)
  different = [
    not np.array_equal(a, b) for a, b in zip(merged, base, strict=True)
  ]
  assert sum(different) == 2 * 7


def test_a_killed_run_ends_with_the_same_bits(
  runner, clean_run, tmp_path, monkeypatch
):
  sample, calls = RolloutSampler.sample, []

  def stop_in_the_fifth(self, *args, **options):
    calls.append(1)
    if len(calls) == 5:
      signal.raise_signal(signal.SIGTERM)
    return sample(self, *args, **options)

  with monkeypatch.context() as patch:
    patch.setattr(RolloutSampler, 'sample', stop_in_the_fifth)
    runner.run(tmp_path)
  assert steps_in(tmp_path)[-1] == 4
  runner.run(tmp_path)
  assert_same_run(tmp_path, clean_run)


def test_another_base_is_refused_by_name(runner, clean_run, tmp_path):
  shutil.copytree(clean_run, tmp_path / 'run')
  base = runner.folder / 'layers'
  moved = tmp_path / 'moved'
  base.rename(moved)
  try:
    with pytest.raises(UserError, match=naming('base', base)):
      params_of(tmp_path / 'run')
    fixtures.write_model(base, seed=5)
    with pytest.raises(UserError, match=naming(base, 'trained on')):
      params_of(tmp_path / 'run')
    # The merged model needs its base where it is now.
    target = tmp_path / 'merged'
    config = load_config(
      source=f'{tmp_path}/run/model', target=str(target), base=str(moved)
    )
    convert.run(config, '')
  finally:
    shutil.rmtree(base, ignore_errors=True)
    moved.rename(base)
  merged = orbax_checkpoint.read_json(target, 'model')
  assert 'adapter' not in merged
  for a, b in zip(
    leaves(params_of(tmp_path / 'run')),
    leaves(open_params(target)),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)


def open_params(directory):
  model = model_directory.build_model(
    str(directory), None, ComputeConfig(), mesh.one_device()
  )
  # Whichever adapter the model has, that of the directory is merged.
  model = model.clone(adapter=None)
  return model_directory.load_params(str(directory), None, model)


def test_folders_that_move_together(tmp_path):
  """A chain: an adapter on an adapter on a model."""
  write_model(tmp_path / 'old/base')
  write_adapter(tmp_path / 'old/one', tmp_path / 'old/base')
  write_adapter(tmp_path / 'old/two', tmp_path / 'old/one')
  expected = leaves(open_params(tmp_path / 'old/two'))
  (tmp_path / 'old').rename(tmp_path / 'new')
  moved = leaves(open_params(tmp_path / 'new/two'))
  for a, b in zip(moved, expected, strict=True):
    np.testing.assert_array_equal(a, b)
  # The base of the chain alone moves: its new path is found by the digest.
  (tmp_path / 'new/base').rename(tmp_path / 'elsewhere')
  with pytest.raises(UserError, match=naming(tmp_path / 'new/one', 'base')):
    model_directory.check_readable(f'{tmp_path}/new/two', None)
  convert.run(
    load_config(
      source=f'{tmp_path}/new/two',
      target=f'{tmp_path}/merged',
      base=f'{tmp_path}/elsewhere',
    ),
    '',
  )
  merged = leaves(open_params(tmp_path / 'merged'))
  for a, b in zip(merged, expected, strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('base_dtype', ['bfloat16', 'int8'])
def test_small_changes_arrive_in_the_base_of_the_next_adapter(
  tmp_path, base_dtype
):
  first, second = tmp_path / 'first', tmp_path / 'second'
  write_model(tmp_path / 'base')
  options = {'base_dtype': base_dtype, 'size': 2e-3}
  model, trained = write_adapter(first, tmp_path / 'base', **options)
  next_model, _ = write_adapter(second, first, **options)
  frozen = model_directory.load_base(str(first), model)
  before = kernels(frozen)
  change = kernels(lora.attach(model.adapter, frozen, trained)) - before
  after = kernels(model_directory.load_base(str(second), next_model))
  assert (after - before) @ change / (change @ change) == pytest.approx(
    1, abs=0.1
  )


def kernels(params):
  """Returns all kernels of layers in float64, with their adapters."""
  leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=lora.is_weight)
  return np.concatenate(
    [
      np.asarray(
        jax.lax.map(
          lambda w, name=path[-1].key: lora.merge(name, w, 'float32'), x
        ),
        np.float64,
      ).ravel()
      for path, x in leaves
      if path[-1].key in lora.TARGETS
    ]
  )


def test_peft_needs_the_base_in_its_format(tmp_path):
  write_model(tmp_path / 'base')
  write_adapter(tmp_path / 'one', tmp_path / 'base')
  config = load_config(
    source=f'{tmp_path}/one',
    target=f'{tmp_path}/peft',
    direction='peft',
    base='google/gemma-2-2b-it',
  )
  with pytest.raises(UserError, match=naming('config.base', 'huggingface')):
    convert.run(config, '')
  convert.run(
    load_config(
      source=f'{tmp_path}/base',
      target=f'{tmp_path}/exported',
      direction='huggingface',
    ),
    '',
  )
  config.base = f'{tmp_path}/exported'
  convert.run(config, '')
  assert (tmp_path / 'peft/adapter_config.json').exists()


def test_a_run_resumes_with_a_base_that_moved(runner, clean_run, tmp_path):
  shutil.copytree(clean_run, tmp_path / 'run')
  base, moved = runner.folder / 'layers', tmp_path / 'moved'
  base.rename(moved)
  try:
    runner.run(tmp_path / 'run', checkpoint=str(moved))
  finally:
    moved.rename(base)
  assert_same_run(tmp_path / 'run', clean_run)


def test_an_adapter_of_peft_and_back(clean_run, tmp_path, capsys):
  source = f'{clean_run}/model'
  config = load_config(
    source=source,
    target=f'{tmp_path}/peft',
    direction='peft',
    base=f'{tmp_path}',
    verify=True,
  )
  convert.run(config, '')
  fields = json.loads((tmp_path / 'peft/adapter_config.json').read_text())
  assert fields['base_model_name_or_path'] == f'{tmp_path}'
  assert (fields['r'], fields['lora_alpha']) == (4, 32.0)
  base = orbax_checkpoint.read_json(source, 'model')['adapter']['base']
  config = load_config(
    source=f'{tmp_path}/peft', target=f'{tmp_path}/back', base=base, verify=True
  )
  convert.run(config, '')
  lines = [x for x in capsys.readouterr().out.splitlines() if 'verify' in x]
  assert len(lines) == 2 and all(float(x.split()[-1]) < 1e-5 for x in lines)
  sums = [
    {k: v['checksum'] for k, v in arrays_of(x)['params'].items()}
    for x in (source, tmp_path / 'back')
  ]
  assert sums[0] == sums[1]


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'lora.targets': ()}, ['config.lora.targets', 'query']),
    (
      {'optimizer.offload_to_host': True},
      ['config.optimizer.offload_to_host', 'lora.rank'],
    ),
    ({'lora.rank': -1}, setting('lora.rank', -1)),
    ({'lora.base_dtype': 'int4'}, setting('lora.base_dtype', 'int4')),
    ({'lora.targets': ('q_proj',)}, ['config.lora.targets', 'query']),
  ],
)
def test_wrong_settings_are_named(runner, tmp_path, changes, words):
  with pytest.raises(UserError, match=naming(*words)):
    runner.run(tmp_path, **changes)
  assert not steps_in(tmp_path)


def test_a_run_keeps_its_adapter(runner, clean_run, tmp_path):
  shutil.copytree(clean_run, tmp_path / 'run')
  with pytest.raises(UserError, match=naming('lora.rank')):
    runner.run(tmp_path / 'run', **{'lora.rank': 0, 'steps': 10})
  with pytest.raises(UserError, match=naming('lora.rank')):
    runner.run(tmp_path / 'run', **{'lora.rank': 8, 'steps': 10})


@pytest.mark.parametrize('int8, difference', [(False, 1e-4), (True, 0.02)])
def test_an_int8_base(runner, tmp_path, int8, difference):
  changes = {'lora.base_dtype': 'int8', 'rollout.int8': int8, 'steps': 2}
  runner.run(tmp_path, **changes)
  rows = rows_of(tmp_path)
  assert rows[0]['kl'] == 0 and rows[1]['grad_norm'] > 0
  for row in rows:  # the int8 sampler also rounds the embedding table
    assert row['logp_diff_max'] < difference
  assert {x.dtype for x in leaves(params_of(tmp_path))} == {
    jax.numpy.bfloat16.dtype
  }


@pytest.fixture(scope='module')
def sft_runner(tmp_path_factory):
  """Runs of SFT with adapters on a base model of small random weights."""
  folder = tmp_path_factory.mktemp('sft')
  sft_fixtures.write_texts(folder / 'texts.jsonl')
  write_model(folder / 'base')
  settings = sft_fixtures.SETTINGS | {
    'checkpoint': f'{folder}/base',
    'data.texts': f'texts:{folder}/texts.jsonl',
    'optimizer.learning_rate': 2e-2,
    'optimizer.schedule': 'constant',
    'lora.rank': 4,
    'steps': 10,
  }
  return StageRunner(
    'configs/sft.py', folder, settings, test_main.environment()
  )


@pytest.fixture(scope='module')
def sft_run(sft_runner, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('sft_run')
  sft_runner.run(workdir)
  return workdir


def test_sft_learns_with_a_bfloat16_base(sft_run):
  assert losses(sft_run)[-1] < 0.8 * losses(sft_run)[0]
  arrays = arrays_of(sft_run / 'model')['params']
  assert {x['dtype'] for x in arrays.values()} == {'float32'}


def test_sigkill_and_resume_bit_for_bit(sft_runner, sft_run, tmp_path):
  process = sft_runner.start(tmp_path)
  wait_for(process, lambda: (tmp_path / 'model/5').exists())
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert process.returncode == -signal.SIGKILL
  assert steps_in(tmp_path) == [5]
  sft_runner.run(tmp_path)
  assert_same_run(tmp_path, sft_run)


def test_two_processes_train_as_one(sft_runner, sft_run, tmp_path):
  run = ['-m', 'grm_jax.main', *sft_runner.arguments(steps=4)]
  run_processes([*run, f'--workdir={tmp_path}'], devices=1)
  expected = losses(sft_run)[:4]
  assert expected[3] < 0.9 * expected[0]
  np.testing.assert_allclose(losses(tmp_path), expected, atol=1e-4)


def test_a_reward_model_on_a_tuned_model(sft_runner, sft_run, tmp_path):
  """Its base is the sum of a base and an adapter; the scalar judge reads it."""
  rows = tmp_path / 'rows.jsonl'
  fixtures.write_rows(rows, 16)
  test_main.run(
    '--config=configs/reward_model.py:tiny',
    '--config.kind=bradley_terry',
    '--config.samples=',
    f'--config.data={rows}',
    f'--config.checkpoint={sft_run}/model',
    '--config.lora.rank=2',
    '--config.batch.prompt_buckets=(32,)',
    '--config.batch.generation_buckets=(16,)',
    '--config.batch.generations_per_prompt=2',
    '--config.batch.micro_batch_prompts=8',
    '--config.batch.texts_per_step=16',
    '--config.steps=4',
    '--config.optimizer.warmup_steps=0',
    '--config.evaluation.holdout_fraction=0.0',
    f'--workdir={tmp_path}/rm',
    env=sft_runner.environment,
  )
  arrays = arrays_of(tmp_path / 'rm/model')['params']
  assert {x.split('/')[0] for x in arrays} == {'pairs', 'value_head'}
  adapter = orbax_checkpoint.read_json(tmp_path / 'rm/model', 'model')[
    'adapter'
  ]
  assert adapter['base'] == f'{sft_run}/model'
  test_main.run(
    '--config=configs/score.py:tiny',
    '--config.judge=scalar',
    f'--config.checkpoint={tmp_path}/rm/model',
    f'--config.input={rows}',
    f'--workdir={tmp_path}/scores',
    env=sft_runner.environment,
  )
  scores = (tmp_path / 'scores/scores.jsonl').read_text().splitlines()
  assert len(scores) == 16 and all(json.loads(x)['votes'] for x in scores)


@pytest.mark.parametrize('base_dtype', ['bfloat16', 'int8'])
@pytest.mark.parametrize('int8', [False, True])
def test_weights_that_a_judge_reads(tmp_path, base_dtype, int8):
  """They are those that rollouts would have: no change is rounded away."""
  write_model(tmp_path / 'base')
  compute = ComputeConfig(dtype='bfloat16')
  model, trained = write_adapter(
    tmp_path / 'adapter', tmp_path / 'base', base_dtype=base_dtype
  )
  model = model.clone(compute=compute)
  whole = lora.attach(
    model.adapter,
    model_directory.load_base(str(tmp_path / 'adapter'), model),
    trained,
  )
  expected, _ = decode_weights.place(model, whole, int8)
  weights = judge_factory.load_weights(
    str(tmp_path / 'adapter'), None, model.clone(adapter=None), int8
  )
  assert jax.tree.structure(weights) == jax.tree.structure(expected)
  for x, y in zip(
    jax.tree.leaves(weights), jax.tree.leaves(expected), strict=True
  ):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(x, y)
