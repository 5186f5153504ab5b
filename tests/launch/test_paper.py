"""The scripts of launch/paper/ at tiny size, and their tables."""

import dataclasses
import json
import os
import re
import shlex
import subprocess

import pytest
from absl import flags
from ml_collections import config_flags

from benchmarks import ablations, paper_table
from grm_jax import settings, unused_settings
from grm_jax.evaluation import judgement_io, paper_numbers, plots
from grm_jax.judges import factory as judge_factory
from grm_jax.judges.generative import Judge
from grm_jax.stages import evaluate
from tests import test_main
from tests.evaluation.suites import (
  test_ppe,
  test_rewardbench,
  test_rmb,
  test_suites,
)
from tests.evaluation.suites.published import write

# config_flags uses the deprecated load_module.
pytestmark = pytest.mark.filterwarnings('ignore:the load_module')

SCRIPTS = sorted((test_main.ROOT / 'launch' / 'paper').glob('table*.sh'))
MODELS = (
  *('INITIAL', 'RFT', 'GRM', 'META_RM', 'LLM', 'SCALAR', 'PAIR', 'CRITIC'),
  'VALUE',
)
# The models that Tables 4 and 15 train.
RANDOM = re.compile(r'(?<=checkpoint=).*(?:ablations|without_math)/.*')
TINY = (
  '--config.sampling.concurrent_prompts=8',
  '--config.max_rows=2',
  '--config.sampling.max_new_tokens=8',
  '--config.sampling.prompt_buckets=(256,512)',
)


def dry_run(script, *overrides, **environment):
  """Returns the commands that a script prints."""
  out = subprocess.run(
    ['bash', script, '--dry-run', *overrides],
    capture_output=True,
    text=True,
    check=True,
    env=os.environ | environment,
  )
  assert out.stderr == ''
  return [shlex.split(line) for line in out.stdout.splitlines()]


def parse(command, monkeypatch):
  """Returns (config, workdir) of a command of grm_jax.main."""
  monkeypatch.chdir(test_main.ROOT)
  values = flags.FlagValues()
  flags.DEFINE_string('workdir', '', '', flag_values=values)
  config_flags.DEFINE_config_file(
    'config', flag_values=values, sys_argv=command[2:]
  )
  values(command[2:])
  return values.config, values.workdir


def evaluations(commands):
  return [x for x in commands if x[3:4] and 'evaluate.py' in x[3]]


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda x: x.stem)
def test_all_settings_are_valid_and_have_an_effect(script, monkeypatch):
  commands = dry_run(script)
  assert commands[-1][1:3] == ['-m', 'benchmarks.paper_table']
  assert f'--table={script.stem[5:]}' in commands[-1]
  rows = paper_table.read_rows(int(script.stem[5:]))
  runs = set()
  for command in evaluations(commands):
    config, workdir = parse(command, monkeypatch)
    runs.add(workdir.split('/')[-2])
    settings.check(config, evaluate.SETTINGS, 'config')
    given = [
      x.removeprefix('--config.').partition('=')[0]
      for x in command
      if x.startswith('--config.')
    ]
    unused = unused_settings.messages(config, given, evaluate.UNUSED)
    assert list(unused) == []
  assert {row.judge for row in rows} <= runs


def make_benchmarks(folder):
  """Writes files of each benchmark in its published format."""
  hard = [x | {'subset': 'mt-bench-hard'} for x in test_rewardbench.ROWS]
  write(folder / 'rewardbench/filtered.jsonl', hard)
  rows = [test_ppe.best_of_k('IFEval', {0, 31}, [[0, 1], [2, 31]])]
  write(folder / 'ppe/PPE-IFEval-Best-of-K/train.jsonl', rows)
  rows = [test_rmb.bon(str(i), 'Helpfulness/Chat') for i in range(2)]
  write(folder / 'rmb/BoN_set/rows.jsonl', rows)
  name, rows = test_suites.FILES['realmistake']
  write(folder / 'realmistake' / f'{name}.jsonl', rows)


# Short templates take the place of the built-in ones.
TEXTS = (
  '{% for turn in query %}{{ turn.text }}{% endfor %}\n'
  '{% for response in responses %}{{ response }}\n{% endfor %}{{ reference }}'
)
TEMPLATES = {'critique': TEXTS + '{{ principles }}', 'no_principles': TEXTS}


def shortened(command, folder):
  """Returns a command with short templates and random models."""
  command = [RANDOM.sub('random', x) for x in command]
  name = next(
    (x.partition('=')[2] for x in command if 'prompt.template=' in x),
    'no_principles',
  )
  return [
    *command,
    f'--config.prompt.template={folder}/{name}.txt',
    f'--config.prompt.principles={folder}/no_principles.txt',
    *['--config.prompt.meta=practice_meta' for x in command if 'meta_ch' in x],
  ]


def let_a_sample_be_right(path):
  """Changes stored samples, so that each query has a right one."""
  judged = []
  for x in judgement_io.read(path):
    scores = tuple(
      float(i == x.example.best) for i in range(len(x.example.responses))
    )
    first, *others = x.samples
    right = dataclasses.replace(
      first,
      scores=scores,
      text='Specific Criteria:\nTruth.\n\nAnalysis:\nGood.',
    )
    judged.append(dataclasses.replace(x, samples=(right, *others)))
  judgement_io.write(path, judged)


@pytest.fixture(scope='module')
def from_config():
  """Returns factory.from_config, which loads each kind of judge once."""
  original, loaded = judge_factory.from_config, {}

  def cached(config, judge_config):
    key = (config.judge, config.meta_checkpoint)
    if key not in loaded:
      loaded[key] = original(config, judge_config)
    judge = loaded[key]
    if not isinstance(judge, Judge):
      return judge
    return Judge(
      judge.engine, judge.weights, judge.tokenizer, judge_config, judge.meta
    )

  return cached


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
  """Returns (environment of the scripts, folder of the runs)."""
  root = tmp_path_factory.mktemp('paper')
  make_benchmarks(root / 'data')
  for name, text in TEMPLATES.items():
    (root / f'{name}.txt').write_text(text)
  environment = {
    'WORKDIR': str(root / 'runs'),
    'DATA': str(root / 'data'),
    'CONFIG': 'configs/evaluate.py:tiny',
    'K': '2',
    'K_BASELINE': '2',
    **dict.fromkeys(MODELS, 'random'),
  }
  return environment, root / 'runs'


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda x: x.stem)
def test_every_table_at_tiny_size(script, tiny, from_config, monkeypatch):
  environment, runs = tiny
  monkeypatch.setattr(judge_factory, 'from_config', from_config)
  monkeypatch.setattr(plots, 'png', lambda figure: b'')  # takes seconds
  for command in evaluations(dry_run(script, *TINY, **environment)):
    command = shortened(command, runs.parent)
    config, workdir = parse(command, monkeypatch)
    done = os.path.exists(f'{workdir}/results.json')
    evaluate.run(config, workdir)
    judge, suite = workdir.split('/')[-2:]
    if judge in ('self_generated', 'grm_principles') and not done:
      let_a_sample_be_right(f'{workdir}/{suite}.samples.jsonl')
  table = paper_table.format_table(str(runs), int(script.stem[5:]))
  _, _, head, _, *rows = table.splitlines()
  assert len(rows) == len(paper_table.read_rows(int(script.stem[5:])))
  measured = [x for row in rows for x in re.findall(r'([\d.]+) /', row)]
  assert measured and all(0 <= float(x) <= 100 for x in measured), table


def write_results(folder, judge, suite, **curves):
  content = {'suites': {suite: {'curves': curves}}}
  path = folder / judge / suite / 'results.json'
  path.parent.mkdir(parents=True)
  path.write_text(json.dumps(content))


def test_a_table_by_hand(tmp_path):
  def point(k, value, num_meta=None):
    return {'k': k, 'value': value, 'num_meta': num_meta}

  part = {'greedy': {'value': 0.25}, 'voting': [point(32, 0.5)], 'meta': []}
  kept = {'meta_kept': [point(32, 0.75, 4), point(32, 1.0, 8)]}
  write_results(
    tmp_path, 'grm', 'ppe', sections={'correctness': part | kept}, subsets={}
  )
  lines = paper_table.format_table(str(tmp_path), 12).splitlines()
  assert lines[2:] == [
    '| method | scores | PPE Correctness |',
    '| --- | --- | --- |',
    '| GRM | greedy | 25.0 / 59.8 |',
    '| GRM | Voting@32 | 50.0 / 60.4 |',
    '| GRM | MetaRM@32/8 | 100.0 / 64.7 |',
    '| GRM with reference | greedy | - / 91.6 |',
  ]


def test_overall_is_the_mean_of_four_columns(tmp_path):
  for suite, value in (('rewardbench', 0.9), ('rmb', 0.5)):
    write_results(tmp_path, 'grm', suite, greedy={'value': value})
  sections = {
    'preference': {'greedy': {'value': 0.7}},
    'correctness': {'greedy': {'value': 0.6}},
  }
  write_results(tmp_path, 'grm', 'ppe', sections=sections)
  row = next(
    x
    for x in paper_table.read_rows(2)
    if (x.judge, x.scores) == ('grm', 'greedy')
  )
  columns = paper_table.COLUMNS[2]
  scores = paper_table.measure(str(tmp_path), columns, row)
  assert scores == pytest.approx([0.9, 0.7, 0.6, 0.5, 0.675])


def test_published_numbers_are_the_same_everywhere():
  """The plots and launch/ablations.sh have numbers of these tables too."""
  columns = (
    ('rewardbench', ['Chat', 'Chat Hard', 'Safety', 'Reasoning']),
    ('ppe', ['preference']),
    ('ppe', ['correctness']),
  )
  for row in [*paper_table.read_rows(2), *paper_table.read_rows(3)]:
    if row.judge == 'grm':
      for (suite, sections), value in zip(columns, row.published, strict=False):
        numbers = paper_numbers.of_suite(suite, sections)
        name, _, k = row.scores.partition('@')
        by_k = {'Voting': numbers.voting, 'MetaRM': numbers.meta}.get(name)
        expected = by_k[int(k)] if by_k else numbers.greedy
        assert value == pytest.approx(100 * expected)
  overall = [x.published[-1] for x in paper_table.read_rows(4)][:8]
  assert [x.paper for x in ablations.VARIANTS] == overall
