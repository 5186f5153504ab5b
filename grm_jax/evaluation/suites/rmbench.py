"""RM-Bench: three styles of a right response against three of a wrong one.

File (data/total_dataset.json of github.com/THU-KEG/RM-Bench and of
huggingface.co/datasets/THU-KEG/RM-Bench), an array of rows: id, prompt,
chosen[3], rejected[3], domain. Both lists have the styles concise, detailed,
and detailed with markdown. The domain is chat, code, math, safety-refuse or
safety-response.

A row becomes nine pairs: chosen style i against rejected style j. A pair is
easy if the chosen response has the more elaborate style (i > j), normal for
equal styles, and hard otherwise.

Score (compute_accuracy in scripts/utils.py): a domain is the mean of its easy,
normal and hard accuracy; the score is the mean of the four domains. The rows of
both safety domains are pooled. A tie counts 1/2, there 0. All nine pairs of a
row are resampled together.

The subsets of the score also have the means over domains of easy, normal and
hard, and of each pair of styles, such as 'concise vs markdown'.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

from grm_jax.evaluation import metrics, suite_rows
from grm_jax.judgement import preference_rows
from grm_jax.judgement.example import JudgingExample

STYLES = ('concise', 'detailed', 'markdown')
DIFFICULTIES = ('easy', 'normal', 'hard')
_SECTION_OF = {
  'chat': 'chat',
  'code': 'code',
  'math': 'math',
  'safety-refuse': 'safety',
  'safety-response': 'safety',
}
SECTIONS = tuple(dict.fromkeys(_SECTION_OF.values()))


def load(path: str) -> list[JudgingExample]:
  """Loads the pairs of a file, or of total_dataset.* of a folder."""
  return suite_rows.load(
    path, _examples, suite_rows.file_starts_with('total_dataset.')
  )


def _examples(row: preference_rows.SourceRow) -> Iterator[JudgingExample]:
  domain = row.choice_field('domain', _SECTION_OF)
  section = _SECTION_OF[domain]
  chosen, rejected = _styles(row, 'chosen'), _styles(row, 'rejected')
  name = f'rmbench/{domain}/{row.field("id")}'
  for i, j in itertools.product(range(len(STYLES)), repeat=2):
    difficulty = _difficulty(i, j)
    yield preference_rows.shuffled_example(
      row,
      id=f'{name}/{i}-{j}',
      query=preference_rows.user_query(row.text_field('prompt')),
      responses=(chosen[i], rejected[j]),
      best=0,
      tags={
        'suite': 'rmbench',
        'section': section,
        'subset': f'{section} {difficulty}',
        'difficulty': difficulty,
        'styles': f'{STYLES[i]} vs {STYLES[j]}',
        'query': name,
      },
    )


def _styles(row: preference_rows.SourceRow, key: str) -> tuple[str, ...]:
  texts = row.text_list_field(key)
  if len(texts) != len(STYLES):
    raise row.error(
      f'{key} has {len(texts)} responses; it must have {len(STYLES)}: '
      f'{", ".join(STYLES)}'
    )
  return texts


def _difficulty(chosen: int, rejected: int) -> str:
  if chosen == rejected:
    return 'normal'
  return 'easy' if chosen > rejected else 'hard'


def terms(
  results: Sequence[metrics.Result],
) -> tuple[metrics.WeightedSection, ...]:
  """Returns the terms of the score; all difficulties have equal weight."""
  weights = {
    section: {f'{section} {x}': 1.0 for x in DIFFICULTIES}
    for section in SECTIONS
  }
  groups = {
    subset: tuple(map(_item, members))
    for subset, members in metrics.by_tag(results, 'subset').items()
  }
  return metrics.weighted_terms(weights, groups)


def _item(result: metrics.Result) -> metrics.ScoredItem:
  """Returns an item that its difficulty and its styles report too."""
  tags = result.example.tags
  groups = tags['difficulty'], tags['styles']
  (item,) = metrics.items([result])
  return dataclasses.replace(item, groups=groups)


def score(results: Sequence[metrics.Result]) -> metrics.Score:
  """Returns the mean of the domains that have results."""
  return metrics.score(results, terms(results))


def interval(results: Sequence[metrics.Result]) -> tuple[float, float]:
  """Returns the 95 % interval of the overall score over queries."""
  return metrics.bootstrap(terms(results))
