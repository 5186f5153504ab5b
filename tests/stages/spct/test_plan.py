"""What each stage of a whole run is given, and what its result depends on."""

import pytest

from grm_jax.stages.spct import fingerprint as spct_fingerprint
from grm_jax.stages.spct import plan as spct_plan
from tests import test_main
from tests.messages import naming
from tests.stages import spct_run

# config_flags loads a config's file so.
pytestmark = pytest.mark.filterwarnings('ignore:the load_module')


@pytest.fixture(autouse=True)
def root(monkeypatch):
  monkeypatch.chdir(test_main.ROOT)


def plan(*arguments, workdir='w'):
  steps = spct_plan.plan(spct_run.parse(*arguments), workdir)
  return {step.name: step for step in steps}


def test_the_steps_and_what_they_read():
  found = plan()
  assert {name: set(step.reads) for name, step in found.items()} == {
    'data': set(),
    'base': set(),
    'sft': {'data', 'base'},
    'rft': {'data', 'sft'},
    'grpo': {'data', 'rft'},
    'samples': {'data', 'grpo'},
    'meta_rm': {'data', 'grpo', 'rft', 'samples'},
    'evaluation': {'data', 'sft', 'rft', 'grpo', 'meta_rm'},
  }
  for step in found.values():
    for name, fingerprint in step.reads.items():
      assert fingerprint == found[name].fingerprint
  assert len({step.fingerprint for step in found.values()}) == len(found)


def test_files_and_models_go_from_stage_to_stage():
  found = {name: step.config for name, step in plan().items()}
  base = found['base']
  assert (base.checkpoint, base.data.texts) == ('scratch', 'basics:12000')
  assert found['sft'].checkpoint == 'w/base/model'
  assert found['sft'].data.texts == 'practice:8000'
  rft = found['rft']
  assert rft.checkpoint == 'w/sft/model' and rft.train.checkpoint == ''
  assert (rft.data, rft.parts) == ('w/data/rft.jsonl', 'sample,filter,train')
  assert rft.train.data.general == 'basics:8000'
  assert found['grpo'].checkpoint == 'w/rft/model'
  assert found['grpo'].data == 'w/data/grpo.jsonl'
  fresh = found['samples']
  assert fresh.checkpoint == 'w/grpo/model'
  assert (fresh.data, fresh.parts) == ('w/data/fresh.jsonl', 'sample')
  assert (fresh.num_hinted, fresh.num_samples) == (0, 8)
  # As the evaluation asks, whatever RFT did.
  assert (rft.order, fresh.order) == ('random', 'balanced')
  meta = found['meta_rm']
  assert meta.checkpoint == 'w/grpo/model' and meta.data == 'w/data/train.jsonl'
  assert meta.samples == 'w/rft/samples.jsonl,w/samples/samples.jsonl'


def test_examples_that_are_judged_while_training():
  found = plan('--config.examples.validation=9')
  own = [found[x].config for x in ('sft', 'grpo')] + [found['rft'].config.train]
  assert {x.evaluation.data for x in own} == {'w/data/validation.jsonl'}


def test_what_is_shared_is_said_once():
  found = plan(
    '--config.seed=7',
    '--config.fail_on_bad_rows=True',
    '--config.mesh.tensor=2',
    '--config.compute.dtype=bfloat16',
    '--config.prompt.too_long=refuse',
    '--config.checkpoint_step=3',
    '--config.checkpoint=base',
    '--config.examples.validation=0',
  )
  configs = [found[x].config for x in ('sft', 'grpo', 'meta_rm')]
  configs += [found[x].config.train for x in ('rft', 'samples')]
  for config in configs:
    assert (config.seed, config.fail_on_bad_rows, config.mesh.tensor) == (
      7,
      True,
      2,
    )
    assert config.compute.dtype == 'bfloat16'
    prompt = config.prompt.to_dict()
    # Of the meta RM alone.
    assert prompt.pop('meta', '') in ('', 'practice_meta')
    assert prompt == {
      'template': 'practice',
      'single': 'practice_single',
      'too_long': 'refuse',
    }
    assert config.evaluation.data == ''
  assert found['grpo'].config.compute.remat == 'dots'
  assert found['sft'].config.compute.remat == 'dots'
  assert (
    found['rft'].config.fail_on_bad_rows
    and found['samples'].config.fail_on_bad_rows
  )
  steps = [
    found[x].config.checkpoint_step for x in ('sft', 'rft', 'grpo', 'meta_rm')
  ]
  assert steps == [3, -1, -1, -1]


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
def test_some_of_the_stages(stages, checkpoints, read):
  found = plan(f'--config.stages={stages}', '--config.checkpoint=base')
  own = {
    name: step.config.checkpoint
    for name, step in found.items()
    if name not in ('data', 'evaluation')
  }
  assert own == checkpoints
  if read is None:
    assert 'evaluation' not in found
  else:
    assert set(found['evaluation'].reads) == {'data', *read}
  if 'meta_rm' in found and 'rft' not in found:
    assert found['meta_rm'].config.samples == 'w/samples/samples.jsonl'


def test_a_base_model_of_our_own_is_for_practice_only():
  other = '--config.data=gsm8k:somewhere'
  found = plan(other)
  assert 'base' not in found
  sft = found['sft'].config
  assert sft.checkpoint == 'scratch' and not found['sft'].reads.get('base')
  assert (sft.data.general, sft.data.general_rate) == ('', 0.0)
  found = plan(other, '--config.base.data.texts=texts:mine.jsonl')
  assert found['sft'].config.checkpoint == 'w/base/model'
  assert 'base' not in plan('--config.checkpoint=theirs')
  assert 'base' not in plan('--config.stages=sft,evaluate')


def changed(*arguments):
  """The steps whose fingerprints the arguments change."""
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
def test_a_setting_changes_its_stage_and_all_after_it(change, first):
  order = ['base', 'sft', 'rft', 'grpo', 'samples', 'meta_rm', 'evaluation']
  after = order[1:] if first == 'data' else order[order.index(first) + 1 :]
  assert changed(f'--config.{change}') == [first, *after]


@pytest.mark.parametrize(
  'free',
  [
    'sft.save_every=5',
    'rft.train.max_to_keep=4',
    'grpo.log_samples_every=0',
    'grpo.compute.remat=none',
    'meta_rm.profile_steps=1,2',
    'mesh.fsdp=2',
    'strict=True',
  ],
)
def test_other_settings_change_nothing(free):
  assert changed(f'--config.{free}') == []


def test_workdir_changes_nothing():
  one, other = plan(), plan(workdir='/else/where')
  for name, step in one.items():
    assert step.fingerprint == other[name].fingerprint


def test_content_of_files_is_part_of_the_settings(tmp_path):
  data, template = tmp_path / 'rows.jsonl', tmp_path / 'mine.txt'
  data.write_text('one')
  template.write_text('{{ query }}{{ responses }}')
  given = [
    f'--config.data={data}#split',
    f'--config.prompt.template={template}',
  ]

  def fingerprints():
    return {name: x.fingerprint for name, x in plan(*given).items()}

  before = fingerprints()
  assert fingerprints() == before
  data.write_text('two')
  assert fingerprints()['data'] != before['data']
  data.write_text('one')
  spct_fingerprint.template.load.cache_clear()
  template.write_text('{{ query }} {{ responses }}')
  after = fingerprints()
  assert after['data'] == before['data'] and after['sft'] != before['sft']


def test_other_data_have_no_teacher_and_longer_prompts():
  found = plan('--config.data=gsm8k:x.jsonl', '--config.buckets=(300,600)')
  texts = 'verdicts:w/data/cold_start.jsonl'
  assert found['sft'].config.data.texts == texts
  assert found['rft'].config.train.data.general == texts
  for sizes in (
    found['sft'].config.batch,
    found['rft'].config.sampling,
    found['rft'].config.train.batch,
    found['grpo'].config.batch,
    found['samples'].config.sampling,
    found['meta_rm'].config.batch,
  ):
    assert sizes.buckets == (300, 600)
  # Of a new model fewer packed rows, as they are longer: 12 of 160 + 192, now
  # 5.3 by their tokens, and an even number.
  assert found['sft'].config.batch.micro_batch_prompts == 6
  tuned = plan('--config.data=a.jsonl', '--config.checkpoint=random')
  assert tuned['sft'].config.batch.micro_batch_prompts == 12
  # Practice prompts are short, and texts of the user's own are used.
  found = plan('--config.buckets=(300,600)')
  assert found['sft'].config.batch.prompt_buckets != (300, 600)
  found = plan(
    '--config.data=gsm8k:x.jsonl',
    '--config.sft.data.texts=judged:y.jsonl',
    '--config.rft.train.data.general=texts:z.jsonl',
  )
  assert found['sft'].config.data.texts == 'judged:y.jsonl'
  assert found['rft'].config.train.data.general == 'texts:z.jsonl'


def test_the_judge_before_training():
  """It is what the evaluation then depends on, and nothing else does."""
  own = ('--config.data=a.jsonl', '--config.checkpoint=random')
  without = plan(*own)
  found = plan(*own, '--config.evaluation.evaluate_initial=true')
  assert {
    name
    for name in found
    if found[name].fingerprint != without[name].fingerprint
  } == {'evaluation'}
  config = spct_run.parse(*own, '--config.evaluation.evaluate_initial=true')
  assert list(spct_plan.judges(config, 'w').items())[:2] == [
    ('before', 'random'),
    ('sft', 'w/sft/model'),
  ]


@pytest.mark.parametrize('spec', ['{}/a.json', '{}/*.json', '{}'])
def test_a_source_of_other_content_is_another_one(tmp_path, spec):
  spec = f'gsm8k:{spec.format(tmp_path)}'
  assert spct_fingerprint.of_source(spec) == spec  # nothing is there
  (tmp_path / 'a.json').write_text('[]')
  found = spct_fingerprint.of_source(spec)
  assert found.startswith(f'{spec}, ')
  (tmp_path / 'README').write_text('no data')
  assert spct_fingerprint.of_source(spec) == found
  (tmp_path / 'a.json').write_text('[1]')
  assert spct_fingerprint.of_source(spec) != found


def test_without_principles():
  found = plan('--config.principles=False')
  prompt = found['grpo'].config.prompt
  assert prompt.template == 'practice_no_principles'
  assert prompt.single == 'practice_no_principles_single'
  assert found['sft'].config.data.texts == 'no_principles:practice:8000'
  own = plan('--config.principles=False', '--config.rft.train.data.general=')
  general = own['rft'].config.train.data.general
  assert general == 'no_principles:practice:8000'
  assert found['meta_rm'].config.prompt.single == prompt.single
  assert found['meta_rm'].config.prompt.meta == 'practice_meta'
  with pytest.raises(
    ValueError,
    match=naming('config.principles', 'config.prompt.template', 'critique'),
  ):
    plan('--config.principles=False', '--config.prompt.template=critique')


def test_no_general_data():
  none = '--config.rft.train.data.general_fraction=0.0'
  assert plan(none)['rft'].config.train.data.general_fraction == 0.0
  data = plan(none, '--config.data=gsm8k:x.jsonl')['rft'].config.train.data
  assert (data.general, data.general_rate) == ('', 0.0)
