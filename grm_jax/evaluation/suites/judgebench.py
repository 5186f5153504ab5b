"""JudgeBench: pairs with an objectively right response, judged in both orders.

Rows (README of github ScalerLab/JudgeBench; JSON lines in its data/, and in
huggingface.co/datasets/ScalerLab/JudgeBench with the splits gpt, 350 pairs by
GPT-4o, and claude, 270 by Claude 3.5 Sonnet): pair_id, original_id, source,
question, response_model, response_A, response_B, label 'A>B' or 'B>A'.

A pair is two games, with A shown first and with B shown first (run_judge.py).
A game is +1 if the right response wins, -1 if the other does, 0 for a tie or no
verdict; the pair is right if the sum is above 0 (utils/metrics.py). So a pair
becomes two examples here, in the orders A B and B A, tied together by
tags['pair']; the larger vote of an example decides its game. With config.response_order
'fixed' this is the published protocol. With 'balanced' or 'random' a game is a
vote over both orders, so that position decides less than it does there.

Score: share of right pairs; sections are the groups of source that run_judge.py
names: MMLU-Pro knowledge, LiveBench reasoning and mathematics, LiveCodeBench.
The leaderboard is of the gpt split: to compare, give the path of its file
rather than of the folder.
"""

from collections.abc import Iterator, Sequence

from grm_jax.evaluation import metrics, suite_rows
from grm_jax.judgement import preference_rows
from grm_jax.judgement.example import JudgingExample

GROUPS = {
  'mmlu-pro': 'Knowledge',
  'livebench-reasoning': 'Reasoning',
  'livebench-math': 'Math',
  'livecodebench': 'Coding',
}
_BEST = {'A>B': 0, 'B>A': 1}


def load(path: str) -> list[JudgingExample]:
  """Both games of the pairs of a file, or of the files below a folder."""
  # In a clone of the repository, outputs/ holds judgements.
  return suite_rows.load(path, _examples, lambda name: 'outputs/' not in name)


def _examples(row: preference_rows.SourceRow) -> Iterator[JudgingExample]:
  source, pair = row.text('source'), row.text('pair_id')
  group = next((g for s, g in GROUPS.items() if source.startswith(s)), None)
  if group is None:
    raise row.fault(f'source is {source!r}; known are {", ".join(GROUPS)}')
  best = _BEST[row.one_of('label', _BEST)]
  responses = row.text('response_A'), row.text('response_B')
  tags = {
    'suite': 'judgebench',
    'section': group,
    'subset': source,
    'pair': pair,
  }
  for game, order in (('AB', (0, 1)), ('BA', (1, 0))):
    # Not arranged by a hash: the two games are the two orders.
    yield preference_rows.example(
      row,
      id=f'judgebench/{pair}/{game}',
      query=preference_rows.asked(row.text('question')),
      responses=tuple(responses[i] for i in order),
      best=order.index(best),
      tags=tags,
    )


def terms(
  results: Sequence[metrics.Result],
) -> tuple[metrics.WeightedSection, ...]:
  """The score as a sum of weighted means: sections count by their pairs."""
  pairs = metrics.by_tag(results, 'pair').values()
  groups = {}
  for games in pairs:
    example = games[0].example
    item = metrics.ScoredItem(
      subset=example.tags['subset'],
      query=metrics.query_of(example),
      value=float(sum(map(_verdict, games)) > 0),
    )
    groups.setdefault(example.tags['section'], []).append(item)
  return tuple(
    metrics.WeightedSection(
      name, len(groups[name]) / len(pairs), 1.0, tuple(groups[name])
    )
    for name in GROUPS.values()
    if name in groups
  )


def score(results: Sequence[metrics.Result]) -> metrics.Score:
  """Share of pairs that are right over their two games.

  counts are pairs; failures and ties are games.
  """
  return metrics.score(results, terms(results))


def interval(results: Sequence[metrics.Result]) -> tuple[float, float]:
  """95 % of the overall score when queries are resampled."""
  return metrics.bootstrap(terms(results))


def _verdict(result):
  if result.votes is None:
    return 0
  best = result.votes[result.example.best]
  other = result.votes[1 - result.example.best]
  return (best > other) - (best < other)
