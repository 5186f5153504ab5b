"""The generative judge: examples in, judgements out.

Its method `judge` is the interface that all judges share.
"""

import copy
import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from grm_jax.errors import UserError
from grm_jax.judgement import example as examples_lib
from grm_jax.judgement import judgement_request, verdict
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.judgement import ExampleError, JudgedExample
from grm_jax.judgement.judgement_request import JudgementRequest
from grm_jax.judgement.prompt_builder import Hint
from grm_jax.judgement.prompt_format import PromptFormat
from grm_jax.judgement.template import StoredTemplate
from grm_jax.judgement.verdict import VoteConfig
from grm_jax.judges import row_limits
from grm_jax.judges.judgement_scheduler import (
  JudgementScheduler,
  OnJudged,
  OnSample,
  PromptBuilder,
)
from grm_jax.judges.meta_rm import MetaJudge
from grm_jax.sampling.decode_state import DecodeWeights
from grm_jax.sampling.engine import Engine
from grm_jax.tokenizer.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
  """Settings of a judge. The defaults are the paper's where it gives them.

  Attributes:
    template: see judgement/template.py.
    principles: template that writes principles, once for every example without
      any; read only if `template` uses principles.
    single: template for examples of one response, see
      judgement/prompt_format.py.
    score_range, single_score_range: see judgement/prompt_format.py.
    too_long: 'shorten' or 'refuse', see judgement/prompt_builder.py.
    order, temperature, seed, hint: see judgement/judgement_request.py.
    vote, k_meta: see judgement/verdict.py, resolve_vote.
    reads: 'scores' or 'best', see judgement/prompt_format.py.
    meta: template of the meta RM's prompts; '' for the one that it was trained
      with.
  """

  template: str | StoredTemplate = 'pointwise'
  principles: str | StoredTemplate = 'principles'
  single: str | StoredTemplate = ''
  score_range: tuple[int, int] = (1, 10)
  single_score_range: tuple[int, int] = (0, 1)
  extraction: str = 'strict'
  truncated: str = 'fail'
  too_long: str = 'shorten'
  order: str = 'balanced'
  temperature: float = 0.5
  seed: int = 0
  vote: str = ''
  reads: str = 'scores'
  k_meta: int = 0
  hint: Hint | None = None
  meta: str = ''

  def __post_init__(self):
    self.prompt_format()  # checks its values
    VoteConfig(self.vote or 'sum', self.k_meta)  # the same
    judgement_request.check(0, self.order, self.temperature)

  @classmethod
  def from_prompt_format(
    cls, prompt_format: PromptFormat, **settings: Any
  ) -> 'JudgeConfig':
    """Returns settings with these prompts."""
    return cls(
      template=prompt_format.template,
      single=prompt_format.single,
      score_range=prompt_format.score_range,
      single_score_range=prompt_format.single_score_range,
      extraction=prompt_format.extraction,
      truncated=prompt_format.truncated,
      too_long=prompt_format.too_long,
      reads=prompt_format.reads,
      **settings,
    )

  def prompt_format(self) -> PromptFormat:
    """Returns the prompts of judgements and their parser."""
    return PromptFormat(
      self.template,
      self.single,
      self.too_long,
      self.reads,
      self.score_range,
      self.single_score_range,
      self.extraction,
      self.truncated,
    )

  def vote_config(self, has_meta: bool) -> VoteConfig:
    """Returns how samples are combined, with or without a meta RM."""
    return verdict.resolve_vote(self.vote, self.k_meta, has_meta)

  def request(self, example: JudgingExample, k: int) -> JudgementRequest:
    """Returns the request for k judgements of an example."""
    return JudgementRequest(
      example, k, self.order, self.temperature, self.seed, self.hint
    )


class Judge:
  """A GRM that writes judgements; see `judge` and `score`.

  Attributes:
    engine: generates.
    weights: parameters of its model; may be None until `with_weights`.
    tokenizer: tokenizer of its model.
    config: settings.
    meta: the meta RM, None without one.
    vote_config: how samples are combined.
    prompts: builds the prompts.
  """

  def __init__(
    self,
    engine: Engine,
    weights: DecodeWeights | None,
    tokenizer: Tokenizer,
    config: JudgeConfig,
    meta: MetaJudge | None = None,
  ):
    """Creates the judge; `meta` adds a meta RM score to every judgement.

    Raises:
      UserError: a template is invalid, or the vote needs a meta RM and there
        is none.
    """
    self.vote_config = config.vote_config(meta is not None)
    self.engine, self.weights = engine, weights
    self.tokenizer, self.config, self.meta = tokenizer, config, meta
    judgement_format, principles_format = config.prompt_format(), None
    judgement_format.check()
    if 'principles' in judgement_format.template_for(2).used_variables:
      principles_format = PromptFormat(config.principles, '', config.too_long)
    self.prompts = PromptBuilder(
      judgement_format,
      principles_format,
      tokenizer,
      engine.limits.max_prompt_tokens,
    )

  def with_weights(self, weights: DecodeWeights) -> 'Judge':
    """Returns this judge with other weights; both share the engine."""
    judge = copy.copy(self)
    judge.weights = weights
    return judge

  def score(
    self, rows: Iterable[dict[str, Any]], k: int = 8, progress: str = ''
  ) -> list[dict[str, Any]]:
    """Returns votes, scores and generations of rows, in their order.

    Args:
      rows: {query | messages, responses[, id, reference, principles]}.
      k: samples of each; 0 for one greedy judgement.
      progress: name of a progress bar, '' for none.

    Returns:
      One row for each, see judgement/verdict.py.

    Raises:
      UserError: a row cannot be judged.
    """
    examples = [examples_lib.from_row(row, i) for i, row in enumerate(rows)]
    results = []
    for item in self.judge(examples, k, progress=progress, total=len(examples)):
      if isinstance(item, ExampleError):
        raise UserError(f'{item.id}: {item.reason}')
      results.append(verdict.to_row(item, self.vote_config, self.config.seed))
    return results

  def judge(
    self,
    examples: Iterable[JudgingExample | ExampleError],
    k: int,
    *,
    progress: str = '',
    total: int = 0,
  ) -> Iterator[JudgedExample | ExampleError]:
    """Yields the judgements of a stream of examples, in its order.

    Args:
      examples: read as the engine gets free; an ExampleError is passed on.
      k: samples of each; 0 for one greedy judgement.
      progress: name of a progress bar over samples, '' for none.
      total: number of examples, 0 if unknown.
    """
    writes_principles = self.prompts.principles_format is not None
    judged: dict[int, JudgedExample | ExampleError] = {}
    scheduler = JudgementScheduler(self.prompts, judged.__setitem__)
    items = self._run(
      scheduler,
      self._requests(examples, k),
      progress=progress,
      total=total * (max(1, k) + writes_principles),
    )
    next_number = 0
    # The last round, without an item, yields errors at the end of the stream.
    for item in itertools.chain(items, (None,)):
      if item is not None:
        scheduler.collect(item)
      while next_number in judged:
        yield self._add_meta(judged.pop(next_number))
        next_number += 1

  def stream(
    self,
    requests: Iterable[JudgementRequest | None],
    on_judged: OnJudged,
    on_sample: OnSample,
    dropped: Callable[[], Collection[int]],
  ) -> None:
    """Judges a stream of requests with settings of their own, until it ends.

    Calls everything in the caller's thread, between two calls of the model.

    Args:
      requests: None while no request is ready. When the engine is idle, it is
        read again at once and may block.
      on_judged: called with the number of an example, from 0, and its result.
      on_sample: called with the number of an example, a sample index and the
        judgement, without a score of the meta RM.
      dropped: returns the numbers to cancel since its last call.
    """

    def on_judged_with_meta(number, item):
      on_judged(number, self._add_meta(item))

    scheduler = JudgementScheduler(self.prompts, on_judged_with_meta, on_sample)
    items = self._run(
      scheduler, requests, dropped=lambda: scheduler.drop(dropped())
    )
    for item in items:
      scheduler.collect(item)

  def _run(self, scheduler, requests, **options):
    if self.weights is None:
      raise ValueError('the judge has no weights; see Judge.with_weights')
    return self.engine.run(
      self.weights, scheduler.requests(requests), **options
    )

  def _requests(self, examples, k) -> Iterator[JudgementRequest | ExampleError]:
    for example in map(row_limits.limited, examples):
      if isinstance(example, ExampleError):
        yield example
      else:
        yield self.config.request(example, k)

  def _add_meta(
    self, item: JudgedExample | ExampleError
  ) -> JudgedExample | ExampleError:
    if self.meta is None or isinstance(item, ExampleError):
      return item
    return self.meta.rate(item)
