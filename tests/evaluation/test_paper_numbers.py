"""Published numbers: only for whole suites that the paper tested."""

import numpy as np
import pytest

from grm_jax.evaluation import paper_numbers
from grm_jax.evaluation.suites import SUITES, rmb

REWARDBENCH = ['Chat', 'Chat Hard', 'Safety', 'Reasoning']
PPE = ['preference', 'correctness']


def test_only_suites_that_the_paper_tested_have_numbers():
  sections = {
    'rewardbench': REWARDBENCH,
    'ppe': PPE,
    'rmb': list(rmb.SECTIONS),
  }
  published = {
    name: paper_numbers.of_suite(name, sections.get(name, []))
    for name in SUITES
  }
  tested = {name for name, x in published.items() if x}
  assert tested == {'rewardbench', 'ppe', 'rmb', 'realmistake'}
  greedy = {name: published[name].greedy for name in tested}
  assert greedy == {
    'rewardbench': 0.860,
    'ppe': pytest.approx((0.647 + 0.598) / 2),
    'rmb': 0.690,
    'realmistake': 0.722,
  }


@pytest.mark.parametrize(
  'name, sections',
  [
    ('rewardbench', REWARDBENCH[:3]),
    ('rewardbench', []),
    ('rmb', rmb.SECTIONS[1:]),
    ('ppe', []),
    ('judgebench', ['overall']),
    ('grpo', REWARDBENCH),
  ],
)
def test_parts_of_suites_have_none(name, sections):
  assert paper_numbers.of_suite(name, sections) is None


def test_ppe_is_the_mean_of_its_columns():
  both, preference, correctness = (
    paper_numbers.of_suite('ppe', x) for x in (PPE, PPE[:1], PPE[1:])
  )
  for kind in ('voting', 'meta'):
    columns = [getattr(x, kind) for x in (both, preference, correctness)]
    for k in columns[0]:
      mean = np.mean([columns[1][k], columns[2][k]])
      assert columns[0][k] == pytest.approx(mean)


@pytest.mark.parametrize('k, overall', [(8, 0.706), (32, 0.710)])
def test_the_overall_of_the_paper_is_the_mean_of_four_columns(k, overall):
  sections = [
    ('rewardbench', REWARDBENCH),
    ('ppe', PPE[:1]),
    ('ppe', PPE[1:]),
    ('rmb', rmb.SECTIONS),
  ]
  columns = [paper_numbers.of_suite(*x).voting[k] for x in sections]
  assert np.mean(columns) == pytest.approx(overall, abs=5.1e-4)
