"""LLM-as-a-judge by token probabilities: how certain its verdict is.

The baseline of arXiv 2504.02495, section 5, which gives no details; the rest is
our decision, see verdict_scorer.py.
"""

import itertools
from collections.abc import Iterable, Iterator

from grm_jax.errors import UserError
from grm_jax.judgement import template
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.judgement import ExampleError, JudgedExample
from grm_jax.judges.baselines.verdict_scorer import VerdictScorer
from grm_jax.judges.generative import Judge


class TokenProbabilityJudge:
  """Scores responses by probabilities of verdicts; see generative.Judge.

  Attributes:
    inner: writes the critiques and the verdicts.
    verdicts: computes the probabilities.
  """

  def __init__(self, judge: Judge, verdicts: VerdictScorer):
    """Both must have the same settings.

    Raises:
      UserError: the template uses principles, which would begin the texts.
      ValueError: the judge does not name the best response.
    """
    config = judge.config
    if config.reads != 'best':
      raise ValueError(
        f"the judge has reads={config.reads!r}; token probabilities need 'best'"
      )
    if 'principles' in template.load(config.template).used_variables:
      raise UserError(
        f'config.prompt.template={config.template} uses principles, which '
        'config.judge=token_probability does not support; choose a template '
        'without principles'
      )
    self.inner, self.verdicts = judge, verdicts

  def judge(
    self,
    examples: Iterable[JudgingExample | ExampleError],
    k: int,
    *,
    progress: str = '',
    total: int = 0,
  ) -> Iterator[JudgedExample | ExampleError]:
    """Yields judgements of examples, in their order; see generative.Judge."""
    items = self.inner.judge(examples, k, progress=progress, total=total)
    while chunk := list(itertools.islice(items, self.verdicts.prompts)):
      judged = [item for item in chunk if isinstance(item, JudgedExample)]
      rated = iter(self.verdicts.rate(judged))
      for item in chunk:
        yield next(rated) if isinstance(item, JudgedExample) else item
