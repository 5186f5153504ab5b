"""The configs of the stages of a whole run, and their fingerprints."""

import pytest

from grm_jax import settings
from grm_jax.errors import UserError
from grm_jax.judgement import trained_judge
from grm_jax.stages import input_identity
from grm_jax.stages.grpo import settings as grpo_settings
from grm_jax.stages.reward_model import train as rm_train
from grm_jax.stages.sft import train as sft_train
from grm_jax.stages.spct import plan as spct_plan
from tests import test_main
from tests.messages import naming
from tests.stages import spct_run

# ml_collections.config_flags loads config files with load_module.
pytestmark = pytest.mark.filterwarnings('ignore:the load_module')


@pytest.fixture(autouse=True)
def root(monkeypatch):
  monkeypatch.chdir(test_main.ROOT)
  # No test here has the model directories that it names.
  monkeypatch.setattr(
    input_identity, 'of_checkpoint', lambda path, step: f'{path} {step}'
  )


def plan(*arguments, workdir='w'):
  stages = spct_plan.plan(spct_run.parse(*arguments), workdir)
  return {stage.name: stage for stage in stages}


def test_stages_and_what_they_read():
  planned = plan()
  assert {name: set(stage.reads) for name, stage in planned.items()} == {
    'data': set(),
    'base': set(),
    'sft': {'data', 'base'},
    'rft': {'data', 'sft'},
    'grpo': {'data', 'rft'},
    'samples': {'data', 'grpo'},
    'meta_rm': {'data', 'grpo', 'rft', 'samples'},
    'evaluation': {'data', 'sft', 'rft', 'grpo', 'meta_rm'},
  }
  for stage in planned.values():
    for name, fingerprint in stage.reads.items():
      assert fingerprint == planned[name].fingerprint
  assert len({stage.fingerprint for stage in planned.values()}) == len(planned)


def test_stages_read_files_and_models_of_earlier_ones():
  planned = {name: stage.config for name, stage in plan().items()}
  base = planned['base']
  assert (base.checkpoint, base.data.texts) == ('scratch', 'basics:12000')
  assert planned['sft'].checkpoint == 'w/base/model'
  assert planned['sft'].data.texts == 'practice:8000'
  rft = planned['rft']
  assert rft.checkpoint == 'w/sft/model' and rft.train.checkpoint == ''
  assert (rft.data, rft.phases) == ('w/data/rft.jsonl', 'sample,filter,train')
  assert rft.train.data.general == 'basics:8000'
  assert planned['grpo'].checkpoint == 'w/rft/model'
  assert planned['grpo'].data == 'w/data/grpo.jsonl'
  fresh = planned['samples']
  assert fresh.checkpoint == 'w/grpo/model'
  assert (fresh.data, fresh.phases) == ('w/data/fresh.jsonl', 'sample')
  assert (fresh.num_hinted_samples, fresh.num_samples) == (0, 8)
  # The order of the evaluation, not that of RFT.
  assert (rft.response_order, fresh.response_order) == ('random', 'balanced')
  meta = planned['meta_rm']
  assert meta.checkpoint == 'w/grpo/model' and meta.data == 'w/data/train.jsonl'
  assert meta.samples == 'w/rft/samples.jsonl,w/samples/samples.jsonl'


def test_adapters_are_in_all_stages_but_base():
  planned, full = plan('--config.lora.rank=8'), plan()
  configs = {
    x: planned[x].config for x in ('base', 'sft', 'grpo', 'meta_rm')
  } | {'rft': planned['rft'].config.train}
  assert {name: x.lora.rank for name, x in configs.items()} == {
    'base': 0,
    'sft': 8,
    'rft': 8,
    'grpo': 8,
    'meta_rm': 8,
  }
  assert planned['base'].fingerprint == full['base'].fingerprint
  for name in ('sft', 'rft', 'grpo', 'meta_rm'):
    assert planned[name].fingerprint != full[name].fingerprint


def test_validation_examples_are_judged_during_training():
  planned = plan('--config.examples.validation=9')
  configs = [planned[x].config for x in ('sft', 'grpo')] + [
    planned['rft'].config.train
  ]
  assert {x.evaluation.data for x in configs} == {'w/data/validation.jsonl'}


def test_shared_settings_reach_all_stages():
  planned = plan(
    '--config.seed=7',
    '--config.fail_on_bad_rows=True',
    '--config.mesh.tensor=2',
    '--config.compute.dtype=bfloat16',
    '--config.prompt.too_long=refuse',
    '--config.checkpoint_step=3',
    '--config.checkpoint=base',
    '--config.examples.validation=0',
  )
  configs = [planned[x].config for x in ('sft', 'grpo', 'meta_rm')]
  configs += [planned[x].config.train for x in ('rft', 'samples')]
  for config in configs:
    assert (config.seed, config.fail_on_bad_rows, config.mesh.tensor) == (
      7,
      True,
      2,
    )
    assert config.compute.dtype == 'bfloat16'
    if config.stage == 'reward_model':
      assert config.prompt.to_dict() == {
        'meta': 'practice_meta',
        'single': 'practice_single',
        'score_range': (1, 10),
        'truncated': 'fail',
      }
      continue
    assert config.prompt.to_dict() == {
      'template': 'practice',
      'single': 'practice_single',
      'too_long': 'refuse',
      'reads': 'scores',
      'score_range': (1, 10),
      'truncated': 'fail',
    }
    assert config.evaluation.data == ''
  assert planned['grpo'].config.compute.remat == 'dots'
  assert planned['sft'].config.compute.remat == 'dots'
  assert (
    planned['rft'].config.fail_on_bad_rows
    and planned['samples'].config.fail_on_bad_rows
  )
  stages = [
    planned[x].config.checkpoint_step for x in ('sft', 'rft', 'grpo', 'meta_rm')
  ]
  assert stages == [3, -1, -1, -1]


@pytest.mark.parametrize(
  'stages, checkpoints, read',
  [
    ('sft,evaluate', {'sft': 'base'}, {'sft'}),
    ('rft,evaluate', {'rft': 'base'}, {'rft'}),
    (
      'sft,grpo,evaluate',
      {'sft': 'base', 'grpo': 'w/sft/model'},
      {'sft', 'grpo'},
    ),
    (
      'meta_rm,rft',
      {'rft': 'base', 'samples': 'w/rft/model', 'meta_rm': 'w/rft/model'},
      None,
    ),
    (
      'grpo,meta_rm,evaluate',
      {'grpo': 'base', 'samples': 'w/grpo/model', 'meta_rm': 'w/grpo/model'},
      {'grpo', 'meta_rm'},
    ),
  ],
)
def test_a_subset_of_the_stages(stages, checkpoints, read):
  planned = plan(f'--config.stages={stages}', '--config.checkpoint=base')
  initial = {
    name: stage.config.checkpoint
    for name, stage in planned.items()
    if name not in ('data', 'evaluation')
  }
  assert initial == checkpoints
  if read is None:
    assert 'evaluation' not in planned
  else:
    assert set(planned['evaluation'].reads) == {'data', *read}
  if 'meta_rm' in planned and 'rft' not in planned:
    assert planned['meta_rm'].config.samples == 'w/samples/samples.jsonl'


def test_only_practice_problems_have_a_base_stage():
  other = '--config.data=gsm8k:somewhere'
  planned = plan(other)
  assert 'base' not in planned
  sft = planned['sft'].config
  assert sft.checkpoint == 'scratch' and not planned['sft'].reads.get('base')
  assert (sft.data.general, sft.data.general_fraction) == ('', 0.0)
  planned = plan(other, '--config.base.data.texts=texts:mine.jsonl')
  assert planned['sft'].config.checkpoint == 'w/base/model'
  assert 'base' not in plan('--config.checkpoint=theirs')
  assert 'base' not in plan('--config.stages=sft,evaluate')


def changed_stages(*arguments):
  """Returns the stages whose fingerprints the arguments change."""
  before, after = plan(), plan(*arguments)
  return [x for x in before if before[x].fingerprint != after[x].fingerprint]


@pytest.mark.parametrize(
  'change, first',
  [
    ('examples.rft=700', 'data'),
    ('seed=1', 'base'),
    ('sft.optimizer.learning_rate=0.1', 'sft'),
    ('principles=False', 'base'),
    ('prompt.too_long=refuse', 'base'),
    ('rft.filter.reject=False', 'rft'),
    ('rft.train.steps=10', 'rft'),
    ('rft.response_order=fixed', 'rft'),
    ('grpo.group_size=4', 'grpo'),
    ('meta_rm_samples.num_samples=2', 'samples'),
    ('evaluation.response_order=fixed', 'samples'),
    ('meta_rm.steps=10', 'meta_rm'),
    ('prompt.meta=meta', 'meta_rm'),
    ('evaluation.k=16', 'evaluation'),
  ],
)
def test_a_setting_changes_its_stage_and_all_later_ones(change, first):
  order = ['base', 'sft', 'rft', 'grpo', 'samples', 'meta_rm', 'evaluation']
  after = order[1:] if first == 'data' else order[order.index(first) + 1 :]
  assert changed_stages(f'--config.{change}') == [first, *after]


@pytest.mark.parametrize(
  'setting',
  [
    'sft.save_every=5',
    'rft.train.max_to_keep=4',
    'grpo.log_samples_every=0',
    'grpo.compute.remat=none',
    'meta_rm.profile_steps=1,2',
    'mesh.fsdp=2',
    'fail_on_bad_rows=True',
  ],
)
def test_settings_without_effect_change_no_fingerprint(setting):
  assert changed_stages(f'--config.{setting}') == []


def test_the_meta_rm_starts_from_the_pretrained_model_as_in_the_paper():
  stages = plan('--config.meta_rm.checkpoint=')
  assert stages['meta_rm'].config.checkpoint.endswith('base/model')
  assert plan()['meta_rm'].config.checkpoint.endswith('grpo/model')
  assert changed_stages('--config.meta_rm.checkpoint=') == [
    'meta_rm',
    'evaluation',
  ]


def test_a_meta_rm_without_a_pretrained_model():
  with pytest.raises(UserError, match=naming('config.meta_rm.checkpoint=grm')):
    plan('--config.meta_rm.checkpoint=', '--config.data=gsm8k:x.jsonl')


def test_workdir_changes_no_fingerprint():
  one, other = plan(), plan(workdir='/else/where')
  for name, stage in one.items():
    assert stage.fingerprint == other[name].fingerprint


def test_fingerprints_cover_the_content_of_files(tmp_path):
  data, template = tmp_path / 'rows.jsonl', tmp_path / 'mine.txt'
  data.write_text('one')
  template.write_text('{{ query }}{{ responses }}')
  arguments = [
    f'--config.data={data}#split',
    f'--config.prompt.template={template}',
  ]

  def fingerprints():
    return {name: x.fingerprint for name, x in plan(*arguments).items()}

  before = fingerprints()
  assert fingerprints() == before
  data.write_text('two')
  assert fingerprints()['data'] != before['data']
  data.write_text('one')
  input_identity.template.load.cache_clear()
  template.write_text('{{ query }} {{ responses }}')
  after = fingerprints()
  assert after['data'] == before['data'] and after['sft'] != before['sft']


def test_other_data_use_labels_and_longer_prompts():
  planned = plan(
    '--config.data=gsm8k:x.jsonl', '--config.prompt_buckets=(300,600)'
  )
  texts = 'verdicts:w/data/cold_start.jsonl'
  assert planned['sft'].config.data.texts == texts
  assert planned['rft'].config.train.data.general == texts
  for sizes in (
    planned['sft'].config.batch,
    planned['rft'].config.sampling,
    planned['rft'].config.train.batch,
    planned['grpo'].config.batch,
    planned['samples'].config.sampling,
    planned['meta_rm'].config.batch,
  ):
    assert sizes.prompt_buckets == (300, 600)
  # A model from scratch has fewer packed rows when they are longer: 12 rows of
  # 160 + 192 tokens are as many tokens as 5.3 rows now; 6 is even.
  assert planned['sft'].config.batch.micro_batch_prompts == 6
  tuned = plan('--config.data=a.jsonl', '--config.checkpoint=random')
  assert tuned['sft'].config.batch.micro_batch_prompts == 12
  # Practice problems are short; they keep the buckets of the stage.
  planned = plan('--config.prompt_buckets=(300,600)')
  assert planned['sft'].config.batch.prompt_buckets != (300, 600)
  planned = plan(
    '--config.data=gsm8k:x.jsonl',
    '--config.sft.data.texts=judged:y.jsonl',
    '--config.rft.train.data.general=texts:z.jsonl',
  )
  assert planned['sft'].config.data.texts == 'judged:y.jsonl'
  assert planned['rft'].config.train.data.general == 'texts:z.jsonl'


def test_only_the_evaluation_depends_on_the_initial_judge():
  arguments = ('--config.data=a.jsonl', '--config.checkpoint=random')
  without = plan(*arguments)
  planned = plan(*arguments, '--config.evaluation.evaluate_initial=true')
  assert {
    name
    for name in planned
    if planned[name].fingerprint != without[name].fingerprint
  } == {'evaluation'}
  config = spct_run.parse(
    *arguments, '--config.evaluation.evaluate_initial=true'
  )
  assert list(spct_plan.judge_directories(config, 'w').items())[:2] == [
    ('before', 'random'),
    ('sft', 'w/sft/model'),
  ]


@pytest.mark.parametrize('spec', ['{}/a.json', '{}/*.json', '{}'])
def test_fingerprint_of_a_source_changes_with_its_content(tmp_path, spec):
  spec = f'gsm8k:{spec.format(tmp_path)}'
  assert input_identity.of_source(spec) == spec  # no file exists
  (tmp_path / 'a.json').write_text('[]')
  fingerprint = input_identity.of_source(spec)
  assert fingerprint.startswith('gsm8k:a.json, ')
  (tmp_path / 'README').write_text('no data')
  assert input_identity.of_source(spec) == fingerprint
  (tmp_path / 'a.json').write_text('[1]')
  assert input_identity.of_source(spec) != fingerprint


def test_without_principles():
  planned = plan('--config.principles=False')
  prompt = planned['grpo'].config.prompt
  assert prompt.template == 'practice_no_principles'
  assert prompt.single == 'practice_no_principles_single'
  assert planned['sft'].config.data.texts == 'no_principles:practice:8000'
  planned = plan(
    '--config.principles=False', '--config.rft.train.data.general='
  )
  general = planned['rft'].config.train.data.general
  assert general == 'no_principles:practice:8000'
  assert planned['meta_rm'].config.prompt.single == prompt.single
  assert planned['meta_rm'].config.prompt.meta == 'practice_meta'
  with pytest.raises(
    ValueError,
    match=naming('config.principles', 'config.prompt.template', 'critique'),
  ):
    plan('--config.principles=False', '--config.prompt.template=critique')


def test_other_models_need_general_data():
  planned = plan(
    '--config=configs/spct.py',
    '--config.checkpoint=random',
    '--config.data=a.jsonl',
    '--config.compute.attention=xla',
  )
  data = planned['rft'].config.train.data
  assert (data.general, data.general_fraction) == ('', 0.85)
  with pytest.raises(
    UserError, match=naming('config.rft.train.data.general', 'tulu3:PATH')
  ):
    sft_train.check(planned['rft'].config.train, 'w', 'config.rft.train')


def test_no_general_data():
  none = '--config.rft.train.data.general_fraction=0.0'
  assert plan(none)['rft'].config.train.data.general_fraction == 0.0
  data = plan(none, '--config.data=gsm8k:x.jsonl')['rft'].config.train.data
  assert (data.general, data.general_fraction) == ('', 0.0)


def test_no_template_of_single_responses():
  planned = {x: y.config for x, y in plan('--config.prompt.single=').items()}
  trained = [planned[x] for x in ('sft', 'grpo', 'meta_rm')]
  trained += [planned['rft'].train, planned['samples'].train]
  # '' would be the template of the initial model.
  assert {x.prompt.single for x in trained} == {trained_judge.NONE}
  for config, rules in (
    (planned['sft'], sft_train.SETTINGS),
    (planned['grpo'], grpo_settings.SETTINGS),
    (planned['meta_rm'], rm_train.SETTINGS),
  ):
    settings.check(config, rules)
