"""Rejective fine-tuning: what is kept, trained on, and by what rules."""

import collections
import functools
import json
import re

import pytest

from grm_jax.data import sft_sources
from grm_jax.data.synthetic import examples as practice
from grm_jax.judgement import example as examples_lib
from grm_jax.judgement import template
from grm_jax.judgement.prompt_format import PromptFormat
from grm_jax.stages.rft import run as rft_run
from grm_jax.tokenizer import chat_format
from tests import test_main
from tests.judges.fake import words
from tests.messages import lines_with, names
from tests.stages import planned
from tests.stages.planned import (
  FILTER,
  ROWS,
  SAMPLE,
  TOLD,
  Planned,
  Taught,
  kept_texts,
  row,
  rows_of,
  write_rows,
)

# config_flags loads a config's file so.
pytestmark = pytest.mark.filterwarnings('ignore:the load_module')


@pytest.fixture
def made(tmp_path):
  """WORKDIR, beside rows to judge."""
  return planned.workdir(tmp_path)


@pytest.fixture
def run(tmp_path, monkeypatch):
  return planned.runner(tmp_path, monkeypatch)


@pytest.fixture
def mistake(run):
  return planned.mistakes(run)


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


def test_what_is_kept_and_why(made, run, capsys):
  run('--config.phases=sample,filter', SAMPLE[1], engine=Planned())
  assert kept_texts(made) == {
    'mixed 0,1': 'r1',
    'saved 0,1,2': 'r0',
    'single 0': 'r0',
    'single2 0': 'r0 r1',
  }
  report = json.loads((made / 'filter.json').read_text())
  assert report['counts'] == {'made': TABLE}
  assert report['rules']['reject'] is True
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
def test_other_rules_need_no_model(made, run, change, kept):
  """Each ablation that is a rule is one override, on samples as they are."""
  run('--config.phases=sample,filter', SAMPLE[1], engine=Planned())
  before = {x.name: x.read_bytes() for x in made.iterdir()}
  run(*FILTER, change)
  assert {
    name.split(' ')[0]: texts for name, texts in kept_texts(made).items()
  } == kept
  after = {x.name: x.read_bytes() for x in made.iterdir()}
  changed = {name for name in before if after[name] != before[name]}
  assert changed == {'kept.jsonl', 'filter.json'}
  run(*FILTER)
  assert (made / 'kept.jsonl').read_bytes() == before['kept.jsonl']


def test_examples_that_do_not_say_what_is_right(made, run, caplog):
  unknown = [
    row('pair', 'rrr/r') | {'best': None},
    row('none', 'rrr/r', n=1) | {'rewards': None},
    row('half', 'rrr/r', n=1) | {'rewards': [0.5]},
  ]
  write_rows(made.parent / 'rows.jsonl', [*unknown, ROWS[1]])
  engine = Planned()
  with caplog.at_level('WARNING'):
    run(*SAMPLE, engine=engine)
  assert [x.key for x in engine.requests] == ['mixed 0,1']
  path = made.parent / 'rows.jsonl'
  assert any(names(x, path, 3, 4) for x in caplog.messages)


def fixed_words():
  """What the hints' templates say, by sentence, around their slots."""
  said = [
    piece
    for name in ('hint', 'hint_single')
    for piece in re.split(
      '{{.*?}}', template._DIRECTORY.joinpath(f'{name}.txt').read_text()
    )
  ]
  parts = {x.strip() for piece in said for x in re.split(r'[:.]', piece)}
  return {x for x in parts if len(x.split()) > 2}  # 'Response' is no hint


@pytest.fixture
def trained(monkeypatch):
  """Configs that the stage sft was run with, instead of running it."""
  found = []
  monkeypatch.setattr(rft_run.sft, 'run', lambda *given: found.append(given))
  return found


def records(config):
  """(text, its record) of all that sft would train on."""
  p = config.prompt
  forms = PromptFormat(p.template, p.single, p.too_long)
  longest = config.batch.prompt_buckets[-1]
  return [
    (text, sft_sources.record(text, forms, words(), limit=longest))
    for text in sft_sources.read(config.data.texts, 'train', 'texts')
  ]


ORDERED = [
  row('a', 'www/rr', good=1, n=3, tags={'strength': '2', 'suite': 'x'}),
  row('b', 'wtx/rr', good=0, n=4),
  row('c', 'www/rr', good=0, n=1),
  row('d', 'www/rr', good=1, n=1),
  row('e', 'wrr/rr', good=0, n=3),
]


# So long that no_principles fits.
LONG = (
  '--config.train.batch.prompt_buckets=(3000,)',
  '--config.sampling.prompt_buckets=(3000,)',
)


@pytest.fixture(params=['practice', 'no_principles'])
def hinted(made, run, trained, request):
  """(config of sft, prompts asked without a hint, those with one)."""
  write_rows(made.parent / 'rows.jsonl', ORDERED)
  engine = Planned()
  name = f'--config.train.prompt.template={request.param}'
  run('--config.num_hinted_samples=2', name, *LONG, engine=engine)
  ((config, workdir),) = trained
  assert workdir == str(made)
  assert config.data.texts == f'judged:{made}/kept.jsonl'
  found = [x for x in rows_of(made / 'samples.jsonl') if x['hinted']]
  assert {x['verdict'] for x in found} == {'correct'} and len(found) == 8
  asked = {tuple(x.prompt) for x in engine.requests}
  plain = {x for x in asked if TOLD not in words().decode(x)}
  assert asked - plain
  return config, plain, asked - plain


def test_what_is_trained_on_is_what_was_asked_without_a_hint(made, hinted):
  config, plain, told = hinted
  found = records(config)
  render = functools.partial(chat_format.render_user, words())
  p = config.prompt
  forms = PromptFormat(p.template, p.single, p.too_long)
  examples = {x['id']: examples_lib.from_row(x, 0) for x in ORDERED}
  got = {}
  for text, record in found:
    name = text.id.split(' ')[0]
    prompt = tuple(record.prompt.tolist())
    wanted = forms.tokenize(examples[name], text.order, render, limit=3000)
    assert prompt == wanted
    assert prompt in plain and prompt not in told
    got[name, text.order] = set(text.generations)
  # All that is right, under the example and the order that it was written of.
  written = collections.defaultdict(set)
  for x in rows_of(made / 'samples.jsonl'):
    if x['verdict'] == 'correct':
      written[x['id'], tuple(x['order'])].add(x['text'])
  assert got == written


def test_hints_never_reach_the_fine_tuning(made, hinted):
  config, _, told = hinted
  decoded = [
    words().decode([*record.prompt, *sum(map(list, record.generations), [])])
    for _, record in records(config)
  ]
  assert len(decoded) > 4
  everything = [(made / 'kept.jsonl').read_text(), *decoded]
  asked = [words().decode(x) for x in told]
  pieces = {
    'For your eyes only',
    'is known to be the best',
    'the right verdict is known to be',
    'Do not mention that you were told',
  }
  assert fixed_words() == pieces
  for piece in (*pieces, 'by 2 out of 3'):
    assert any(piece in x for x in asked)  # it would be seen
    assert not any(piece in x for x in everything)


def test_no_principles_is_asked_for_and_trained_on(made, run, trained):
  engine = Planned()
  run(
    '--config.response_order=fixed',
    '--config.train.prompt.template=no_principles',
    *LONG,
    engine=engine,
  )
  ((config, _),) = trained
  asked = {tuple(x.prompt) for x in engine.requests}
  pairs = [r for x, r in records(config) if len(x.order) > 1]
  assert len(pairs) == 2  # mixed and saved
  for record in pairs:
    prompt = tuple(record.prompt.tolist())
    assert prompt in asked
    assert 'Specific Criteria' not in words().decode(prompt)
    assert 'Write two parts' in words().decode(prompt)


def test_general_data_are_one_override(made, run, trained):
  run('--config.checkpoint=c', '--config.checkpoint_step=4', engine=Planned())
  run('--config.train.data.general_fraction=0.0', '--config.phases=train')
  run('--config.train.checkpoint=base', '--config.phases=train')
  rates = [x.data.general_rate for x, _ in trained]
  assert rates == [0.2, 0.0, 0.2]
  assert [x.data.general for x, _ in trained] == ['basics:8000'] * 3
  # From the model that was sampled, unless it is said otherwise.
  assert [(x.checkpoint, x.step) for x, _ in trained] == [
    ('c', 4),
    ('runs/sft/model', -1),
    ('base', -1),
  ]


SHORTER = '--config.sampling.prompt_buckets=(192,)'


@pytest.mark.parametrize(
  'arguments, words_',
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
    (['--config.train.prompt.single='], ['config.train.prompt.single']),
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
def test_mistakes_are_one_line(made, mistake, arguments, words_):
  line = mistake(*arguments)
  assert names(line, *words_)
  assert not made.exists()


def test_without_a_workdir(made, mistake):
  assert names(mistake(workdir=''), '--workdir')


def test_no_example_says_what_is_right(made, mistake):
  rows = [
    row('pair', 'rrr/r') | {'best': None},
    row('single', 'rrr/r', n=1) | {'rewards': [7.0]},
  ]
  write_rows(made.parent / 'rows.jsonl', rows)
  line = mistake()
  assert names(line, made.parent / 'rows.jsonl', 'rewards')


def test_given_principles(made, run):
  write_rows(made.parent / 'rows.jsonl', [ROWS[1] | {'principles': 'Truth'}])
  engine = Planned()
  run(*SAMPLE, '--config.train.prompt.template=critique', engine=engine)
  assert 'Truth' in words().decode(engine.requests[0].prompt)


def test_nothing_is_kept(made, run, mistake, trained, capsys):
  run('--config.phases=sample,filter', SAMPLE[1], engine=Planned())
  capsys.readouterr()
  nothing = ['--config.filter.unhinted=false', '--config.filter.hinted=false']
  line = mistake('--config.phases=filter,train', SAMPLE[1], *nothing)
  assert names(line, made / 'samples.jsonl', 'filter')
  # It is said why, and what other rules kept is not trained on instead.
  assert re.search(r'^generations_kept +0$', capsys.readouterr().out, re.M)
  assert not (made / 'kept.jsonl').exists()
  assert names(mistake('--config.phases=train'), made / 'kept.jsonl')
  assert not trained


def test_a_template_that_was_edited(made, run, mistake, trained):
  path = made.parent / 'mine.txt'
  text = template._DIRECTORY.joinpath('practice.txt').read_text()
  path.write_text(text)
  mine = [SAMPLE[1], f'--config.train.prompt.template={path}']
  run(*mine, engine=Planned())
  assert len(trained) == 1
  path.write_text(text.replace('Judge', 'Rate'))
  template.load.cache_clear()
  for parts, file in (
    ('sample,filter,train', 'samples.jsonl'),
    ('filter', 'samples.jsonl'),
    ('train', 'kept.jsonl'),
  ):
    line = mistake(f'--config.phases={parts}', *mine)
    assert names(line, made / file, 'config.train.prompt.template')
  assert len(trained) == 1


def test_fine_tunes_and_does_not_do_it_twice(tmp_path, run, environment):
  """Judgements of the practice teacher, from a file and as drawn here."""
  examples = practice.examples('train', 24)
  made = tmp_path / 'work'
  write_rows(tmp_path / 'rows.jsonl', map(examples_lib.to_row, examples))
  arguments = [
    '--config.checkpoint=random',
    '--config.response_order=fixed',
    '--config.sampling.prompt_buckets=(192, 384)',
    '--config.sampling.max_new_tokens=192',
    '--config.train.batch.prompt_buckets=(384,)',
  ]
  run('--config.phases=sample', *arguments, engine=Taught(examples))
  drawn = rows_of(made / 'samples.jsonl')
  assert len(drawn) == 72
  path = tmp_path / 'other.jsonl'
  write_rows(
    path, [{'id': x['id'], 'text': x['text']} for x in drawn if not x['sample']]
  )
  arguments = [
    '--config=configs/rft.py:tiny',
    *arguments,
    f'--config.data={tmp_path}/rows.jsonl',
    f'--workdir={made}',
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
    '--config.filter.too_easy=false',  # all of that file is right
    env=environment,
  )
  assert lines_with(stdout, made / 'kept.jsonl', 24)
  steps = [x['step'] for x in rows_of(made / 'metrics.jsonl')]
  assert steps == [1, 2, 3]
  assert (made / 'model' / 'tokenizer.model').exists()
  assert (made / 'model' / '3').is_dir()
  kept = (made / 'kept.jsonl').read_bytes()
  before = {x: x.stat().st_mtime_ns for x in (made / 'model').rglob('*')}
  # The whole command on what was drawn here, which has the same right texts.
  stdout, _ = test_main.run(*arguments, env=environment)
  assert lines_with(stdout, made / 'model', 3)
  assert (made / 'kept.jsonl').read_bytes() == kept
  assert rows_of(made / 'samples.jsonl') == drawn
  after = {x: x.stat().st_mtime_ns for x in (made / 'model').rglob('*')}
  assert after == before


@pytest.mark.parametrize(
  'change, words_',
  [
    ('--workdir=', ['--workdir']),
    ('--config.checkpoint=', ['config.checkpoint']),
    (
      '--config.data=launch/demo/rows.jsonl',
      ['launch/demo/rows.jsonl', 'rewards'],
    ),
  ],
)
def test_mistakes_at_the_command_line(tmp_path, environment, change, words_):
  write_rows(tmp_path / 'rows.jsonl', ROWS)
  line = test_main.error_of(
    '--config=configs/rft.py:tiny',
    f'--config.data={tmp_path}/rows.jsonl',
    f'--workdir={tmp_path}/work',
    change,
    env=environment,
  )
  assert names(line, *words_)
  assert not (tmp_path / 'work').exists()
