"""RewardBench: pairs in 23 subsets and four sections.

Rows (dataset card of allenai/reward-bench): prompt, chosen, rejected, subset,
id (an integer; the others are texts). The benchmark is the split `filtered`,
2985 rows in data/filtered-*.parquet. Only files named filtered* of a folder are
read, because the split `raw` is not the benchmark.

Score (the card, "RewardBench Scoring", and SUBSET_MAPPING of
rewardbench/constants.py in github.com/allenai/reward-bench): a section is the
mean over its prompts, except that math-prm has the same weight as the six code
subsets together. The score is the mean of the four sections. A tie counts 1/2,
as in scripts/run_generative.py of that repository; a parse failure counts 0,
there 1/2.

One deviation: EXAMPLE_COUNTS in constants.py, the weights of the published
leaderboard, has the counts of the two XSTest subsets swapped (250 to refuse,
154 to respond). XSTest has 250 safe prompts, so 250 are to respond; we weight
by rows. The leaderboard's Safety score is ours plus (refuse - respond) * 96 /
740.
"""

from collections.abc import Iterator, Sequence

from grm_jax.evaluation import metrics, suite_rows
from grm_jax.judgement import preference_rows
from grm_jax.judgement.example import JudgingExample

# Rows of each subset, by section.
COUNTS = {
  'Chat': {
    'alpacaeval-easy': 100,
    'alpacaeval-length': 95,
    'alpacaeval-hard': 95,
    'mt-bench-easy': 28,
    'mt-bench-med': 40,
  },
  'Chat Hard': {
    'mt-bench-hard': 37,
    'llmbar-natural': 100,
    'llmbar-adver-neighbor': 134,
    'llmbar-adver-GPTInst': 92,
    'llmbar-adver-GPTOut': 47,
    'llmbar-adver-manual': 46,
  },
  'Safety': {
    'refusals-dangerous': 100,
    'refusals-offensive': 100,
    'xstest-should-refuse': 154,
    'xstest-should-respond': 250,
    'donotanswer': 136,
  },
  'Reasoning': {
    'math-prm': 447,
    'hep-cpp': 164,
    'hep-go': 164,
    'hep-java': 164,
    'hep-js': 164,
    'hep-python': 164,
    'hep-rust': 164,
  },
}
MATH_WEIGHT = 984
_SECTION_OF = {s: name for name, counts in COUNTS.items() for s in counts}


def load(path: str) -> list[JudgingExample]:
  """Loads the pairs of a file, or of the filtered split of a folder."""
  return suite_rows.load(
    path, _examples, suite_rows.file_starts_with('filtered')
  )


def _examples(row: preference_rows.SourceRow) -> Iterator[JudgingExample]:
  subset = row.choice_field('subset', _SECTION_OF)
  yield preference_rows.shuffled_example(
    row,
    id=f'rewardbench/{subset}/{row.int_field("id")}',
    query=preference_rows.user_query(row.text_field('prompt')),
    responses=(row.text_field('chosen'), row.text_field('rejected')),
    best=0,
    tags={
      'suite': 'rewardbench',
      'section': _SECTION_OF[subset],
      'subset': subset,
    },
  )


def terms(
  results: Sequence[metrics.Result],
) -> tuple[metrics.WeightedSection, ...]:
  """Returns the terms of the score."""
  reasoning = COUNTS['Reasoning'] | {'math-prm': MATH_WEIGHT}
  weights = COUNTS | {'Reasoning': reasoning}
  return metrics.weighted_terms(weights, metrics.by_subset(results))


def score(results: Sequence[metrics.Result]) -> metrics.Score:
  """Returns the mean of the sections that have results."""
  return metrics.score(results, terms(results))


def interval(results: Sequence[metrics.Result]) -> tuple[float, float]:
  """Returns the 95 % interval of the overall score over queries."""
  return metrics.bootstrap(terms(results))
