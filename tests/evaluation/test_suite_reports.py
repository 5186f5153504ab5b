"""Tests that curves and sections of each suite use its own score."""

import numpy as np
import pytest

from grm_jax.evaluation import report, scaling_curves
from grm_jax.evaluation.metrics import Result
from grm_jax.evaluation.suites import (
  SUITES,
  judgebench,
  realmistake,
  rmb,
  rmbench,
)
from grm_jax.judgement import voting
from tests.evaluation.fake import query

# Suite -> (number of responses, best, rewards, tags) of a few of its rows.
ROWS = {
  'rewardbench2': [
    (4, 1, None, dict(section='Math', subset='Math')),
    (4, 0, None, dict(section='Focus', subset='Focus')),
    *[
      (
        3 if kind == 'tied' else 2,
        0 if kind == 'ref' else None,
        (1.0, 1.0, 0.0) if kind == 'tied' else (1.0, 0.0),
        dict(section='Ties', subset='Ties', kind=kind, query=f'ties/{i}'),
      )
      for kind in ('tied', 'ref')
      for i in range(2)
    ],
  ],
  'ppe': [
    (2, 0, None, dict(section='preference', subset='Human-Preference-V1')),
    (2, 1, None, dict(section='correctness', subset='MATH')),
    (2, 1, None, dict(section='correctness', subset='GPQA')),
  ],
  'rmb': [
    (n, 0, None, dict(section=section, subset=section))
    for section in rmb.SECTIONS
    for n in ([2] if section.endswith(rmb.PAIRS) else [3, 4])
  ],
  'judgebench': [
    (2, best, None, dict(section=group, subset=source, pair=source))
    for source, group in judgebench.GROUPS.items()
    for best in (0, 1)
  ],
  'realmistake': [
    (1, None, (label,), dict(section=task, subset=f'{task}/gpt-4-0613'))
    for task in realmistake.TASKS[:2]
    for label in (0.0, 1.0)
  ],
  'llmbar': [
    (2, 0, None, dict(section='Natural', subset='Natural')),
    (2, 0, None, dict(section='Adversarial', subset='Manual')),
    (2, 1, None, dict(section='Adversarial', subset='GPTOut')),
  ],
  'pandalm': [
    (2, 1, None, dict(section='preference', subset='unanimous')),
    (2, 1, None, dict(section='preference', subset='majority')),
  ],
  'rmbench': [
    (
      2,
      0,
      None,
      dict(
        section=section,
        subset=f'{section} {difficulty}',
        difficulty=difficulty,
        styles=difficulty,
        query=section,
      ),
    )
    for section in rmbench.SECTIONS
    for difficulty in rmbench.DIFFICULTIES
  ],
  'evalbiasbench': [
    (2, 0, None, dict(section='length bias', subset='length bias')),
    (2, 1, None, dict(section='concreteness', subset='concreteness')),
  ],
  'hhh': [
    (2, 0, None, dict(section='helpful', subset='helpful')),
    (2, 1, None, dict(section='other', subset='other')),
  ],
}


@pytest.mark.parametrize('name', ROWS)
def test_report_of_every_suite(name):
  rng = np.random.default_rng(4)
  suite, queries = SUITES[name], []
  for copy in range(6):
    for i, (n, best, rewards, tags) in enumerate(ROWS[name]):
      tags = dict(tags)
      for key in {'pair', 'query'} & set(tags):
        tags[key] += f'/{copy}'
      scores = rng.integers(1, 11, (5, n)).tolist()
      scores = [None, *map(tuple, scores[1:])]
      judged_query = query(
        f'{copy}/{i}', best, scores, n=n, rewards=rewards, tags=tags
      )
      queries.append(judged_query)
  if name == 'realmistake':
    estimate = scaling_curves.mean_of_scores(suite.score, suite.interval)
  else:
    estimate = scaling_curves.mean_of_terms(suite.terms)
  curves = scaling_curves.suite_curves(queries, estimate)
  # All samples vote: the curves end in the scores of the summed scores.
  voted = [
    Result(x.example, voting.sum_scores([y.scores for y in x.samples], n))
    for x in queries
    for n in [len(x.example.responses)]
  ]
  score = suite.score(voted)
  last = curves.voting[-1]
  assert last.value == pytest.approx(score.overall)
  assert (last.low, last.high) == pytest.approx(suite.interval(voted))
  for parts, values in (
    (curves.sections, score.sections),
    (curves.subsets, score.subsets),
  ):
    actual = {key: x.voting[-1].value for key, x in parts.items()}
    assert actual == pytest.approx(values) and list(actual) == list(values)
  counts = {key: x.num_queries for key, x in curves.subsets.items()}
  assert counts == score.counts
  for key, x in curves.sections.items():
    # Scoring the results of a section alone gives the score of the section.
    members = [r for r in voted if r.example.tags['section'] == key]
    last = x.voting[-1]
    assert len(members) == x.num_queries > 0
    assert suite.score(members).overall == pytest.approx(last.value)
    assert (last.low, last.high) == pytest.approx(suite.interval(members))
  files = report.render({name: report.suite_report(name, queries, curves)}, {})
  assert f'{name}-parts.png' in files and f'{name}-lengths.png' in files
