"""RewardBench: pairs in 23 subsets and four sections.

Rows (dataset card of allenai/reward-bench): prompt, chosen, rejected, subset,
id, all texts but the id; the benchmark is the split `filtered`, 2985 rows in
data/filtered-*.parquet. The other split, `raw`, is not it: of a folder only
files named filtered* are read.

Score (the card, "RewardBench Scoring", and SUBSET_MAPPING of
rewardbench/constants.py in github allenai/reward-bench): a section is the mean
over its prompts, except that math-prm counts as much as the six code subsets
together; the score is the mean of the four sections. A tie is worth 1/2, as in
that repository's scripts/run_generative.py; what does not parse is worth 0,
there 1/2.

One deviation: EXAMPLE_COUNTS of that constants.py, the weights of the
published leaderboard, has the numbers of the two XSTest subsets swapped (250
to refuse, 154 to respond). XSTest has 250 safe prompts, so 250 are to respond;
we weight by rows. The leaderboard's Safety is ours plus
(refuse - respond) * 96 / 740.
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
  """The pairs of a file, or of the filtered split below a folder."""
  return suite_rows.load(path, _examples, suite_rows.starting('filtered'))


def _examples(row: preference_rows.SourceRow) -> Iterator[JudgingExample]:
  subset = row.one_of('subset', _SECTION_OF)
  yield preference_rows.arranged(
    row,
    id=f'rewardbench/{subset}/{row.whole("id")}',
    query=preference_rows.asked(row.text('prompt')),
    responses=(row.text('chosen'), row.text('rejected')),
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
  """The score as a sum of weighted means."""
  reasoning = COUNTS['Reasoning'] | {'math-prm': MATH_WEIGHT}
  weights = COUNTS | {'Reasoning': reasoning}
  return metrics.weighted_terms(weights, metrics.by_subset(results))


def score(results: Sequence[metrics.Result]) -> metrics.Score:
  """Mean of the four sections, or of those that have results."""
  return metrics.score(results, terms(results))


def interval(results: Sequence[metrics.Result]) -> tuple[float, float]:
  """95 % of the overall score when queries are resampled."""
  return metrics.bootstrap(terms(results))
