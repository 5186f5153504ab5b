"""Rejection sampling for RFT: selects the generations to fine-tune on.

As in arXiv 2504.02495, section 3.2: incorrect generations are dropped, and so
are examples whose unhinted samples are all correct ("too easy"). The prompt of
a hinted generation contains the label; only incorrect ones are dropped.
So are truncated generations, unless config.train.prompt.truncated is 'read'.
Critiques have no scores that could be incorrect: all others are selected.
"""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from grm_jax.judgement import correctness
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.judgement import Judgement
from grm_jax.judgement.prompt_format import PromptFormat


@dataclasses.dataclass(frozen=True)
class FilterSample:
  """A stored generation that is not parsed yet.

  Attributes:
    example_id: id of the judged example.
    order: order[position] is the index of the response at that position of the
      prompt.
    text: the generation.
    hinted: whether the prompt contained the label.
    truncated: whether the generation reached the maximum length.
  """

  example_id: str
  order: tuple[int, ...]
  text: str
  hinted: bool = False
  truncated: bool = False

  def judgement(self, prompt_format: PromptFormat) -> Judgement:
    """Parses the text. The number of tokens is unknown and set to 0."""
    return Judgement(
      order=self.order,
      text=self.text,
      num_tokens=0,
      finish='length' if self.truncated else 'stop',
      scores=prompt_format.parse_scores(self.text, self.order, self.truncated),
    )


@dataclasses.dataclass(frozen=True)
class FilterConfig:
  """Selects the kinds of generations; each False is an ablation of the paper.

  Attributes:
    reject: drop incorrect generations and examples that are too easy. Without
      it, only generations that do not parse or are truncated are dropped.
    too_easy: drop examples whose unhinted samples are all correct. It has no
      effect without `reject`: only the correct generations would be fewer.
    unhinted: select unhinted generations.
    hinted: select hinted generations.
    max_per_example: maximum number per example; 0 means no limit.
  """

  reject: bool = True
  too_easy: bool = True
  unhinted: bool = True
  hinted: bool = True
  max_per_example: int = 0


def outcome(
  sample: FilterSample, example: JudgingExample, prompt_format: PromptFormat
) -> str:
  """Returns which of correctness.OUTCOMES a sample is, or CRITIQUE.

  Raises:
    UserError: the example has no label.
    ValueError: the order is not a permutation of the example's responses.
  """
  n = len(example.responses)
  if sorted(sample.order) != list(range(n)):
    raise ValueError(
      f'{example.id}: order {list(sample.order)} is not a permutation of its '
      f'{n} responses'
    )
  return correctness.outcome(example, sample.judgement(prompt_format))


def is_too_easy(unhinted_outcomes: Sequence[str]) -> bool:
  """Returns whether an example's unhinted samples are all correct."""
  return bool(unhinted_outcomes) and all(
    x == 'correct' for x in unhinted_outcomes
  )


def select(
  samples: Sequence[FilterSample],
  outcomes: Sequence[str],
  config: FilterConfig,
) -> list[FilterSample]:
  """Returns the generations of one example to fine-tune on.

  Args:
    samples: all samples of the example.
    outcomes: the outcome of each sample.
    config: the selection rules.

  Returns:
    A subsequence of `samples`, without duplicates.
  """
  pairs = list(zip(samples, outcomes, strict=True))
  too_easy = is_too_easy([x for sample, x in pairs if not sample.hinted])
  if too_easy and config.too_easy and config.reject:
    return []
  accepted = {'correct', correctness.CRITIQUE}
  accepted |= set() if config.reject else {'incorrect'}
  allowed = {False: config.unhinted, True: config.hinted}
  selected: dict[tuple[tuple[int, ...], str], FilterSample] = {}
  for sample, sample_outcome in pairs:
    if sample_outcome in accepted and allowed[sample.hinted]:
      selected.setdefault((sample.order, sample.text), sample)
  return list(selected.values())[: config.max_per_example or None]


def count_by_source(
  examples: Mapping[str, JudgingExample],
  samples: Mapping[str, Sequence[FilterSample]],
  outcomes: Mapping[str, Sequence[str]],
  selected: Mapping[str, Sequence[FilterSample]],
) -> dict[str, dict[str, int]]:
  """Counts examples and generations by outcome for every source.

  Args:
    examples: by id. The source is tags['suite'], or 'all' without this tag.
    samples: by example id.
    outcomes: by example id, one per sample.
    selected: by example id, see `select`.

  Returns:
    source -> counts: examples; too_easy; never_right (no unhinted sample is
    correct); rescued (never_right, but a hinted sample is correct);
    examples_kept; generations_kept; unhinted_OUTCOME and hinted_OUTCOME.
  """
  counters: dict[str, collections.Counter[str]] = collections.defaultdict(
    collections.Counter
  )
  for id, example in examples.items():
    pairs = zip(samples.get(id, ()), outcomes.get(id, ()), strict=True)
    source = example.tags.get('suite', 'all')
    _count_example(counters[source], list(pairs), len(selected.get(id, ())))
  return {source: dict(count) for source, count in sorted(counters.items())}


def _count_example(
  counter: collections.Counter[str],
  pairs: Iterable[tuple[FilterSample, str]],
  num_selected: int,
) -> None:
  unhinted: list[str] = []
  hinted: list[str] = []
  for sample, sample_outcome in pairs:
    (hinted if sample.hinted else unhinted).append(sample_outcome)
  never_right = bool(unhinted) and 'correct' not in unhinted
  counter['examples'] += 1
  counter['too_easy'] += is_too_easy(unhinted)
  counter['never_right'] += never_right
  counter['rescued'] += never_right and 'correct' in hinted
  counter['examples_kept'] += num_selected > 0
  counter['generations_kept'] += num_selected
  for kind, kind_outcomes in (('unhinted', unhinted), ('hinted', hinted)):
    for name in correctness.OUTCOMES:
      counter[f'{kind}_{name}'] += kind_outcomes.count(name)


def count_correct(
  examples: Mapping[str, JudgingExample], outcomes: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, int]]:
  """Counts the examples of each source by the number of correct samples.

  Args:
    examples: see `count_by_source`.
    outcomes: outcomes of the unhinted samples, by example id.

  Returns:
    source -> counts: examples; 'M of N correct' for all numbers of samples N
    that occur; not_judged; too_easy; selected.
  """
  most = sorted({len(x) for x in outcomes.values() if x})
  counters: dict[str, collections.Counter[str]] = collections.defaultdict(
    collections.Counter
  )
  for id, example in examples.items():
    counter = counters[example.tags.get('suite', 'all')]
    own = outcomes.get(id, ())
    counter['examples'] += 1
    counter['not_judged'] += not own
    counter['too_easy'] += is_too_easy(own)
    counter['selected'] += not is_too_easy(own)
    for n in most:
      for m in range(n + 1):
        is_this = len(own) == n and own.count('correct') == m
        counter[f'{m} of {n} correct'] += is_this
  return {source: dict(count) for source, count in sorted(counters.items())}
