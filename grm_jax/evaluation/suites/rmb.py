"""RMB: pairs and best-of-n lists, for helpfulness and harmlessness.

Files (github.com/Zhou-Zoey/RMB-Reward-Model-Benchmark, folder RMB_dataset),
each an array of rows:

- Pairwise_set/Helpfulness/<category>/<task>.json, Pairwise_set/Harmlessness/
  <task>.json: pair_uid, conversation_input[{role, content, language}], chosen
  {llm_name, answer, score}, reject (sic) the same, category_path;
- BoN_set, likewise: bon_uid, conversation_input, bon_best {llm_name, answer},
  loser_list[{llm_name, answer}], category_path.

category_path is the file's path without its suffix, as in
BoN_set/Helpfulness/Chat/Discussion; it determines the section of a row.

Score: mean of the four sections, each the accuracy over its rows (Table 3 of
the paper, arXiv 2410.09893, averages the subsets). A best-of-n row is correct
only if the best response is strictly above every loser. A tie in a pair counts
1/2, as in the other suites; the published eval/scripts/my_run_rm.py, for
real-valued rewards, counts 0.
"""

from collections.abc import Iterator, Sequence

from grm_jax.evaluation import metrics, suite_rows
from grm_jax.judgement import preference_rows
from grm_jax.judgement.example import JudgingExample, Turn

PAIRS, LISTS = 'Pairwise_set', 'BoN_set'
GOALS = ('Helpfulness', 'Harmlessness')
SECTIONS = tuple(f'{goal} {kind}' for goal in GOALS for kind in (PAIRS, LISTS))


def load(path: str) -> list[JudgingExample]:
  """Loads the rows of a file, or of all files of both sets of a folder."""
  return suite_rows.load(
    path, _examples, suite_rows.path_mentions(path, (PAIRS, LISTS))
  )


def _examples(row: preference_rows.SourceRow) -> Iterator[JudgingExample]:
  kind, goal, subset = _parse_category(row)
  if kind == PAIRS:
    uid = row.field('pair_uid')
    best = row.object_field('chosen')
    losers: tuple[preference_rows.SourceRow, ...] = (
      row.object_field('reject'),
    )
  else:
    uid = row.field('bon_uid')
    best = row.object_field('bon_best')
    losers = row.object_list_field('loser_list')
  yield preference_rows.shuffled_example(
    row,
    id=f'rmb/{subset}/{row.number}/{uid}',
    query=tuple(map(_turn, row.object_list_field('conversation_input'))),
    responses=tuple(x.text_field('answer') for x in (best, *losers)),
    best=0,
    tags={'suite': 'rmb', 'section': f'{goal} {kind}', 'subset': subset},
  )


def _turn(row):
  return Turn(row.text_field('role'), row.text_field('content'))


def _parse_category(row):
  """Returns (set, goal, category_path) of a row."""
  path = row.text_field('category_path')
  kind, _, rest = path.partition('/')
  goal, _, task = rest.partition('/')
  if kind not in (PAIRS, LISTS) or goal not in GOALS or not task:
    raise row.error(
      f'category_path is {path!r}; it must be {{{PAIRS},{LISTS}}}/'
      f'{{{",".join(GOALS)}}}/...'
    )
  return kind, goal, path


def terms(
  results: Sequence[metrics.Result],
) -> tuple[metrics.WeightedSection, ...]:
  """Returns the terms of the score."""
  groups = {
    section: metrics.items(members, _is_correct)
    for section, members in metrics.by_tag(results, 'section').items()
  }
  return metrics.weighted_terms(
    {name: {name: 1.0} for name in SECTIONS}, groups
  )


def score(results: Sequence[metrics.Result]) -> metrics.Score:
  """Returns the mean of the sections that have results."""
  return metrics.score(results, terms(results))


def interval(results: Sequence[metrics.Result]) -> tuple[float, float]:
  """Returns the 95 % interval of the overall score over queries."""
  return metrics.bootstrap(terms(results))


def _is_correct(result):
  is_pair = result.example.tags['section'].endswith(PAIRS)
  return (metrics.correct if is_pair else metrics.strictly_correct)(result)
