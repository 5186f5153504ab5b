"""Table of ablations from stored judgements."""

import subprocess
import sys

import pytest

from benchmarks import ablations
from grm_jax.evaluation import judgement_io
from tests import test_main
from tests.evaluation import fake

RUNS = {(x.run, x.judge) for x in ablations.VARIANTS}


def write_judgements(workdir, run, judge, seed, correct_ids, ids='abcd'):
  """Writes greedy judgements that are correct for `correct_ids`."""
  folder = workdir / run / str(seed) / 'evaluation'
  folder.mkdir(parents=True, exist_ok=True)
  judged = [
    fake.query(x, 0, [(8, 4)], None, [(8, 4) if x in correct_ids else (4, 8)])
    for x in ids
  ]
  single = fake.query('s', None, [(1,)], None, [(1,)], n=1, rewards=(1.0,))
  judgement_io.write(folder / f'{judge}.samples.jsonl', [*judged, single])


@pytest.fixture
def workdir(tmp_path):
  for run, judge in RUNS:
    correct_ids = 'abc' if (run, judge) == ('full', 'grpo') else 'ab'
    write_judgements(tmp_path, run, judge, 0, correct_ids)
    write_judgements(tmp_path, run, judge, 1, 'a')
  return tmp_path


def test_means_over_seeds_and_paired_differences(workdir):
  full, *variants = ablations.read_rows(str(workdir), [0, 1])
  assert full.variant.title == 'full' and full.gain is None
  assert full.seeds == (75.0, 25.0) and full.mean == 50.0
  assert full.low <= 50 <= full.high and full.high - full.low > 10
  assert len(variants) == len(ablations.VARIANTS) - 1
  for row in variants:
    assert row.seeds == (50.0, 25.0) and row.mean == 37.5
    # The variant fails one query of four in one of two seeds.
    gain, low, high = row.gain
    assert gain == -12.5 and low <= gain <= high == 0.0


def test_table_shows_differences_of_paper(workdir):
  text = ablations.markdown(ablations.read_rows(str(workdir), [0, 1]))
  rows = [
    [cell.strip() for cell in line.strip('|').split('|')]
    for line in text.splitlines()
  ]
  assert len({len(row) for row in rows}) == 1
  by_title = {row[0]: row for row in rows}
  assert by_title['full'][2] == '25.0, 75.0'
  assert by_title['full'][4:] == ['69.9', '']
  assert by_title['RFT only'][4:] == ['68.8', '-1.1']
  assert by_title['no principles'][4:] == ['67.5', '-2.4']
  assert by_title['RFT without general data'][3].startswith('-12.5 [')


def test_variant_without_all_seeds_is_skipped(workdir, capsys):
  path = workdir / 'no_hinted' / '1' / 'evaluation' / 'rft.samples.jsonl'
  path.unlink()
  rows = ablations.read_rows(str(workdir), [0, 1])
  assert 'RFT without hinted samples' not in {x.variant.title for x in rows}
  assert 'RFT without hinted samples' in capsys.readouterr().err
  assert len(ablations.read_rows(str(workdir), [0])) == len(rows) + 1


def test_runs_with_different_examples_raise(workdir):
  write_judgements(workdir, 'no_principles', 'grpo', 1, 'a', ids='abce')
  with pytest.raises(ValueError, match='no principles'):
    ablations.read_rows(str(workdir), [0, 1])


def test_missing_runs_exit_with_one_line(tmp_path):
  command = [sys.executable, '-m', 'benchmarks.ablations']
  process = subprocess.run(
    [*command, f'--workdir={tmp_path}'],
    cwd=test_main.ROOT,
    capture_output=True,
    text=True,
  )
  assert process.returncode == 1
  assert (
    process.stderr.startswith('error: ')
    and 'launch/ablations.sh' in process.stderr
  )
  assert len(process.stderr.splitlines()) == 1
