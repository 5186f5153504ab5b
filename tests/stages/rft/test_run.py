"""RFT: selection rules, the data of fine-tuning, errors."""

import collections
import functools
import json
import re

import pytest

from grm_jax.data import example_sources, sft_sources
from grm_jax.data.synthetic import examples as practice
from grm_jax.judgement import example as examples_lib
from grm_jax.judgement import template
from grm_jax.judgement.prompt_format import PromptFormat
from grm_jax.stages.rft import run as rft_run
from grm_jax.tokenizer import chat_format
from tests import test_main
from tests.judges.fake import load_tokenizer
from tests.messages import lines_with, names
from tests.stages.rft.fixtures import (
  FILTER,
  HINT,
  ROWS,
  SAMPLE,
  CriticEngine,
  NamingEngine,
  ScriptedEngine,
  TeacherEngine,
  kept_texts,
  read_rows,
  row,
  write_rows,
)

# ml_collections.config_flags loads config files with load_module.
pytestmark = pytest.mark.filterwarnings('ignore:the load_module')


TABLE = {
  'examples': 6,
  'too_easy': 1,
  'never_right': 3,
  'rescued': 2,
  'examples_kept': 4,
  'generations_kept': 5,
  'unhinted_correct': 6,
  'unhinted_incorrect': 7,
  'unhinted_parse_failure': 4,
  'unhinted_truncated': 1,
  'hinted_correct': 2,
  'hinted_incorrect': 1,
  'hinted_parse_failure': 0,
  'hinted_truncated': 0,
}


def test_selected_generations_and_counts(workdir, run, capsys):
  run('--config.phases=sample,filter', SAMPLE[1], engine=ScriptedEngine())
  assert kept_texts(workdir) == {
    'mixed 0,1': 'r1',
    'saved 0,1,2': 'r0',
    'single 0': 'r0',
    'single2 0': 'r0 r1',
  }
  report = json.loads((workdir / 'filter.json').read_text())
  assert report['counts'] == {'synthetic': TABLE}
  assert report['filter']['reject'] is True
  table = capsys.readouterr().out
  assert re.search(r'^never_right +3$', table, re.MULTILINE)
  assert re.search(r'^generations_kept +5$', table, re.MULTILINE)


@pytest.mark.parametrize(
  'change, kept',
  [
    ('--config.filter.hinted=false', {'mixed': 'r1', 'single2': 'r0 r1'}),
    ('--config.filter.unhinted=false', {'saved': 'r0', 'single': 'r0'}),
    (
      '--config.filter.reject=false',
      {
        'easy': 'r0 r1 r2',
        'mixed': 'w0 r1',
        'saved': 'w0 t1 r0',
        'lost': 'w2 w0',
        'single': 'w0 w1 r0',
        'single2': 'r0 r1 w2',
      },
    ),
    (
      '--config.filter.too_easy=false',
      {
        'easy': 'r0 r1 r2',
        'mixed': 'r1',
        'saved': 'r0',
        'single': 'r0',
        'single2': 'r0 r1',
      },
    ),
    (
      '--config.filter.max_per_example=1',
      {'mixed': 'r1', 'saved': 'r0', 'single': 'r0', 'single2': 'r0'},
    ),
  ],
)
def test_filtering_with_other_rules_needs_no_model(workdir, run, change, kept):
  """Each ablation of a rule is one override, and reuses the samples."""
  run('--config.phases=sample,filter', SAMPLE[1], engine=ScriptedEngine())
  before = {x.name: x.read_bytes() for x in workdir.iterdir()}
  run(*FILTER, change)
  assert {
    name.split(' ')[0]: texts for name, texts in kept_texts(workdir).items()
  } == kept
  after = {x.name: x.read_bytes() for x in workdir.iterdir()}
  changed = {name for name in before if after[name] != before[name]}
  assert changed == {'config.json', 'kept.jsonl', 'filter.json'}
  run(*FILTER)
  assert (workdir / 'kept.jsonl').read_bytes() == before['kept.jsonl']


SELECT = '--config.phases=sample,select'


def test_examples_that_are_always_right_are_removed(workdir, run, capsys):
  engine = ScriptedEngine()
  run(SELECT, SAMPLE[1], '--config.num_hinted_samples=0', engine=engine)
  expected = ['mixed', 'saved', 'lost', 'single', 'single2']
  path = workdir / 'selected.jsonl'
  assert [x['id'] for x in read_rows(path)] == expected
  # They are examples for the stage grpo.
  loaded, _ = example_sources.load(str(path), 'train', True)
  before, _ = example_sources.load(
    str(workdir.parent / 'rows.jsonl'), 'train', True
  )
  assert loaded == [x for x in before if x.id in expected]
  counts = json.loads((workdir / 'selection.json').read_text())['counts']
  assert counts == {
    'synthetic': {
      'examples': 6,
      'not_judged': 0,
      'too_easy': 1,
      'selected': 5,
      '0 of 3 correct': 3,
      '1 of 3 correct': 1,
      '2 of 3 correct': 1,
      '3 of 3 correct': 1,
    }
  }
  stdout = capsys.readouterr().out
  assert re.search(r'^3 of 3 correct +1$', stdout, re.MULTILINE)
  assert lines_with(stdout, '5 of 6 examples', path)


def test_select_reads_stored_samples_and_ignores_hinted_ones(workdir, run):
  write_rows(workdir.parent / 'rows.jsonl', [*ROWS, row('unseen', '/')])
  right, wrong = (rf'\boxed{{{x}}}' for x in ('9, 2', '2, 9'))
  write_rows(
    workdir.parent / 'samples.jsonl',
    [
      {'id': 'easy', 'text': right},
      {'id': 'easy', 'text': wrong, 'hinted': True},
      {'id': 'lost', 'text': right, 'hinted': True},
      {'id': 'saved', 'text': right},
    ],
  )
  run(
    '--config.phases=select', f'--config.samples={workdir.parent}/samples.jsonl'
  )
  ids = [x['id'] for x in read_rows(workdir / 'selected.jsonl')]
  assert ids == ['mixed', 'saved', 'lost', 'single', 'single2', 'unseen']
  counts = json.loads((workdir / 'selection.json').read_text())['counts']
  assert counts['synthetic']['not_judged'] == 5


def test_a_judge_that_is_always_right_selects_nothing(workdir, run, error_of):
  write_rows(workdir.parent / 'rows.jsonl', ROWS[:1])
  message = error_of(SELECT, SAMPLE[1], engine=ScriptedEngine())
  assert names(message, 'samples.jsonl', 'all 1')
  assert not (workdir / 'selected.jsonl').exists()


def test_unlabelled_examples_are_skipped(workdir, run, caplog):
  unknown = [
    row('pair', 'rrr/r') | {'best': None},
    row('none', 'rrr/r', n=1) | {'rewards': None},
    row('half', 'rrr/r', n=1) | {'rewards': [0.5]},
  ]
  write_rows(workdir.parent / 'rows.jsonl', [*unknown, ROWS[1]])
  engine = ScriptedEngine()
  with caplog.at_level('WARNING'):
    run(*SAMPLE, engine=engine)
  assert [x.key for x in engine.requests] == ['mixed 0,1']
  path = workdir.parent / 'rows.jsonl'
  assert any(names(x, path, 3, 4) for x in caplog.messages)


def hint_phrases():
  """Returns the fixed text of the hint templates, split into sentences."""
  pieces = [
    piece
    for name in ('hint', 'hint_single')
    for piece in re.split(
      '{{.*?}}', template._DIRECTORY.joinpath(f'{name}.txt').read_text()
    )
  ]
  parts = {x.strip() for piece in pieces for x in re.split(r'[:.]', piece)}
  # 'Response' alone is not a hint.
  return {x for x in parts if len(x.split()) > 2}


@pytest.fixture
def trained(monkeypatch):
  """Replaces the stage sft; returns the arguments of its runs."""
  calls = []
  monkeypatch.setattr(
    rft_run.sft_train,
    'train',
    lambda config, workdir, texts, specs, prompts: calls.append(
      (config, workdir, prompts)
    ),
  )
  return calls


def prompt_format(config):
  p = config.prompt
  return PromptFormat(p.template, p.single, p.too_long)


def training_data(config):
  """Returns (example, tokenized example) pairs that the stage sft trains on."""
  forms = prompt_format(config)
  longest = config.batch.prompt_buckets[-1]
  return [
    (text, sft_sources.tokenize(text, forms, load_tokenizer(), limit=longest))
    for text in sft_sources.read(config.data.texts, 'train', 'texts')
  ]


ORDERED = [
  row('a', 'www/rr', good=1, n=3, tags={'strength': '2', 'suite': 'x'}),
  row('b', 'wtx/rr', good=0, n=4),
  row('c', 'www/rr', good=0, n=1),
  row('d', 'www/rr', good=1, n=1),
  row('e', 'wrr/rr', good=0, n=3),
]


# The prompts of no_principles are long.
LONG = (
  '--config.train.batch.prompt_buckets=(3000,)',
  '--config.sampling.prompt_buckets=(3000,)',
)


@pytest.fixture(params=['practice', 'no_principles'])
def prompts(workdir, run, trained, request):
  """Returns (config of sft, unhinted prompts, hinted prompts)."""
  write_rows(workdir.parent / 'rows.jsonl', ORDERED)
  engine = ScriptedEngine()
  name = f'--config.train.prompt.template={request.param}'
  run('--config.num_hinted_samples=2', name, *LONG, engine=engine)
  ((config, trained_in, trained_format),) = trained
  assert trained_format == prompt_format(config)
  assert trained_in == str(workdir)
  assert config.data.texts == f'judged:{workdir}/kept.jsonl'
  samples = [x for x in read_rows(workdir / 'samples.jsonl') if x['hinted']]
  assert {x['outcome'] for x in samples} == {'correct'} and len(samples) == 8
  prompts = {tuple(x.prompt) for x in engine.requests}
  unhinted = {x for x in prompts if HINT not in load_tokenizer().decode(x)}
  assert prompts - unhinted
  return config, unhinted, prompts - unhinted


def test_training_prompts_are_the_unhinted_prompts(workdir, prompts):
  config, unhinted, hinted = prompts
  render = functools.partial(chat_format.render_user, load_tokenizer())
  forms = prompt_format(config)
  examples = {x['id']: examples_lib.from_row(x, 0) for x in ORDERED}
  trained = {}
  for text, record in training_data(config):
    name = text.id.split(' ')[0]
    prompt = tuple(record.prompt.tolist())
    wanted = forms.tokenize(examples[name], text.order, render, limit=3000)
    assert prompt == wanted.tokens
    assert prompt in unhinted and prompt not in hinted
    trained[name, text.order] = set(text.generations)
  # All correct generations, by example and order of responses.
  correct = collections.defaultdict(set)
  for x in read_rows(workdir / 'samples.jsonl'):
    if x['outcome'] == 'correct':
      correct[x['id'], tuple(x['order'])].add(x['text'])
  assert trained == correct


def test_hints_are_not_in_the_training_data(workdir, prompts):
  config, _, hinted = prompts
  decoded = [
    load_tokenizer().decode(
      [*record.prompt, *sum(map(list, record.generations), [])]
    )
    for _, record in training_data(config)
  ]
  assert len(decoded) > 4
  everything = [(workdir / 'kept.jsonl').read_text(), *decoded]
  hinted_texts = [load_tokenizer().decode(x) for x in hinted]
  pieces = {
    'For your eyes only',
    'is known to be the best',
    'the right verdict is known to be',
    'Do not mention that you were told',
  }
  assert hint_phrases() == pieces
  for piece in (*pieces, 'by 2 out of 3'):
    assert any(piece in x for x in hinted_texts)
    assert not any(piece in x for x in everything)


def test_no_principles_in_sampling_and_training(workdir, run, trained):
  engine = ScriptedEngine()
  run(
    '--config.response_order=fixed',
    '--config.train.prompt.template=no_principles',
    *LONG,
    engine=engine,
  )
  ((config, _, _),) = trained
  sampled_prompts = {tuple(x.prompt) for x in engine.requests}
  pairs = [r for x, r in training_data(config) if len(x.order) > 1]
  assert len(pairs) == 2  # mixed and saved
  for record in pairs:
    prompt = tuple(record.prompt.tolist())
    assert prompt in sampled_prompts
    assert 'Specific Criteria' not in load_tokenizer().decode(prompt)
    assert 'Write two parts' in load_tokenizer().decode(prompt)


def test_general_data_and_checkpoint_of_the_training(workdir, run, trained):
  run(
    '--config.checkpoint=c',
    '--config.checkpoint_step=4',
    engine=ScriptedEngine(),
  )
  run('--config.train.data.general_fraction=0.0', '--config.phases=train')
  run('--config.train.checkpoint=base', '--config.phases=train')
  fractions = [x.data.general_fraction for x, _, _ in trained]
  assert fractions == [0.2, 0.0, 0.2]
  assert [x.data.general for x, _, _ in trained] == ['basics:8000'] * 3
  # The default is the sampling model.
  assert [(x.checkpoint, x.checkpoint_step) for x, _, _ in trained] == [
    ('c', 4),
    ('runs/sft/model', -1),
    ('base', -1),
  ]


def test_training_resumes_from_the_same_model_only(
  workdir, run, error_of, trained, monkeypatch
):
  run('--config.checkpoint=c', engine=ScriptedEngine())
  monkeypatch.setattr(rft_run.training_run, 'has_checkpoint', lambda x: True)
  for change in ('--config.checkpoint=d', '--config.train.checkpoint=d'):
    line = error_of('--config.checkpoint=c', '--config.phases=train', change)
    assert names(line, workdir, 'config.train.checkpoint')
  run('--config.checkpoint=c', '--config.phases=train')
  assert len(trained) == 2


SHORTER = '--config.sampling.prompt_buckets=(192,)'


@pytest.mark.parametrize(
  'arguments, words',
  [
    (
      ['--config.phases=sampel'],
      ['config.phases', 'sampel', 'sample', 'filter'],
    ),
    (['--config.phases='], ['config.phases', "''"]),
    (['--config.data='], ['config.data']),
    (['--config.data=nowhere.jsonl'], ['nowhere.jsonl']),
    (['--config.num_samples=0'], ['config.num_samples', 0, 1]),
    (
      ['--config.phases=sample,train', '--config.train.max_to_keep=0'],
      ['config.train.max_to_keep', 0],
    ),
    (['--config.num_hinted_samples=-1'], ['config.num_hinted_samples', -1]),
    (['--config.temperature=-1.0'], ['config.temperature', -1.0]),
    (['--config.hinted_temperature=-1.0'], ['config.hinted_temperature', -1.0]),
    (['--config.hinted_temperature=nan'], ['config.hinted_temperature', 'nan']),
    (['--config.filter.max_per_example=-2'], ['max_per_example', -2]),
    (['--config.samples=x.jsonl'], ['config.samples', 'config.phases']),
    (
      [SHORTER],
      [
        'config.sampling.prompt_buckets',
        192,
        'config.train.batch.prompt_buckets',
        160,
      ],
    ),
    (
      ['--config.train.prompt.template=nowhere'],
      ['config.train.prompt.template', 'nowhere'],
    ),
    (
      ['--config.train.prompt.too_long=cut'],
      ['config.train.prompt.too_long', 'cut'],
    ),
    (['--config.train.prompt.single=none'], ['config.train.prompt.single']),
    (
      ['--config.train.prompt.template=critique'],
      ['config.train.prompt.template', 'critique', 'principles'],
    ),
    (['--config.response_order=up'], ['config.response_order', 'up']),
    (
      ['--config.phases=filter'],
      ['samples.jsonl', 'config.samples'],
    ),
    (['--config.phases=train'], ['kept.jsonl', 'filter']),
    (
      ['--config.phases=filter', '--config.samples=nowhere.jsonl'],
      ['nowhere.jsonl'],
    ),
  ],
)
def test_wrong_settings_are_named(workdir, error_of, arguments, words):
  line = error_of(*arguments)
  assert names(line, *words)
  assert not workdir.exists()


def test_a_missing_workdir_is_an_error(workdir, error_of):
  assert names(error_of(workdir=''), '--workdir')


def test_data_without_labels_are_an_error(workdir, error_of):
  rows = [
    row('pair', 'rrr/r') | {'best': None},
    row('single', 'rrr/r', n=1) | {'rewards': [7.0]},
  ]
  write_rows(workdir.parent / 'rows.jsonl', rows)
  line = error_of()
  assert names(line, workdir.parent / 'rows.jsonl', 'rewards')


def test_principles_of_the_examples_are_in_the_prompt(workdir, run):
  write_rows(workdir.parent / 'rows.jsonl', [ROWS[1] | {'principles': 'Truth'}])
  engine = ScriptedEngine()
  run(*SAMPLE, '--config.train.prompt.template=critique', engine=engine)
  assert 'Truth' in load_tokenizer().decode(engine.requests[0].prompt)


def test_an_empty_selection_is_an_error(
  workdir, run, error_of, trained, capsys
):
  run('--config.phases=sample,filter', SAMPLE[1], engine=ScriptedEngine())
  capsys.readouterr()
  nothing = ['--config.filter.unhinted=false', '--config.filter.hinted=false']
  line = error_of('--config.phases=filter,train', SAMPLE[1], *nothing)
  assert names(line, workdir / 'samples.jsonl', 'filter')
  # It prints the counts, and removes the selection by other rules.
  assert re.search(r'^generations_kept +0$', capsys.readouterr().out, re.M)
  assert not (workdir / 'kept.jsonl').exists()
  assert names(error_of('--config.phases=train'), workdir / 'kept.jsonl')
  assert not trained


def test_an_edited_template_is_an_error(workdir, run, error_of, trained):
  path = workdir.parent / 'mine.txt'
  text = template._DIRECTORY.joinpath('practice.txt').read_text()
  path.write_text(text)
  mine = [SAMPLE[1], f'--config.train.prompt.template={path}']
  run(*mine, engine=ScriptedEngine())
  assert len(trained) == 1
  path.write_text(text.replace('Judge', 'Rate'))
  template.load.cache_clear()
  for phases, file in (
    ('sample,filter,train', 'samples.jsonl'),
    ('filter', 'samples.jsonl'),
    ('train', 'kept.jsonl'),
  ):
    line = error_of(f'--config.phases={phases}', *mine)
    assert names(line, workdir / file, 'config.train.prompt.template')
  assert len(trained) == 1


def test_fine_tunes_once(tmp_path, run, environment):
  """The generations are the teacher's, from a file and sampled here."""
  examples = practice.examples('train', 24)
  workdir = tmp_path / 'work'
  write_rows(tmp_path / 'rows.jsonl', map(examples_lib.to_row, examples))
  arguments = [
    '--config.checkpoint=random',
    '--config.response_order=fixed',
    '--config.sampling.prompt_buckets=(192, 384)',
    '--config.sampling.max_new_tokens=192',
    '--config.train.batch.prompt_buckets=(384,)',
  ]
  run('--config.phases=sample', *arguments, engine=TeacherEngine(examples))
  samples = read_rows(workdir / 'samples.jsonl')
  assert len(samples) == 72
  path = tmp_path / 'other.jsonl'
  write_rows(
    path,
    [{'id': x['id'], 'text': x['text']} for x in samples if not x['sample']],
  )
  arguments = [
    '--config=configs/rft.py:tiny',
    *arguments,
    f'--config.data={tmp_path}/rows.jsonl',
    f'--workdir={workdir}',
    '--config.train.data.general=practice:40',
    '--config.train.evaluation.data=',
    '--config.train.steps=3',
    '--config.train.optimizer.warmup_steps=1',
    '--config.train.batch.micro_batch_prompts=4',
    '--config.train.batch.generation_buckets=(256,)',
  ]
  stdout, _ = test_main.run(
    *arguments,
    '--config.phases=filter,train',
    f'--config.samples={path}',
    '--config.filter.too_easy=false',  # all samples in the file are correct
    env=environment,
  )
  assert lines_with(stdout, workdir / 'kept.jsonl', 24)
  steps = [x['step'] for x in read_rows(workdir / 'metrics.jsonl')]
  assert steps == [1, 2, 3]
  assert (workdir / 'model' / 'tokenizer.model').exists()
  assert (workdir / 'model' / '3').is_dir()
  kept = (workdir / 'kept.jsonl').read_bytes()
  before = {x: x.stat().st_mtime_ns for x in (workdir / 'model').rglob('*')}
  # All phases on the samples, which have the same correct generations.
  stdout, _ = test_main.run(*arguments, env=environment)
  assert lines_with(stdout, workdir / 'model', 3)
  assert (workdir / 'kept.jsonl').read_bytes() == kept
  assert read_rows(workdir / 'samples.jsonl') == samples
  after = {x: x.stat().st_mtime_ns for x in (workdir / 'model').rglob('*')}
  assert after == before


@pytest.mark.parametrize(
  'change, words',
  [
    ('--workdir=', ['--workdir']),
    ('--config.checkpoint=', ['config.checkpoint']),
    (
      '--config.data=launch/demo/rows.jsonl',
      ['launch/demo/rows.jsonl', 'rewards'],
    ),
  ],
)
def test_wrong_settings_at_the_command_line(
  tmp_path, environment, change, words
):
  write_rows(tmp_path / 'rows.jsonl', ROWS)
  line = test_main.error_of(
    '--config=configs/rft.py:tiny',
    f'--config.data={tmp_path}/rows.jsonl',
    f'--workdir={tmp_path}/work',
    change,
    env=environment,
  )
  assert names(line, *words)
  assert not (tmp_path / 'work').exists()


def test_an_llm_as_a_judge_learns_from_the_right_names(workdir, run, caplog):
  with caplog.at_level('WARNING'):
    run(
      '--config.phases=sample,filter',
      SAMPLE[1],
      '--config.train.prompt.reads=best',
      '--config.train.prompt.template=',
      engine=NamingEngine(),
    )
  kept = read_rows(workdir / 'kept.jsonl')
  assert {x['id']: x['generations'] for x in kept} == {
    'easy 0,1': [r'0 Best: \boxed{1}'],
    'mixed 0,1': [r'0 Best: \boxed{2}'],
    'saved 0,1,2': [r'0 Best: \boxed{3}'],
    'lost 0,1': [r'0 Best: \boxed{1}'],
  }
  # The two examples with a single response have no best one.
  path = workdir.parent / 'rows.jsonl'
  assert any(names(x, path, 2, 6, 'single') for x in caplog.messages)


def test_an_llm_as_a_judge_needs_several_responses(workdir, error_of):
  write_rows(workdir.parent / 'rows.jsonl', ROWS[4:])
  message = error_of(*SAMPLE, '--config.train.prompt.reads=best')
  assert names(message, 'rows.jsonl', 'all 2', 'config.prompt.reads')


def test_critiques_of_each_response_are_kept(workdir, run):
  """Without labels, hints and rejection; only truncated ones are dropped."""
  unlabelled = ROWS[1] | {'best': None}
  write_rows(workdir.parent / 'rows.jsonl', [unlabelled, *ROWS[4:5]])
  engine = CriticEngine()
  run(
    '--config.phases=sample,filter',
    '--config.num_samples=1',
    '--config.train.prompt.reads=critique',
    '--config.train.prompt.template=',
    engine=engine,
  )
  ids = [x.key.split(' ')[0] for x in engine.requests]
  assert ids == ['mixed/0', 'mixed/1', 'single/0']
  kept = read_rows(workdir / 'kept.jsonl')
  assert [(x['responses'], x['generations']) for x in kept] == [
    (['good'], ['It is good.'])
  ]
  counts = json.loads((workdir / 'filter.json').read_text())['counts']
  counts = counts['synthetic']
  assert (counts['examples'], counts['generations_kept']) == (3, 1)
  assert counts['unhinted_truncated'] == 2
