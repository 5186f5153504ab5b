"""Rejective sampling: which generations are fine-tuned on, and why not others.

arXiv 2504.02495, section 3.2: generations that are incorrect are dropped, and
so are examples that all unhinted samples got right ("too easy"). Hinted
generations were told which response is best; only incorrect ones are dropped.
A generation that was cut off is not kept, whatever it says.
"""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from grm_jax.errors import UserError
from grm_jax.judgement import correctness, response_order
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.prompt_format import PromptFormat

VERDICTS = ('correct', 'incorrect', 'parse_failure', 'truncated')


@dataclasses.dataclass(frozen=True)
class FilterSample:
  """A generation about an example.

  Attributes:
    example: its id.
    order: order[place] is the response that was shown there.
    text: what was written.
    hinted: whether the prompt told what is right.
    truncated: whether it reached the longest length.
  """

  example: str
  order: tuple[int, ...]
  text: str
  hinted: bool = False
  truncated: bool = False


@dataclasses.dataclass(frozen=True)
class FilterConfig:
  """What is kept; each False is an ablation of the paper.

  Attributes:
    reject: drop incorrect generations, and examples that are too easy.
      Without it only those are dropped that do not parse or were cut off:
      there is nothing to learn from them.
    too_easy: drop examples that all unhinted samples got right. Without
      `reject` they stay: or what is wrong would outweigh what is right.
    unhinted, hinted: keep such generations.
    max_per_example: keep at most so many; 0 is no limit.
  """

  reject: bool = True
  too_easy: bool = True
  unhinted: bool = True
  hinted: bool = True
  max_per_example: int = 0

  def __post_init__(self):
    if self.max_per_example < 0:
      raise UserError(
        f'config.filter.max_per_example is {self.max_per_example}; 0 is no '
        'limit'
      )


def verdict(
  sample: FilterSample, example: JudgingExample, forms: PromptFormat
) -> str:
  """One of VERDICTS.

  Raises:
    UserError: the example does not say what is right.
    ValueError: the order is not a permutation of the example's responses.
  """
  n = len(example.responses)
  if sorted(sample.order) != list(range(n)):
    raise ValueError(
      f'{example.id}: order {list(sample.order)} is no permutation of its {n} '
      'responses'
    )
  if sample.truncated:
    return 'truncated'
  shown = forms.read(sample.text, n)
  if shown is None:
    return 'parse_failure'
  scores = response_order.restore(shown, sample.order)
  right = correctness.is_correct(scores, example)
  return 'correct' if right else 'incorrect'


def too_easy(verdicts: Sequence[str]) -> bool:
  """Whether the unhinted samples of an example are all correct."""
  return bool(verdicts) and all(x == 'correct' for x in verdicts)


def keep(
  samples: Sequence[FilterSample], verdicts: Sequence[str], rules: FilterConfig
) -> list[FilterSample]:
  """The generations of one example that are fine-tuned on.

  Args:
    samples: all of the example's.
    verdicts: of each.
    rules: see Rules.

  Returns:
    Some of the samples, in their order; of equal texts the first.
  """
  pairs = list(zip(samples, verdicts, strict=True))
  easy = too_easy([v for s, v in pairs if not s.hinted])
  if easy and rules.too_easy and rules.reject:
    return []
  good = ('correct',) if rules.reject else ('correct', 'incorrect')
  allowed = {False: rules.unhinted, True: rules.hinted}
  kept = {}
  for sample, found in pairs:
    if found in good and allowed[sample.hinted]:
      kept.setdefault((sample.order, sample.text), sample)
  return list(kept.values())[: rules.max_per_example or None]


def table(
  examples: Mapping[str, JudgingExample],
  samples: Mapping[str, Sequence[FilterSample]],
  verdicts: Mapping[str, Sequence[str]],
  kept: Mapping[str, Sequence[FilterSample]],
) -> dict[str, dict[str, int]]:
  """How many went which way, per source.

  Args:
    examples: by id; a source is tags['suite'], or 'all' where there is none.
    samples, verdicts, kept: of each example.

  Returns:
    source -> counts: examples, too_easy, never_right (no unhinted sample is),
    rescued (of these, by a hint), examples_kept; unhinted_VERDICT and
    hinted_VERDICT, generations_kept.
  """
  found = collections.defaultdict(collections.Counter)
  for name, example in examples.items():
    own = zip(samples.get(name, ()), verdicts.get(name, ()), strict=True)
    count = found[example.tags.get('suite', 'all')]
    _count(count, list(own), kept.get(name, ()))
  return {source: dict(count) for source, count in sorted(found.items())}


def _count(count, own: Iterable[tuple[FilterSample, str]], kept) -> None:
  unhinted = [v for s, v in own if not s.hinted]
  hinted = [v for s, v in own if s.hinted]
  never = bool(unhinted) and 'correct' not in unhinted
  count['examples'] += 1
  count['too_easy'] += too_easy(unhinted)
  count['never_right'] += never
  count['rescued'] += never and 'correct' in hinted
  count['examples_kept'] += bool(kept)
  count['generations_kept'] += len(kept)
  for kind, found in (('unhinted', unhinted), ('hinted', hinted)):
    for name in VERDICTS:
      count[f'{kind}_{name}'] += found.count(name)
