"""The stage solve: sampled solutions of MATH problems with checked answers."""

import itertools
import json
import pathlib

import numpy as np
import pytest

from grm_jax.data import example_sources
from grm_jax.errors import UserError
from grm_jax.sampling.request import Generation
from grm_jax.stages import solve
from tests import test_configs, test_main
from tests.data.datasets import rows
from tests.evaluation.suites.published import without, write
from tests.messages import in_row, naming


@pytest.fixture
def config(monkeypatch):
  monkeypatch.chdir(test_main.ROOT)
  config = test_configs.load(test_configs.ROOT / 'configs/solve.py', 'tiny')
  config.sampling.max_new_tokens = 8
  config.sampling.concurrent_prompts = 8  # one per virtual device
  config.sampling.prompt_buckets = (128,)
  return config


def read(path):
  return [json.loads(x) for x in path.read_text().splitlines()]


def generation(text, finish='stop'):
  empty = np.zeros(0)
  return Generation('0', 0, empty, finish, empty, empty, text)


def test_an_interrupted_run_resumes(tmp_path, config, monkeypatch):
  solve.run(config, str(tmp_path / 'whole'))
  sample, remaining = solve._sample, []

  def interrupted(config, problems):
    yield from itertools.islice(sample(config, problems), 1)
    raise KeyboardInterrupt

  def resumed(config, problems):
    remaining.extend(problems)
    return sample(config, problems)

  monkeypatch.setattr(solve, '_sample', interrupted)
  with pytest.raises(KeyboardInterrupt):
    solve.run(config, str(tmp_path / 'parts'))
  monkeypatch.setattr(solve, '_sample', resumed)
  config.num_samples = 3
  with pytest.raises(UserError, match=naming('config.num_samples', 2, 3)):
    solve.run(config, str(tmp_path / 'parts'))
  config.num_samples = 2
  solve.run(config, str(tmp_path / 'parts'))
  assert len(remaining) == 2
  assert read(tmp_path / 'parts' / solve.SOLUTIONS) == read(
    tmp_path / 'whole' / solve.SOLUTIONS
  )
  files = sorted(x.name for x in (tmp_path / 'parts').iterdir())
  assert files == ['config.json', solve.SOLUTIONS]
  published = read(pathlib.Path(config.input))
  for row, problem in zip(
    read(tmp_path / 'whole' / solve.SOLUTIONS), published, strict=True
  ):
    assert without(row, 'answers') == problem
    assert len(row['answers']) == 2


def test_answers_become_examples(tmp_path, config, monkeypatch, capsys):
  texts = [r' \boxed{2} ', r'\boxed{3}', r'\boxed{2} is long']
  finishes = ['stop', 'stop', 'length']
  samples = [
    [generation(*x) for x in zip(texts, finishes, strict=True)],
    [generation(r'\boxed{5}'), generation('5')],
    [],  # the problem does not fit
  ]
  problems = [
    rows.MATH,
    rows.MATH | {'problem': '2+3?', 'solution': r'\boxed{5}'},
    rows.MATH | {'problem': 'long'},
    rows.MATH | {'problem': 'no box', 'solution': '2'},
    without(rows.MATH, 'solution'),
  ]
  config.input = write(tmp_path / 'math.jsonl', problems)
  monkeypatch.setattr(solve, '_sample', lambda *_: iter(samples))
  solve.run(config, str(tmp_path / 'run'))
  answers = [row['answers'] for row in read(tmp_path / 'run' / solve.SOLUTIONS)]
  assert [[x['is_correct'] for x in row] for row in answers] == [
    [True, False, False],
    [True, True],
  ]
  assert answers[0][0]['text'] == r'\boxed{2}'
  out = capsys.readouterr().out
  assert '3 of 5' in out and '1 of 2' in out
  examples = [
    x
    for split in example_sources.SPLITS
    for x in example_sources.read(f'math:{tmp_path}/run/solutions.jsonl', split)
  ]
  pair, single = examples
  assert pair.responses[pair.best] == r'\boxed{2}'
  assert single.rewards == (float(single.responses[0] == r'\boxed{2}'),)
  config.fail_on_bad_rows = True
  with pytest.raises(UserError, match=in_row(config.input, 5, 'solution')):
    solve.run(config, str(tmp_path / 'strict'))


def test_a_problem_that_does_not_fit_has_no_answers(tmp_path, config):
  problems = [rows.MATH | {'problem': 'long ' * 200}, rows.MATH]
  config.input = write(tmp_path / 'math.jsonl', problems)
  solve.run(config, str(tmp_path))
  (row,) = read(tmp_path / solve.SOLUTIONS)
  assert row['problem'] == rows.MATH['problem'] and len(row['answers']) == 2


@pytest.mark.parametrize('key', ['checkpoint', 'input'])
def test_an_empty_setting(tmp_path, config, key):
  config[key] = ''
  with pytest.raises(UserError, match=naming(f'config.{key}')):
    solve.run(config, str(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()
