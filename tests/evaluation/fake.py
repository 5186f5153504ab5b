"""Seeded judged examples that look like those of a real evaluation.

`python -m tests.evaluation.fake DIRECTORY` writes a report of them.
"""

import sys

import numpy as np

from grm_jax.evaluation import report, scaling_curves
from grm_jax.evaluation.suites import SUITES, rewardbench
from grm_jax.judgement import response_order
from grm_jax.judgement.example import JudgingExample, Turn
from grm_jax.judgement.judgement import JudgedExample, Judgement

_TEXT = """Specific Criteria:
1. Correctness (weight: 40%): the claims hold, and code runs as it stands.
2. Following the request (weight: 30%): nothing asked for is missing.
3. Clarity (weight: 20%): a reader finds the answer without searching.
4. Brevity (weight: 10%): no padding.

Analysis:
{analysis}

Scores: \\boxed{{{scores}}}"""


def query(
  id: str,
  best: int | None,
  scores,
  metas=None,
  greedy=None,
  n: int = 2,
  **fields,
) -> JudgedExample:
  """Returns a query with these scores; `greedy` is None or [scores]."""
  example = JudgingExample(
    id=id,
    query=(Turn('user', f'query {id}'),),
    responses=tuple(f'response {i}' for i in range(n)),
    best=best,
    **fields,
  )
  metas = metas or [None] * len(scores)

  def make_judgement(scores, meta):
    return Judgement(tuple(range(n)), 'text', 100, 'stop', scores, meta)

  return JudgedExample(
    example,
    tuple(map(make_judgement, scores, metas)),
    make_judgement(greedy[0], None) if greedy else None,
  )


def judged(
  num: int, k: int, seed: int = 0, n: tuple[int, ...] = (2,), metas: bool = True
) -> list[JudgedExample]:
  """Returns queries of RewardBench's subsets with k samples and greedy."""
  rng = np.random.default_rng(seed)
  subsets = [(s, x) for s, counts in rewardbench.COUNTS.items() for x in counts]
  return [_query(rng, i, k, n, metas, subsets) for i in range(num)]


def _query(rng, i, k, n, metas, subsets):
  section, subset = subsets[rng.integers(len(subsets))]
  count = int(rng.choice(n))
  best = int(rng.integers(count))
  # A query is easy or hard: the best response's lead, in points.
  lead = rng.normal(1.6 if section != 'Chat Hard' else 0.5, 1.8)
  quality = rng.normal(5.0, 1.0, count)
  quality[best] = max(np.delete(quality, best), default=5.0) + lead
  example = JudgingExample(
    id=f'rewardbench/{subset}/{i}',
    query=(Turn('user', f'Question {i}: why is 2 < 3 & 3 > 2? Ärger, 数学.'),),
    responses=tuple(f'Answer {j} to question {i}.' for j in range(count)),
    best=best,
    tags={'suite': 'rewardbench', 'section': section, 'subset': subset},
  )
  shown = response_order.orders('balanced', count, k + 1, 0, example.id)
  *samples, greedy = (_sample(rng, quality, x, best, metas) for x in shown)
  return JudgedExample(example, tuple(samples), greedy)


def _sample(rng, quality, order, best, metas):
  noise = rng.normal(0, 1.3, len(quality))
  noise[order[0]] += 0.3  # A small position bias.
  scores = np.clip(np.rint(quality + noise), 1, 10).astype(int).tolist()
  finish, tokens = 'stop', int(rng.gamma(9, 30)) + 20
  analysis = '\n'.join(
    f'- Response {place}: meets the criteria to {scores[index]} of 10.'
    for place, index in enumerate(order, 1)
  )
  text = _TEXT.format(
    analysis=analysis, scores=', '.join(str(scores[x]) for x in order)
  )
  right = scores[best] == max(scores)
  meta = float(rng.normal(0.8 * right, 1.0)) if metas else None
  if rng.random() < 0.02:
    text, scores, finish, tokens = text[:-30], None, 'length', 1024
  return Judgement(
    order=order,
    text=text,
    num_tokens=tokens,
    finish=finish,
    scores=scores and tuple(scores),
    meta=meta,
  )


def suite_reports(num: int, k: int) -> dict[str, report.SuiteReport]:
  """Returns reports of RewardBench and of data that is not a suite."""
  suite = SUITES['rewardbench']
  first, other = judged(num, k), judged(num // 4, k, seed=1, n=(2, 3, 4, 5))
  return {
    'rewardbench': report.suite_report(
      'RewardBench',
      first,
      scaling_curves.suite_curves(
        first, scaling_curves.mean_of_terms(suite.terms)
      ),
    ),
    'own': report.suite_report('Own data', other, scaling_curves.curves(other)),
  }


if __name__ == '__main__':
  reports = suite_reports(2000, 32)
  facts = {'model': 'none: these are invented scores', 'temperature': '0.5'}
  report.write_report(sys.argv[1], reports, facts)
  print(report.table(reports))
