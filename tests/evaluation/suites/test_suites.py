"""Tests of the table of suites."""

import inspect
import subprocess
import sys

import pytest

from grm_jax.evaluation import metrics
from grm_jax.evaluation.suites import SUITES
from tests.evaluation.suites import (
  test_evalbiasbench,
  test_hhh,
  test_judgebench,
  test_llmbar,
  test_pandalm,
  test_ppe,
  test_realmistake,
  test_rewardbench,
  test_rewardbench2,
  test_rmb,
  test_rmbench,
)
from tests.evaluation.suites.published import write


def test_every_suite_has_load_score_interval():
  assert set(SUITES) == {
    'rewardbench',
    'rewardbench2',
    'ppe',
    'rmb',
    'judgebench',
    'realmistake',
    'llmbar',
    'pandalm',
    'rmbench',
    'evalbiasbench',
    'hhh',
  }
  for name, module in SUITES.items():
    assert module.__name__.endswith(f'.{name}')
    assert inspect.signature(module.score).return_annotation is metrics.Score
    for function, expected in (
      (module.load, 'path'),
      (module.score, 'results'),
      (module.interval, 'results'),
    ):
      first, *others = inspect.signature(function).parameters.values()
      assert first.name == expected
      assert all(x.default is not x.empty for x in others)


# Suite -> (path of a file without its suffix, rows).
FILES = {
  'rewardbench': ('data/filtered', test_rewardbench.ROWS),
  'rewardbench2': ('data/test', test_rewardbench2.ROWS),
  'ppe': ('PPE-MATH-Best-of-K/train', test_ppe.MATH),
  'rmb': ('Pairwise_set/rows', [test_rmb.pair('1', 'Harmlessness/S1')] * 2),
  'judgebench': ('data/gpt', test_judgebench.ROWS),
  'realmistake': (
    'data/math_word_problem_generation/m',
    [test_realmistake.row('m', 'error'), test_realmistake.row('n', 'no_error')],
  ),
  'llmbar': (
    'LLMBar/Natural/dataset',
    [test_llmbar.row('a', 1), test_llmbar.row('b', 2)],
  ),
  'pandalm': ('testset-v1', test_pandalm.ROWS[:4]),
  'rmbench': ('data/total_dataset', test_rmbench.ROWS),
  'evalbiasbench': ('biasbench', test_evalbiasbench.ROWS),
  'hhh': ('helpful/test/0000', test_hhh.ROWS),
}


@pytest.mark.parametrize('suite', SUITES)
def test_every_suite_reads_every_format(tmp_path, suite):
  name, rows = FILES[suite]
  loaded = {}
  for suffix in ('json', 'jsonl', 'parquet'):
    path = write(tmp_path / suffix / f'{name}.{suffix}', rows)
    loaded[suffix] = SUITES[suite].load(path)
    assert SUITES[suite].load(str(tmp_path / suffix)) == loaded[suffix]
  assert loaded['json'] == loaded['jsonl'] == loaded['parquet']


def test_scoring_imports_neither_jax_nor_pyarrow():
  code = (
    'import sys, grm_jax.evaluation.suites\n'
    'print([m for m in ("jax", "pyarrow", "tensorflow") if m in sys.modules])'
  )
  out = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert out.stdout.strip() == '[]'
