"""A workdir belongs to the settings and inputs of one run."""

import json
import os

import pytest
from ml_collections import ConfigDict

from grm_jax.errors import UserError
from grm_jax.stages import input_identity, path_check, run_record
from tests.messages import naming

CONFIG = dict(
  stage='sft',
  checkpoint='a',
  checkpoint_step=-1,
  steps=10,
  optimizer=dict(learning_rate=1e-3, schedule='constant', warmup_steps=2),
  save_every=5,
  mesh=dict(data=1),
  compute=dict(dtype='float32', attention='xla'),
  sampling=dict(prompt_buckets=(64, 128), concurrent_prompts=4, int8=False),
)


def begin(workdir, changes=(), resumes=True, inputs=(), **options):
  config = ConfigDict(CONFIG)
  config.update_from_flattened_dict(dict(changes))
  values = {'checkpoint': 'step 10, ab', **dict(inputs)}
  return run_record.begin(
    config, str(workdir), lambda: values, resumes=resumes, **options
  )


def test_the_record_has_config_and_inputs(tmp_path):
  settings = begin(tmp_path / 'run', resumes=False)
  record = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert record['config'] == json.loads(json.dumps(CONFIG))
  assert record['settings'] == settings
  assert run_record.read_settings(str(tmp_path / 'run')) == settings
  assert settings['checkpoint'] == 'step 10, ab'
  assert 'checkpoint_step' not in settings  # the identity has it
  assert settings['sampling.prompt_buckets'] == 128


@pytest.mark.parametrize(
  'changes, inputs, words',
  [
    ({'optimizer.learning_rate': 1e-4}, {}, ['learning_rate', 0.001, 0.0001]),
    ({'optimizer.warmup_steps': 3}, {}, ['optimizer.warmup_steps', 2, 3]),
    ({'optimizer.schedule': 'cosine'}, {}, ['optimizer.schedule']),
    ({'steps': 9}, {}, ['config.steps', 10, 9]),
    ({'compute.dtype': 'bfloat16'}, {}, ['config.compute.dtype']),
    ({'sampling.int8': True}, {}, ['config.sampling.int8']),
    ({'sampling.prompt_buckets': (64, 256)}, {}, ['prompt_buckets', 128, 256]),
    ({}, {'checkpoint': 'step 20, cd'}, ['config.checkpoint', 'step 20, cd']),
    ({}, {'data': 'x.jsonl, 12'}, ['config.data', None]),
    ({'stage': 'grpo'}, {}, ['config.stage', 'sft', 'grpo']),
  ],
  ids=str,
)
def test_other_settings_are_refused(tmp_path, changes, inputs, words):
  begin(tmp_path, resumes=False)
  before = (tmp_path / 'config.json').read_bytes()
  with pytest.raises(UserError, match=naming(tmp_path, *words)):
    begin(tmp_path, changes, inputs=inputs)
  assert (tmp_path / 'config.json').read_bytes() == before


def test_results_without_a_record_are_refused(tmp_path):
  begin(tmp_path, resumes=False)
  (tmp_path / 'config.json').unlink()
  with pytest.raises(UserError, match=naming(tmp_path / 'config.json')):
    begin(tmp_path, needs_record=True)
  assert not (tmp_path / 'config.json').exists()


def test_only_the_old_path_of_a_checkpoint_may_be_deleted(tmp_path):
  begin(tmp_path, {'checkpoint': str(tmp_path / 'gone')}, resumes=False)
  identity = run_record.begun_identity
  same = ConfigDict(CONFIG | {'checkpoint': str(tmp_path / 'gone')})
  begun = identity(same, str(tmp_path), 'checkpoint')
  assert begun == 'step 10, ab'
  assert input_identity.of_checkpoint(same.checkpoint, -1, begun) == begun
  other = ConfigDict(CONFIG | {'checkpoint': str(tmp_path / 'other')})
  assert identity(other, str(tmp_path), 'checkpoint') == ''
  assert identity(same, str(tmp_path / 'new'), 'checkpoint') == ''


def test_all_differences_are_in_one_message(tmp_path):
  begin(tmp_path, resumes=False)
  changes = {'optimizer.learning_rate': 2e-3, 'sampling.int8': True}
  words = ['config.checkpoint', 'optimizer.learning_rate', 'sampling.int8']
  with pytest.raises(UserError, match=naming(*words)):
    begin(tmp_path, changes, inputs={'checkpoint': 'step 20, cd'})


@pytest.mark.parametrize(
  'changes',
  [
    {'save_every': 1},
    {'mesh.data': 2},
    {'compute.attention': 'splash'},
    {'sampling.concurrent_prompts': 8},
    {'sampling.prompt_buckets': (32, 128)},
    {'checkpoint': 'moved/a'},  # has the same content
    {'steps': 20},  # a constant learning rate: the first 10 are the same
  ],
  ids=str,
)
def test_settings_that_do_not_change_the_result(tmp_path, changes):
  begin(tmp_path, resumes=False)
  begin(tmp_path, changes)


def test_more_steps_of_another_schedule_are_refused(tmp_path):
  begin(tmp_path, {'optimizer.schedule': 'cosine'}, resumes=False)
  changes = {'optimizer.schedule': 'cosine', 'steps': 20}
  with pytest.raises(UserError, match=naming('config.steps', 10, 20)):
    begin(tmp_path, changes)


def test_a_folder_without_results_binds_nothing(tmp_path):
  begin(tmp_path, resumes=False)
  begin(tmp_path, {'optimizer.learning_rate': 1e-4}, resumes=False)
  assert run_record.read_settings(tmp_path)['optimizer.learning_rate'] == 1e-4


def test_results_of_another_stage_are_not_mixed(tmp_path):
  begin(tmp_path, resumes=False)
  begin(tmp_path, {'stage': 'score'}, resumes=False)  # nothing is there yet
  (tmp_path / 'scores.jsonl').write_text('')
  with pytest.raises(UserError, match=naming(tmp_path, 'score', 'sft')):
    begin(tmp_path, resumes=False)


def test_only_a_branch_is_compared(tmp_path):
  begin(tmp_path, resumes=False)
  changes = {'sampling.int8': True, 'steps': 9}
  inputs = {'checkpoint': 'step 20, cd'}
  begin(tmp_path, changes, inputs=inputs, branch='optimizer.')
  changes = {'optimizer.learning_rate': 1e-4}
  with pytest.raises(UserError, match='learning_rate'):
    begin(tmp_path, changes, branch='optimizer.')


@pytest.mark.parametrize('content', ['', '[]', '{"a": 1}', '\0\0'])
def test_a_damaged_record(tmp_path, content):
  (tmp_path / 'config.json').write_text(content)
  with pytest.raises(UserError, match=naming(tmp_path / 'config.json')):
    begin(tmp_path, resumes=False)


def test_identity_is_of_the_content(tmp_path):
  data = tmp_path / 'a.jsonl'
  data.write_text('one\n')
  specs = [f'{data}', f'judged:{data}', f'no_principles:verdicts:{data}#split']
  before = [input_identity.of_source(x) for x in specs]
  assert len({*before}) == 3
  moved = data.rename(tmp_path / 'moved')  # a suffix that is not a format
  (tmp_path / 'x').mkdir()
  moved.rename(tmp_path / 'x' / 'a.jsonl')
  specs = [x.replace('a.jsonl', 'x/a.jsonl') for x in specs]
  assert [input_identity.of_source(x) for x in specs] == before
  (tmp_path / 'x' / 'a.jsonl').write_text('two\n')
  after = [input_identity.of_source(x) for x in specs]
  assert not {*after} & {*before}
  assert input_identity.of_source('practice:400') == 'practice:400'
  items = input_identity.of_items
  assert items(['a', 'b']) != items(['b', 'a']) != items(['ab'])


def test_identity_of_several_sources(tmp_path):
  for name in 'ab':
    (tmp_path / f'{name}.jsonl').write_text('one\n')
  spec = f'gsm8k:{tmp_path}/a.jsonl*0.5, jsonl:{tmp_path}/b.jsonl,practice:4'
  before = input_identity.of_source(spec)
  assert before != input_identity.of_source(spec.replace('*0.5', ''))
  for name in 'ab':
    (tmp_path / f'{name}.jsonl').write_text('two\n')
    assert input_identity.of_source(spec) != before
    with pytest.raises(UserError, match=naming(f'{tmp_path}/{name}.jsonl')):
      path_check.check_distinct({'data': spec}, [f'{tmp_path}/{name}.jsonl'])
    (tmp_path / f'{name}.jsonl').write_text('one\n')
  assert input_identity.of_source(spec) == before
  (tmp_path / 'a,b.jsonl').write_text('one\n')
  # A file of other texts, whose name has a comma.
  identity = input_identity.of_source(f'judged:{tmp_path}/a,b.jsonl')
  assert identity.startswith('judged:a,b.jsonl, ')


def test_outputs_do_not_replace_inputs(tmp_path):
  data = tmp_path / 'a.jsonl'
  data.write_text('')
  (tmp_path / 'symbolic').symlink_to(data)
  (tmp_path / 'hard').hardlink_to(data)
  (tmp_path / 'folder').symlink_to(tmp_path)
  spellings = (
    f'{tmp_path}/./a.jsonl',
    f'{tmp_path}/folder/a.jsonl',
    f'{tmp_path}/symbolic',
    f'{tmp_path}/hard',
  )
  for output in spellings:
    for spec in (f'{data}', f'jsonl:{data}', f'x.jsonl, {tmp_path}/*.jsonl'):
      with pytest.raises(UserError, match=naming('config.input', data)):
        path_check.check_distinct({'input': spec}, [output])
  with pytest.raises(UserError, match='config.checkpoint'):
    path_check.check_distinct(
      {'checkpoint': f'{tmp_path}/folder'}, [f'{tmp_path}']
    )
  path_check.check_distinct({'input': f'{data}'}, [f'{tmp_path}/b.jsonl'])
  with pytest.raises(UserError, match='gs://b/a'):
    path_check.check_distinct({'input': 'judged:gs://b/a'}, ['gs://b/x/../a'])


def test_a_pipe_has_no_identity(tmp_path):
  """Reading it would wait forever."""
  os.mkfifo(tmp_path / 'rows.jsonl')
  with pytest.raises(UserError, match=naming(tmp_path / 'rows.jsonl')):
    input_identity.of_source(f'judged:{tmp_path}/rows.jsonl')
