"""The mean over the paper's columns, from the paper's own numbers."""

import dataclasses

import pytest

from grm_jax.evaluation import overall
from grm_jax.evaluation.scaling_curves import CurvePoint, Curves
from grm_jax.evaluation.suites import ppe, rewardbench, rmb


def curves(num_queries, greedy, voting, meta, sections=None):
  def points(values):
    return tuple(CurvePoint(k, None, v, 0, 1, 1, True) for k, v in values)

  return Curves(
    num_queries,
    points(voting.items()),
    points(meta.items()),
    (),
    points([(0, greedy)])[0],
    sections or {},
  )


def paper():
  """The row of DeepSeek-GRM-27B in Tables 6 and 7, in percent."""
  preference = curves(9000, 64.7, {1: 62.4, 32: 65.3}, {32: 67.2})
  correctness = curves(12_800, 59.8, {1: 59.5, 32: 60.4}, {32: 63.2})
  reward_bench = curves(2985, 86.0, {1: 85.2, 32: 88.5}, {32: 90.4})
  multi = curves(19_000, 69.0, {1: 64.4, 32: 69.7}, {32: 70.3})

  def with_sections(x, names):
    return dataclasses.replace(x, sections=dict.fromkeys(names, x))

  return {
    'ppe': dataclasses.replace(
      preference,
      sections={'preference': preference, 'correctness': correctness},
    ),
    'rewardbench': with_sections(reward_bench, rewardbench.COUNTS),
    'rmb': with_sections(multi, rmb.SECTIONS),
    'realmistake': curves(900, 72.2, {1: 70.0, 8: 74.4}, {}),
  }


def test_overall_is_that_of_the_paper():
  x = overall.overall(paper())
  assert (x.label, x.is_complete, x.max_k) == ('Overall', True, 32)
  assert x.num_queries == 2985 + 9000 + 12_800 + 19_000
  assert x.greedy == pytest.approx(69.9, abs=0.05)
  assert x.voting == pytest.approx({1: 67.9, 32: 71.0}, abs=0.05)
  assert x.meta == pytest.approx({32: 72.8}, abs=0.05)


def test_part_of_a_suite_has_no_overall():
  suites = paper()
  few = dataclasses.replace(suites['rewardbench'], num_queries=2984)
  no_chat = dataclasses.replace(
    suites['rewardbench'],
    sections={k: few for k in rewardbench.COUNTS if k != 'Chat'},
  )
  for part in (few, no_chat):
    x = overall.overall(suites | {'rewardbench': part})
    assert not x.is_complete
    assert x.label == (
      'mean of rewardbench (part), ppe preference, ppe correctness, rmb'
    )


def test_missing_columns():
  suites = paper()
  del suites['rmb']
  sections = {'correctness': suites['ppe'].sections['correctness']}
  suites['ppe'] = dataclasses.replace(suites['ppe'], sections=sections)
  x = overall.overall(suites)
  assert x.label == 'mean of rewardbench, ppe correctness'
  assert (x.greedy, x.num_queries) == (pytest.approx(72.9), 15_785)
  del suites['ppe']
  assert overall.overall(suites) is None


def test_columns_with_other_k_or_without_greedy():
  suites = paper()
  multi = curves(19_000, 69.0, {1: 64.4, 8: 69.5}, {8: 68.8})
  suites['rmb'] = dataclasses.replace(multi, greedy=None)
  x = overall.overall(suites)
  assert (list(x.voting), x.meta, x.max_k, x.greedy) == ([1], {}, None, None)


def test_columns_of_a_suite():
  suites = paper()
  assert list(overall.columns_of('ppe', suites['ppe'])) == list(ppe._SECTIONS)
  assert overall.columns_of('rmb', suites['rmb']) == {}
