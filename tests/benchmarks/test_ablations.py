"""The table of ablations, from what was judged."""

import subprocess
import sys

import pytest

from benchmarks import ablations
from grm_jax.evaluation import judgement_io
from tests import test_main
from tests.evaluation import fake

RUNS = {(x.run, x.judge) for x in ablations.VARIANTS}


def write(workdir, run, judge, seed, right, ids='abcd'):
  """Greedy judgements, right for these queries."""
  folder = workdir / run / str(seed) / 'evaluation'
  folder.mkdir(parents=True, exist_ok=True)
  judged = [
    fake.query(x, 0, [(8, 4)], None, [(8, 4) if x in right else (4, 8)])
    for x in ids
  ]
  single = fake.query('s', None, [(1,)], None, [(1,)], n=1, rewards=(1.0,))
  judgement_io.write(folder / f'{judge}.samples.jsonl', [*judged, single])


@pytest.fixture
def workdir(tmp_path):
  for run, judge in RUNS:
    right = 'abc' if (run, judge) == ('full', 'grpo') else 'ab'
    write(tmp_path, run, judge, 0, right)
    write(tmp_path, run, judge, 1, 'a')
  return tmp_path


def test_means_over_seeds_and_paired_differences(workdir):
  full, *others = ablations.table(str(workdir), [0, 1])
  assert full.variant.title == 'full' and full.gain is None
  assert full.seeds == (75.0, 25.0) and full.mean == 50.0
  assert full.low <= 50 <= full.high and full.high - full.low > 10
  assert len(others) == len(ablations.VARIANTS) - 1
  for row in others:
    assert row.seeds == (50.0, 25.0) and row.mean == 37.5
    # One query of four, in one of two seeds.
    gain, low, high = row.gain
    assert gain == -12.5 and low <= gain <= high == 0.0


def test_the_table_stands_beside_the_papers(workdir):
  text = ablations.markdown(ablations.table(str(workdir), [0, 1]))
  rows = [
    [cell.strip() for cell in line.strip('|').split('|')]
    for line in text.splitlines()
  ]
  assert len({len(row) for row in rows}) == 1
  by_title = {row[0]: row for row in rows}
  assert by_title['full'][2] == '25.0, 75.0'
  assert by_title['full'][4:] == ['69.9', '']
  assert by_title['RFT alone'][4:] == ['68.8', '-1.1']
  assert by_title['no principles'][4:] == ['67.5', '-2.4']
  assert by_title['RFT without general data'][3].startswith('-12.5 [')


def test_one_row_is_missing(workdir, capsys):
  path = workdir / 'no_hinted' / '1' / 'evaluation' / 'rft.samples.jsonl'
  path.unlink()
  rows = ablations.table(str(workdir), [0, 1])
  assert 'RFT without hinted samples' not in {x.variant.title for x in rows}
  assert 'RFT without hinted samples' in capsys.readouterr().err
  assert len(ablations.table(str(workdir), [0])) == len(rows) + 1


def test_other_examples_are_not_compared(workdir):
  write(workdir, 'no_principles', 'grpo', 1, 'a', ids='abce')
  with pytest.raises(ValueError, match='no principles'):
    ablations.table(str(workdir), [0, 1])


def test_nothing_was_run(tmp_path):
  command = [sys.executable, '-m', 'benchmarks.ablations']
  out = subprocess.run(
    [*command, f'--workdir={tmp_path}'],
    cwd=test_main.ROOT,
    capture_output=True,
    text=True,
  )
  assert out.returncode == 1
  assert (
    out.stderr.startswith('error: ') and 'launch/ablations.sh' in out.stderr
  )
  assert len(out.stderr.splitlines()) == 1
