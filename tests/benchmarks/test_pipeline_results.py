"""Tables of the stages from stored judgements."""

import subprocess
import sys

import pytest

from benchmarks import pipeline_results
from grm_jax.evaluation import judgement_io
from tests import test_main
from tests.evaluation import fake
from tests.messages import names, naming

# Per query 2, 1, 1 and 0 of two samples are correct. The meta RM prefers the
# first sample.
SAMPLES = [
  [(8, 4), (9, 1)],
  [(8, 4), (1, 9)],
  [(2, 3), (9, 1)],
  [(4, 8), None],
]


def write_judgements(workdir, stage, correct_ids, metas=(2.0, 1.0), ids='abcd'):
  """Writes SAMPLES and greedy judgements correct for `correct_ids`."""
  folder = workdir / 'evaluation'
  folder.mkdir(parents=True, exist_ok=True)
  judged = [
    fake.query(
      name, 0, scores, metas, [(8, 4) if name in correct_ids else (4, 8)]
    )
    for name, scores in zip(ids, SAMPLES, strict=True)
  ]
  judgement_io.write(folder / f'{stage}.samples.jsonl', judged)


@pytest.fixture
def workdirs(tmp_path):
  for seed in '01':
    write_judgements(tmp_path / seed, 'sft', 'a')
    write_judgements(tmp_path / seed, 'grpo', 'ab' if seed == '0' else 'abc')
  return [str(tmp_path / seed) for seed in '01']


def test_values_are_means_over_runs(workdirs):
  first, last = pipeline_results.read(workdirs)
  assert (first.name, last.name) == ('cold start', 'GRPO')
  assert pipeline_results.accuracies(first)['greedy'][0] == 25.0
  assert pipeline_results.accuracies(last)['greedy'][0] == (50 + 75) / 2
  # Accuracy of one sample per query: 1, 1/2, 1/2 and 0.
  assert pipeline_results.accuracies(last)['Voting@1'][0] == 50.0
  for value, low, high in pipeline_results.accuracies(last).values():
    assert low <= value <= high and high - low > 10


def test_vote_columns_are_limited_by_samples(workdirs, tmp_path):
  for seed in '01':
    write_judgements(tmp_path / seed, 'before', '')
  stages = pipeline_results.read(workdirs, ks=(1, 2, 4))
  assert [x.name for x in stages] == ['before training', 'cold start', 'GRPO']
  accuracies = pipeline_results.accuracies(stages[0])
  # 17 : 5 and 11 : 4 are correct; 9 : 13 and 4 : 8 are wrong.
  assert accuracies['Voting@2'][0] == 50.0
  # There are two samples, so k=4 has no column.
  assert list(accuracies) == ['greedy', 'Voting@1', 'Voting@2', 'MetaRM@2']


def test_differences_are_paired(workdirs):
  stages = pipeline_results.read(workdirs)
  differences = dict(pipeline_results.differences(stages))
  value, low, high = differences['GRPO - cold start, greedy']
  # The gain is one query of four in both runs and two queries in one run.
  assert value == 37.5 and 0 <= low < value < high < 100
  assert differences['GRPO - cold start, one sample'] == (0.0, 0.0, 0.0)


def test_tie_is_wrong_in_strict_accuracy(workdirs):
  for seed in '01':
    judged = [
      # Samples: correct and a tie; a tie and a parse failure.
      fake.query('a', 0, [(8, 4), (5, 5)], (2.0, 1.0), [(9, 2)]),
      fake.query('b', 0, [(3, 3), None], (2.0, 1.0), [(4, 4)]),
    ]
    for stage in ('sft', 'grpo'):
      path = f'{workdirs[int(seed)]}/evaluation/{stage}.samples.jsonl'
      judgement_io.write(path, judged)
  stage = pipeline_results.read(workdirs)[0]
  strict = pipeline_results.strict_pairs(stage)
  assert (strict['greedy'][0], strict['one sample'][0]) == (50.0, 25.0)
  # Other accuracies count a tie as one half.
  assert pipeline_results.accuracies(stage)['greedy'][0] == 75.0
  differences = dict(
    pipeline_results.differences(pipeline_results.read(workdirs))
  )
  description = 'GRPO - cold start, pairs, strict, one sample'
  assert differences[description] == (0.0, 0.0, 0.0)


def test_behaviour_rates(workdirs):
  behaviour = pipeline_results.behaviour(pipeline_results.read(workdirs)[0])
  assert behaviour['parse failures, greedy'] == 0.0
  assert behaviour['parse failures, samples'] == 12.5
  assert behaviour['ties'] == 0.0
  # Fake queries keep the order of the responses. The first one wins in four of
  # the seven samples that parse.
  assert behaviour['first position wins'] == pytest.approx(100 * 4 / 7)


def test_judge_with_only_parse_failures(tmp_path):
  judged = [fake.query('a', 0, [None, None], (2.0, 1.0), [None])]
  path = tmp_path / 'evaluation' / 'before.samples.jsonl'
  path.parent.mkdir()
  judgement_io.write(path, judged)
  (stage,) = pipeline_results.read([str(tmp_path)])
  behaviour = pipeline_results.behaviour(stage)
  assert (
    behaviour['parse failures, greedy']
    == behaviour['parse failures, samples']
    == 100.0
  )
  assert behaviour['ties'] is behaviour['first position wins'] is None
  assert (
    '| before training | 100.0 | 100.0 |  |  |'
    in pipeline_results.markdown([stage])
  )


def test_markdown_tables(workdirs):
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


def test_mismatched_runs_raise(workdirs, tmp_path):
  write_judgements(tmp_path / '2', 'sft', 'a', ids='abcx')
  with pytest.raises(ValueError, match=naming('grpo.samples.jsonl')):
    pipeline_results.read([*workdirs, str(tmp_path / '2')])
  write_judgements(tmp_path / '2', 'grpo', 'a', ids='abcx')
  stage = pipeline_results.read([*workdirs, str(tmp_path / '2')])[0]
  with pytest.raises(ValueError, match='cold start'):
    stage.items(0)
  process = subprocess.run(
    [sys.executable, '-m', 'benchmarks.pipeline_results', str(tmp_path)],
    capture_output=True,
    text=True,
    cwd=test_main.ROOT,
    check=False,
  )
  assert process.returncode == 1
  (line,) = process.stderr.splitlines()
  assert line.startswith('error: ')
  assert names(line, str(tmp_path), 'configs/spct.py')
