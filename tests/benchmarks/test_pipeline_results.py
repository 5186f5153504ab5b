"""The tables of what each stage brings, from what was judged."""

import subprocess
import sys

import pytest

from benchmarks import pipeline_results
from grm_jax.evaluation import judgement_io
from tests import test_main
from tests.evaluation import fake
from tests.messages import names, naming

# Of two samples each: 2, 1, 1 and 0 are right, and the meta RM likes the first.
SAMPLES = [
  [(8, 4), (9, 1)],
  [(8, 4), (1, 9)],
  [(2, 3), (9, 1)],
  [(4, 8), None],
]


def write(workdir, stage, right, metas=(2.0, 1.0), ids='abcd'):
  """Greedy judgements that are right for these queries, and SAMPLES."""
  folder = workdir / 'evaluation'
  folder.mkdir(parents=True, exist_ok=True)
  judged = [
    fake.query(name, 0, scores, metas, [(8, 4) if name in right else (4, 8)])
    for name, scores in zip(ids, SAMPLES, strict=True)
  ]
  judgement_io.write(folder / f'{stage}.samples.jsonl', judged)


@pytest.fixture
def workdirs(tmp_path):
  for seed in '01':
    write(tmp_path / seed, 'sft', 'a')
    write(tmp_path / seed, 'grpo', 'ab' if seed == '0' else 'abc')
  return [str(tmp_path / seed) for seed in '01']


def test_values_are_means_over_runs(workdirs):
  first, last = pipeline_results.read(workdirs)
  assert (first.name, last.name) == ('cold start', 'GRPO')
  assert pipeline_results.accuracies(first)['greedy'][0] == 25.0
  assert pipeline_results.accuracies(last)['greedy'][0] == (50 + 75) / 2
  # Of one sample: 1, 1/2, 1/2 and 0.
  assert pipeline_results.accuracies(last)['Voting@1'][0] == 50.0
  for value, low, high in pipeline_results.accuracies(last).values():
    assert low <= value <= high and high - low > 10


def test_sizes_of_votes_and_the_untrained_judge(workdirs, tmp_path):
  for seed in '01':
    write(tmp_path / seed, 'before', '')
  stages = pipeline_results.read(workdirs, ks=(1, 2, 4))
  assert [x.name for x in stages] == ['before training', 'cold start', 'GRPO']
  found = pipeline_results.accuracies(stages[0])
  # 17 : 5 and 11 : 4 are right, 9 : 13 and 4 : 8 are not.
  assert found['Voting@2'][0] == 50.0
  # Of two samples each has; no column for four.
  assert list(found) == ['greedy', 'Voting@1', 'Voting@2', 'MetaRM@2']


def test_differences_are_paired(workdirs):
  found = dict(pipeline_results.differences(pipeline_results.read(workdirs)))
  value, low, high = found['GRPO - cold start, greedy']
  # One of four queries in both runs, one more in one of them.
  assert value == 37.5 and 0 <= low < value < high < 100
  assert found['GRPO - cold start, one sample'] == (0.0, 0.0, 0.0)


def test_a_tie_is_wrong_where_accuracy_is_strict(workdirs):
  for seed in '01':
    judged = [
      # Right, and a tie; a tie, and no scores.
      fake.query('a', 0, [(8, 4), (5, 5)], (2.0, 1.0), [(9, 2)]),
      fake.query('b', 0, [(3, 3), None], (2.0, 1.0), [(4, 4)]),
    ]
    for stage in ('sft', 'grpo'):
      path = f'{workdirs[int(seed)]}/evaluation/{stage}.samples.jsonl'
      judgement_io.write(path, judged)
  stage = pipeline_results.read(workdirs)[0]
  found = pipeline_results.strict(stage)
  assert (found['greedy'][0], found['one sample'][0]) == (50.0, 25.0)
  # Elsewhere it is worth one half.
  assert pipeline_results.accuracies(stage)['greedy'][0] == 75.0
  differences = dict(
    pipeline_results.differences(pipeline_results.read(workdirs))
  )
  what = 'GRPO - cold start, pairs, strict, one sample'
  assert differences[what] == (0.0, 0.0, 0.0)


def test_how_the_judges_behave(workdirs):
  own = pipeline_results.behaviour(pipeline_results.read(workdirs)[0])
  assert own['parse failures, greedy'] == 0.0
  assert own['of samples'] == 12.5
  assert own['ties'] == 0.0
  # Shown in their own order: 8, 9, 8, 9 of the seven that parse are first,
  # and fake queries turn the order of no sample.
  assert own['first of two wins'] == pytest.approx(100 * 4 / 7)


def test_a_judge_of_whom_nothing_parses(tmp_path):
  judged = [fake.query('a', 0, [None, None], (2.0, 1.0), [None])]
  path = tmp_path / 'evaluation' / 'before.samples.jsonl'
  path.parent.mkdir()
  judgement_io.write(path, judged)
  (stage,) = pipeline_results.read([str(tmp_path)])
  own = pipeline_results.behaviour(stage)
  assert own['parse failures, greedy'] == own['of samples'] == 100.0
  assert own['ties'] is own['first of two wins'] is None
  assert (
    '| before training | 100.0 | 100.0 |  |  |'
    in pipeline_results.markdown([stage])
  )


def test_the_tables(workdirs):
  text = pipeline_results.markdown(pipeline_results.read(workdirs))
  tables = [
    [line.strip('|').split('|') for line in part.splitlines()]
    for part in text.split('\n\n')
  ]
  assert len(tables) == 4
  for rows in tables:
    assert len({len(row) for row in rows}) == 1
  assert '| GRPO | 62.5 [' in text
  assert '| GRPO - cold start, greedy | +37.5 [' in text


def test_runs_that_do_not_belong_together(workdirs, tmp_path):
  write(tmp_path / '2', 'sft', 'a', ids='abcx')
  with pytest.raises(ValueError, match=naming('grpo.samples.jsonl')):
    pipeline_results.read([*workdirs, str(tmp_path / '2')])
  write(tmp_path / '2', 'grpo', 'a', ids='abcx')
  stage = pipeline_results.read([*workdirs, str(tmp_path / '2')])[0]
  with pytest.raises(ValueError, match='cold start'):
    stage.items(0)
  done = subprocess.run(
    [sys.executable, '-m', 'benchmarks.pipeline_results', str(tmp_path)],
    capture_output=True,
    text=True,
    cwd=test_main.ROOT,
    check=False,
  )
  assert done.returncode == 1
  (line,) = done.stderr.splitlines()
  assert line.startswith('error: ')
  assert names(line, str(tmp_path), 'configs/spct.py')
