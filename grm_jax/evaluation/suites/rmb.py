"""RMB: pairs and best-of-n lists, for helpfulness and for harmlessness.

Files (github Zhou-Zoey/RMB-Reward-Model-Benchmark, folder RMB_dataset), each
one array of rows:

- Pairwise_set/Helpfulness/<category>/<task>.json, Pairwise_set/Harmlessness/
  <task>.json: pair_uid, conversation_input[{role, content, language}], chosen
  {llm_name, answer, score}, reject (sic) the same, category_path;
- BoN_set, likewise: bon_uid, conversation_input, bon_best {llm_name, answer},
  loser_list[{llm_name, answer}], category_path.

category_path is the file's path without its suffix, as in
BoN_set/Helpfulness/Chat/Discussion; which of the four parts a row is of is
read from it.

Score: mean of the four parts, each the accuracy over its rows (the paper's
leaderboard, arXiv 2410.09893, Table 3, is by the average of the subsets). A
best-of-n row counts only if the best is strictly above every loser; a tie in a
pair is worth 1/2 as elsewhere here, where the published
eval/scripts/my_run_rm.py, made for real-valued rewards, gives 0.
"""

from collections.abc import Iterator, Sequence

from grm_jax.evaluation import metrics, suite_rows
from grm_jax.judgement import preference_rows
from grm_jax.judgement.example import JudgingExample, Turn

PAIRS, LISTS = 'Pairwise_set', 'BoN_set'
GOALS = ('Helpfulness', 'Harmlessness')
SECTIONS = tuple(f'{goal} {kind}' for goal in GOALS for kind in (PAIRS, LISTS))


def load(path: str) -> list[JudgingExample]:
  """The rows of a file, or of all files of both sets below a folder."""
  return suite_rows.load(
    path, _examples, suite_rows.naming(path, (PAIRS, LISTS))
  )


def _examples(row: preference_rows.SourceRow) -> Iterator[JudgingExample]:
  kind, goal, subset = _place(row)
  if kind == PAIRS:
    name = row.value('pair_uid')
    best, losers = row.inner('chosen'), (row.inner('reject'),)
  else:
    name = row.value('bon_uid')
    best, losers = row.inner('bon_best'), row.inners('loser_list')
  yield preference_rows.arranged(
    row,
    id=f'rmb/{subset}/{row.number}/{name}',
    query=tuple(map(_turn, row.inners('conversation_input'))),
    responses=tuple(one.text('answer') for one in (best, *losers)),
    best=0,
    tags={'suite': 'rmb', 'section': f'{goal} {kind}', 'subset': subset},
  )


def _turn(row):
  return Turn(row.text('role'), row.text('content'))


def _place(row):
  """(set, goal, category_path) of a row."""
  path = row.text('category_path')
  kind, _, rest = path.partition('/')
  goal, _, task = rest.partition('/')
  if kind not in (PAIRS, LISTS) or goal not in GOALS or not task:
    raise row.fault(
      f'category_path is {path!r}, not {{{PAIRS},{LISTS}}}/'
      f'{{{",".join(GOALS)}}}/...'
    )
  return kind, goal, path


def terms(
  results: Sequence[metrics.Result],
) -> tuple[metrics.WeightedSection, ...]:
  """The score as a sum of weighted means."""
  groups = {
    section: metrics.items(found, _right)
    for section, found in metrics.by_tag(results, 'section').items()
  }
  return metrics.weighted_terms(
    {name: {name: 1.0} for name in SECTIONS}, groups
  )


def score(results: Sequence[metrics.Result]) -> metrics.Score:
  """Mean of the four parts, or of those that have results."""
  return metrics.score(results, terms(results))


def interval(results: Sequence[metrics.Result]) -> tuple[float, float]:
  """95 % of the overall score when queries are resampled."""
  return metrics.bootstrap(terms(results))


def _right(result):
  pair = result.example.tags['section'].endswith(PAIRS)
  return metrics.correct(result) if pair else metrics.strictly_correct(result)
