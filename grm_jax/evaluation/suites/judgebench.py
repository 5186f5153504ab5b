"""JudgeBench: pairs with one objectively correct response, in both orders.

Rows (README of github.com/ScalerLab/JudgeBench; JSON lines in data/, and
huggingface.co/datasets/ScalerLab/JudgeBench with the splits gpt, 350 pairs by
GPT-4o, and claude, 270 by Claude 3.5 Sonnet): pair_id, original_id, source,
question, response_model, response_A, response_B, label 'A>B' or 'B>A'.

A pair is judged in two games: A first, then B first (run_judge.py). A game
counts +1 if the correct response wins, -1 if the other wins, and 0 for a tie or
without a verdict. The pair is correct if the sum is above 0 (utils/metrics.py).
A pair therefore becomes two examples here, in the orders A B and B A, with the
same tags['pair']; the higher vote of an example decides its game.
All samples of an example show its stored order, as in the published protocol:
for this suite stages/evaluate.py replaces config.response_order by 'fixed'. In
any other order a game would be a vote over both positions of A.

Score: fraction of correct pairs. Sections are the groups of sources in
run_judge.py: MMLU-Pro knowledge, LiveBench reasoning and mathematics,
LiveCodeBench. The leaderboard uses the gpt split; to compare with it, load the
file of that split instead of the folder.
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
  """Loads both games of each pair of a file, or of all files of a folder."""
  # outputs/ of the repository holds judgements, not examples.
  return suite_rows.load(path, _examples, lambda name: 'outputs/' not in name)


def _examples(row: preference_rows.SourceRow) -> Iterator[JudgingExample]:
  source, pair = row.text_field('source'), row.text_field('pair_id')
  group = next((g for s, g in GROUPS.items() if source.startswith(s)), None)
  if group is None:
    raise row.error(
      f'source is {source!r}; it must begin with one of {", ".join(GROUPS)}'
    )
  best = _BEST[row.choice_field('label', _BEST)]
  responses = row.text_field('response_A'), row.text_field('response_B')
  tags = {
    'suite': 'judgebench',
    'section': group,
    'subset': source,
    'pair': pair,
  }
  for game, order in (('AB', (0, 1)), ('BA', (1, 0))):
    # Not shuffled: the two games are the two orders.
    yield preference_rows.make_example(
      row,
      id=f'judgebench/{pair}/{game}',
      query=preference_rows.user_query(row.text_field('question')),
      responses=tuple(responses[i] for i in order),
      best=order.index(best),
      tags=tags,
    )


def terms(
  results: Sequence[metrics.Result],
) -> tuple[metrics.WeightedSection, ...]:
  """Returns the terms of the score; sections are weighted by their pairs."""
  pairs = metrics.by_tag(results, 'pair').values()
  groups: dict[str, list[metrics.ScoredItem]] = {}
  for games in pairs:
    example = games[0].example
    item = metrics.ScoredItem(
      subset=example.tags['subset'],
      query=metrics.query_of(example),
      value=float(sum(map(_game_outcome, games)) > 0),
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
  """Returns the fraction of pairs that are correct over their two games.

  `counts` are numbers of pairs; `failures` and `ties` are numbers of games.
  """
  return metrics.score(results, terms(results))


def interval(results: Sequence[metrics.Result]) -> tuple[float, float]:
  """Returns the 95 % interval of the overall score over queries."""
  return metrics.bootstrap(terms(results))


def _game_outcome(result):
  """Returns +1 for a win of the best response, -1 for a loss, 0 for a tie."""
  if result.votes is None:
    return 0
  best = result.votes[result.example.best]
  other = result.votes[1 - result.example.best]
  return (best > other) - (best < other)
