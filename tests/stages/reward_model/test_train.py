"""Training scalar heads from the command line, on rules that are easy.

The runs share what XLA compiled; most tests look at the same few of them.
"""

import json
import signal

import jax
import numpy as np
import pytest

from grm_jax.checkpoint import model_directory, orbax_checkpoint
from grm_jax.errors import UserError
from grm_jax.judgement.example import from_row
from grm_jax.judgement.judgement import JudgedExample, Judgement
from grm_jax.judges import factory as judge_factory
from grm_jax.judges.baselines.scalar_rm import MetaJudge
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.sampling.scalar_scorer import ScalarScorer
from grm_jax.sharding import mesh
from grm_jax.stages.reward_model import train as rm_train
from tests import test_main
from tests.judges.fake import words
from tests.messages import lines_with, names, naming, setting
from tests.model import tiny
from tests.processes import HANG
from tests.stages import printed
from tests.stages.given import Given
from tests.stages.sft.test_train import (
  leaves,
  lines_of,
  params_of,
  results,
  rows_of,
  steps_in,
  wait_for,
  write_model,
)

STEPS = 24
SETTINGS = {
  'prompt.single': 'single',
  'batch.micro_batch_prompts': 8,
  'batch.prompt_buckets': (192,),
  'batch.generation_buckets': (16,),
  'steps': STEPS,
  'optimizer.learning_rate': 2e-3,
  'optimizer.warmup_steps': 2,
  'save_every': 5,
  'evaluation.holdout_fraction': 0.2,
  'evaluation.every': 10,
  'evaluation.prompts': 8,
}


def write(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def judgement(right, best):
  """What is said where the best response stands at place `best`."""
  word = 'sure' if right else 'perhaps'
  return rf'{word} \boxed{{{"9, 2" if right == (best == 0) else "2, 9"}}}'


def write_data(folder):
  """40 pairs whose best response says yes, and four judgements of each.

  One or two of the four are right, which are sure of themselves.
  """
  rng = np.random.default_rng(0)
  rows, samples = [], []
  for i in range(40):
    best = int(rng.integers(2))
    responses = ['yes yes yes' if x == best else 'no no' for x in range(2)]
    name = f'e{i}'
    row = {'id': name, 'query': f'{i}?', 'responses': responses, 'best': best}
    rows.append(row)
    for right in rng.permutation(4) <= i % 2:
      order = [0, 1] if rng.integers(2) else [1, 0]
      text = judgement(right, order.index(best))
      samples.append({'id': name, 'order': order, 'text': text})
  write(folder / 'rows.jsonl', rows)
  write(folder / 'samples.jsonl', samples)


@pytest.fixture(scope='module')
def given(tmp_path_factory):
  made = tmp_path_factory.mktemp('given')
  write_data(made)
  write_model(made / 'base')
  settings = SETTINGS | {
    'checkpoint': f'{made}/base',
    'data': f'{made}/rows.jsonl',
    'samples': f'{made}/samples.jsonl',
  }
  environment = test_main.environment(made / 'cache')
  return Given('configs/reward_model.py', made, settings, environment)


@pytest.fixture(scope='module')
def calm(given, tmp_path_factory):
  """(workdir, stdout) of a run that nothing disturbs."""
  workdir = tmp_path_factory.mktemp('calm')
  return workdir, given.run(workdir)[0]


def test_it_learns_which_judgements_are_right(calm):
  workdir, stdout = calm
  rows = [x for x in rows_of(workdir) if 'loss' in x]
  assert [x['step'] for x in rows] == list(range(1, STEPS + 1))
  # A new head says 1/2 of everything.
  assert rows[0]['loss'] == pytest.approx(np.log(2), abs=1e-4)
  assert rows[0]['right_value'] == rows[0]['wrong_value'] == 0
  assert rows[-1]['loss'] < 0.3 and rows[-1]['accuracy'] > 0.9
  assert rows[-1]['right_value'] > 1 and rows[-1]['wrong_value'] < -1
  for row in rows:
    assert row['grad_norm'] > 0 and row['param_norm'] > 0
    assert 0 < row['padding/prompts'] < 1 and row['tokens_per_second'] > 0
    assert 'count' not in row and row['learning_rate'] > 0
  # 8 of 40 queries are held out.
  assert len(lines_with(stdout, 'AUC')) == 3
  assert lines_with(stdout, STEPS, 'judged')
  assert steps_in(workdir) == [20, STEPS]


def test_held_out_figures(calm):
  workdir, stdout = calm
  found = [x for x in rows_of(workdir) if 'held_out/auc' in x]
  assert [x['step'] for x in found] == [10, 20, STEPS]
  last = {k.removeprefix('held_out/'): v for k, v in found[-1].items()}
  assert last['auc'] > 0.9 and last['accuracy'] > 0.8
  assert last['log_loss'] < 0.5 and 0 <= last['calibration_error'] < 0.4
  assert 1 / 4 < last['right'] < 1 / 2
  # One of four that is right is outvoted, two of four are a tie.
  assert last['votes_examples'] == 8 and last['count'] == 32
  assert last['voting_4'] < 0.5 < last['guided_4'] < last['best_of_4']
  assert last['best_of_4'] > 0.9
  assert (workdir / 'calibration.png').read_bytes().startswith(b'\x89PNG')
  line = lines_with(stdout, 'AUC')[-1]
  shown = 'auc', 'accuracy', 'voting_4', 'guided_4', 'best_of_4'
  assert names(line, STEPS, *(f'{last[name]:.3f}' for name in shown))


def opened(directory):
  return model_directory.open_model(
    str(directory), None, ComputeConfig(), mesh.one_device(), scalar=True
  )


def test_the_directory_is_a_meta_rm(given, calm):
  """Judged by what MetaJudge says of judgements, of orders of its own."""
  model, tokenizer, params = opened(calm[0] / 'model')
  assert model.scalar
  values = ScalarScorer(model, params, prompts=2, buckets=(192,), size=16)
  row = json.loads((given.folder / 'rows.jsonl').read_text().splitlines()[0])
  example = from_row(
    row | {'best': 0, 'responses': ['yes yes yes', 'no no']}, 0
  )
  samples = tuple(
    Judgement(order, judgement(right, order.index(0)), 9, 'stop', None)
    for order in ((0, 1), (1, 0))
    for right in (True, False)
  )
  # Its checkpoint says what it reads before a judgement.
  asked = judge_factory.meta_template_of(str(calm[0] / 'model'))
  assert asked == 'practice_meta'
  # One that was converted, or trained by something else, does not say.
  assert judge_factory.meta_template_of(str(given.folder / 'base')) == 'meta'
  rated = MetaJudge(values, tokenizer, asked).rate(
    JudgedExample(example, samples)
  )
  right, wrong, right_too, wrong_too = (x.meta for x in rated.samples)
  assert min(right, right_too) > 0 > max(wrong, wrong_too)


def test_it_scores_and_is_exported(given, calm, tmp_path):
  """The command lines that README names."""
  model = calm[0] / 'model'
  write(
    tmp_path / 'rows.jsonl',
    [{'query': '3?', 'responses': ['yes yes yes', 'no no']}],
  )
  test_main.run(
    '--config=configs/score.py:tiny',
    f'--config.checkpoint={given.folder}/base',
    f'--config.meta_checkpoint={model}',
    f'--config.input={tmp_path}/rows.jsonl',
    '--config.vote=guided',
    '--config.k=2',
    '--config.sampling.max_new_tokens=8',
    '--config.sampling.decode_steps_per_call=4',
    '--config.sampling.prompt_buckets=(1024,)',
    f'--workdir={tmp_path}',
    env=given.environment,
  )
  (row,) = (tmp_path / 'scores.jsonl').read_text().splitlines()
  assert all(isinstance(x['meta'], float) for x in json.loads(row)['samples'])
  test_main.run(
    '--config=configs/convert.py',
    '--config.direction=huggingface',
    f'--config.source={model}',
    f'--config.target={tmp_path}/theirs',
    env=given.environment,
  )
  config = json.loads((tmp_path / 'theirs/config.json').read_text())
  assert config['architectures'] == ['Gemma2ForSequenceClassification']


def test_stopped_and_started_again_it_ends_bit_for_bit_the_same(
  given, calm, tmp_path
):
  process = given.begin(tmp_path)
  wait_for(process, lambda: lines_of(tmp_path / 'metrics.jsonl') >= 5)
  process.send_signal(signal.SIGTERM)
  stdout, _ = process.communicate(timeout=HANG)
  assert process.returncode == 0
  stopped = steps_in(tmp_path)[-1]
  assert 5 <= stopped < STEPS
  assert lines_with(stdout, printed.STOPPED, stopped, STEPS)
  given.run(tmp_path)
  assert results(tmp_path) == results(calm[0])
  for a, b in zip(
    *(leaves(params_of(x)) for x in (calm[0], tmp_path)), strict=True
  ):
    assert a.tobytes() == b.tobytes()
  one, two = (
    orbax_checkpoint.read_json(x / 'model', 'meta', STEPS)
    for x in (calm[0], tmp_path)
  )
  assert one == two and one['labels']


def test_it_does_not_go_on_with_other_labels(given, calm, tmp_path):
  """The same tokens, of which another response is the best."""
  rows = [
    json.loads(x)
    for x in (given.folder / 'rows.jsonl').read_text().splitlines()
  ]
  write(
    tmp_path / 'rows.jsonl', [row | {'best': 1 - row['best']} for row in rows]
  )
  config = given.config(data=f'{tmp_path}/rows.jsonl')
  labels = orbax_checkpoint.read_json(calm[0] / 'model', 'meta', STEPS)[
    'labels'
  ]
  with pytest.raises(UserError, match=naming(calm[0] / 'model', labels)):
    rm_train.run(config, str(calm[0]))


def test_a_run_that_is_done_changes_nothing(given, calm, capsys):
  before = (calm[0] / 'metrics.jsonl').read_bytes()
  rm_train.run(given.config(), str(calm[0]))
  assert lines_with(capsys.readouterr().out, calm[0] / 'model', STEPS)
  assert (calm[0] / 'metrics.jsonl').read_bytes() == before


BASELINES = {
  'bradley_terry': {'batch.prompt_buckets': (32,), 'batch.grad_accum_steps': 2},
  # A batch has more of one label or the other, which is learnt first.
  'pair': {
    'batch.prompt_buckets': (136,),
    'optimizer.kind': 'adamw',
    'optimizer.learning_rate': 6e-3,
    'steps': 36,
  },
}


@pytest.mark.parametrize('kind', BASELINES)
def test_baselines_from_examples_alone(given, tmp_path, kind):
  stdout, _ = given.run(tmp_path, kind=kind, samples='', **BASELINES[kind])
  rows = rows_of(tmp_path)
  assert rows[0]['loss'] == pytest.approx(np.log(2), abs=1e-4)
  assert rows[-2]['loss'] < 0.4 and rows[-2]['accuracy'] > 0.9
  assert rows[-1]['held_out/accuracy'] > 0.8 and rows[-1]['held_out/auc'] > 0.8
  assert lines_with(stdout, 'AUC')
  assert (tmp_path / 'calibration.png').exists()
  # The judge of this kind says the same.
  write(
    tmp_path / 'new.jsonl',
    [{'query': '77?', 'responses': ['yes yes yes', 'no no']}],
  )
  judge = {'bradley_terry': 'scalar', 'pair': 'pair'}[kind]
  test_main.run(
    '--config=configs/score.py:tiny',
    f'--config.checkpoint={tmp_path}/model',
    f'--config.judge={judge}',
    f'--config.input={tmp_path}/new.jsonl',
    '--config.sampling.prompt_buckets=(192,)',
    '--config.sampling.max_new_tokens=16',
    f'--workdir={tmp_path}',
    env=given.environment,
  )
  row = json.loads((tmp_path / 'scores.jsonl').read_text())
  assert row['best'] == 0 and row['votes'][0] > row['votes'][1]


def test_a_head_that_is_there_is_trained_on(given, tmp_path):
  write_model(tmp_path / 'scalar', scalar=True)
  model, _, params = rm_train._open(
    given.config(checkpoint=f'{tmp_path}/scalar'),
    str(tmp_path / 'run'),
    mesh.one_device(),
  )
  expected = 0.1 * tiny.params(model)['value_head']['kernel']
  np.testing.assert_array_equal(params['value_head']['kernel'], expected)
  assert np.abs(expected).max() > 0
  # A base has none, and its own parameters stay.
  _, tokenizer, params = rm_train._open(
    given.config(), str(tmp_path / 'other'), mesh.one_device()
  )
  assert not params['value_head']['kernel'].any()
  base, _, own = opened(given.folder / 'base')
  assert not base.scalar and 'value_head' not in own
  for a, b in zip(
    jax.tree.leaves(own),
    jax.tree.leaves({k: v for k, v in params.items() if k != 'value_head'}),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)
  assert tokenizer.encode('yes') == words().encode('yes')


BOTH = 'config.evaluation.data', 'config.evaluation.samples', 'x'
MISTAKES = [
  ({'kind': 'rank'}, (*setting('kind', 'rank'), 'bradley_terry')),
  ({'samples': ''}, ['config.samples']),
  ({'kind': 'pair'}, (*setting('kind', 'pair'), 'config.samples')),
  (
    {'kind': 'bradley_terry', 'samples': '', 'batch.generations_per_prompt': 1},
    (
      *setting('batch.generations_per_prompt', 1),
      *setting('kind', 'bradley_terry'),
    ),
  ),
  ({'evaluation.samples': 'x'}, BOTH),
  ({'evaluation.data': 'x'}, BOTH),
  (
    {'evaluation.holdout_fraction': 1.0},
    setting('evaluation.holdout_fraction', 1.0),
  ),
  ({'evaluation.prompts': 4}, (*setting('evaluation.prompts', 4), 8)),
  ({'prompt.single': 'nowhere'}, ['nowhere']),
  ({'checkpoint': 'scratch'}, setting('checkpoint', 'scratch')),
  ({'checkpoint': ''}, ['config.checkpoint']),
  ({'data': ''}, setting('data', "''")),
  (
    {'batch.micro_batch_prompts': 12},
    (*setting('batch.micro_batch_prompts', 12), 8),
  ),
  ({'batch.prompt_buckets': (64,)}, ['64']),
  ({'steps': 2}, setting('optimizer.warmup_steps', 2)),
  ({'keep': 0}, setting('keep', 0)),
]


@pytest.mark.parametrize('changes, words_', MISTAKES)
def test_mistakes(given, tmp_path, changes, words_):
  with pytest.raises(UserError, match=naming(*words_)) as caught:
    rm_train.run(given.config(**changes), str(tmp_path))
  assert '\n' not in str(caught.value)
  assert not steps_in(tmp_path)


def test_all_samples_are_right(given, tmp_path):
  rows = [json.loads(x) for x in (given.folder / 'rows.jsonl').open()]
  right = ['9, 2', '2, 9']
  write(
    tmp_path / 'samples.jsonl',
    [{'id': x['id'], 'text': rf'\boxed{{{right[x["best"]]}}}'} for x in rows],
  )
  line = test_main.error_of(
    *given.arguments(samples=f'{tmp_path}/samples.jsonl'),
    f'--workdir={tmp_path}/run',
    env=given.environment,
  )
  assert names(line, 32, 'wrong')


def test_the_workdir_of_another_stage(given, tmp_path):
  write_model(tmp_path / 'model')
  with pytest.raises(UserError, match=naming(tmp_path / 'model', '--workdir')):
    rm_train.run(given.config(), str(tmp_path))


def test_without_a_workdir(given):
  with pytest.raises(UserError, match='--workdir'):
    rm_train.run(given.config(), '')
