"""The generative judge: examples in, judgements out; others here do so too."""

import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from grm_jax.errors import UserError
from grm_jax.judgement import example as examples_lib
from grm_jax.judgement import judgement_request, verdict
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.judgement import ExampleError, JudgedExample, Judgement
from grm_jax.judgement.judgement_request import JudgementRequest
from grm_jax.judgement.prompt_format import PromptFormat
from grm_jax.judgement.verdict import VoteConfig
from grm_jax.judges.baselines.scalar_rm import MetaJudge
from grm_jax.judges.judgement_scheduler import JudgementScheduler, PromptBuilder
from grm_jax.sampling.engine import Engine
from grm_jax.tokenizer.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
  """How to judge; the defaults are the paper's where it says.

  Attributes:
    template: name or path, see judgement/template.py.
    principles: template by which principles are written, once for an example
      that has none, if `template` uses them.
    single: template of examples of one response, see judgement/prompt_format.py.
    too_long: 'shorten' or 'refuse', see judgement/prompt_builder.py.
    order, temperature, seed, hint: see judgement/judgement_request.py.
    vote, k_meta: see judgement/verdict.py, Voting.
    reads: 'scores' or 'best', see judgement/prompt_format.py.
    meta: template of the meta RM's prompts; '' is the one that it was trained
      with, if its checkpoint says so.
  """

  template: str = 'pointwise'
  principles: str = 'principles'
  single: str = ''
  too_long: str = 'shorten'
  order: str = 'balanced'
  temperature: float = 0.5
  seed: int = 0
  vote: str = 'sum'
  reads: str = 'scores'
  k_meta: int = 0
  hint: bool = False
  meta: str = ''

  def __post_init__(self):
    self.forms(), self.voting()
    judgement_request.check(0, self.order, self.temperature)

  def forms(self) -> PromptFormat:
    """The prompts that these settings ask with."""
    return PromptFormat(self.template, self.single, self.too_long, self.reads)

  def voting(self) -> VoteConfig:
    """How samples vote."""
    return VoteConfig(self.vote, self.k_meta)

  def asked(self, example: JudgingExample, k: int) -> JudgementRequest:
    """What is asked of an example."""
    return JudgementRequest(
      example, k, self.order, self.temperature, self.seed, self.hint
    )


class Judge:
  """An engine, a tokenizer and a template; see `judge` and `score`."""

  def __init__(
    self,
    engine: Engine,
    tokenizer: Tokenizer,
    settings: JudgeConfig,
    meta: MetaJudge | None = None,
  ):
    """`meta` rates every judgement; votes by it need it.

    Raises:
      UserError: a vote that needs a meta RM, and none given.
    """
    check_meta(settings, meta is not None)
    self.engine, self.tokenizer, self.settings = engine, tokenizer, settings
    self.meta = meta
    judging, writing = settings.forms(), None
    judging.check()
    if 'principles' in judging.of(2).used:
      writing = PromptFormat(settings.principles, '', settings.too_long)
    self.prompts = PromptBuilder(
      judging, writing, tokenizer, engine.limits.prompt
    )

  def score(
    self, rows: Iterable[dict[str, Any]], k: int = 8, progress: str = ''
  ) -> list[dict[str, Any]]:
    """Votes, scores and generations of rows, in their order.

    Args:
      rows: {query | messages, responses[, id, reference, principles]}.
      k: samples of each; 0 is one greedy judgement.
      progress: name of a progress bar, '' for none.

    Returns:
      One row for each, see judgement/verdict.py.

    Raises:
      UserError: a row that cannot be judged, before the others are.
    """
    found = [examples_lib.from_row(row, i) for i, row in enumerate(rows)]
    out = []
    for item in self.judge(found, k, progress=progress, total=len(found)):
      if isinstance(item, ExampleError):
        raise UserError(f'{item.id}: {item.reason}')
      out.append(
        verdict.report(item, self.settings.voting(), self.settings.seed)
      )
    return out

  def judge(
    self,
    examples: Iterable[JudgingExample | ExampleError],
    k: int,
    *,
    progress: str = '',
    total: int = 0,
  ) -> Iterator[JudgedExample | ExampleError]:
    """Judgements of a stream of examples, in its order.

    Args:
      examples: read as the engine gets free; faults are passed through.
      k: samples of each; 0 is one greedy judgement.
      progress: name of a progress bar over samples.
      total: number of examples, if known.
    """
    per_example = max(1, k) + (self.prompts.writing is not None)
    done = {}
    asking = JudgementScheduler(self.prompts, done.__setitem__)
    items = self.engine.run(
      asking.requests(self._asked(examples, k)),
      progress=progress,
      total=total * per_example,
    )
    following = 0
    for item in itertools.chain(items, (None,)):
      if item is not None:
        asking.collect(item)
      while following in done:
        yield self._rate(done.pop(following))
        following += 1

  def _asked(self, examples, k) -> Iterator[JudgementRequest | ExampleError]:
    for x in examples:
      yield x if isinstance(x, ExampleError) else self.settings.asked(x, k)

  def stream(
    self,
    examples: Iterable[JudgementRequest | None],
    hand_out: Callable[[int, JudgedExample | ExampleError], None],
    show: Callable[[int, int, Judgement], None],
    dropped: Callable[[], Collection[int]],
  ) -> None:
    """Judges whatever comes, each as it asks, until nothing more comes.

    All are called in the thread of the caller, between two calls of the model.

    Args:
      examples: with what is asked of each; None where there is none yet. With
        nothing at work it is read again at once and may wait.
      hand_out: told the number of an example, from 0, and what came of it.
      show: told the number, the place among its samples and a judgement that
        was written, without the meta RM's opinion.
      dropped: numbers that nobody waits for any more, since the last call.
    """

    def rated(number, item):
      hand_out(number, self._rate(item))

    asking = JudgementScheduler(self.prompts, rated, show)
    items = self.engine.run(
      asking.requests(examples), dropped=lambda: asking.drop(dropped())
    )
    for item in items:
      asking.collect(item)

  def _rate(
    self, item: JudgedExample | ExampleError
  ) -> JudgedExample | ExampleError:
    if self.meta is None or isinstance(item, ExampleError):
      return item
    return self.meta.rate(item)


def check_meta(settings: JudgeConfig, there: bool) -> None:
  """UserError for a vote that needs a meta RM where there is none."""
  if there:
    return
  if settings.voting().needs_meta:
    raise UserError(
      f'config.vote={settings.vote} needs a meta RM; give '
      'config.meta_checkpoint'
    )
  if settings.k_meta:
    raise UserError(
      f'config.k_meta={settings.k_meta} is how many judgements a meta RM '
      'keeps; give config.meta_checkpoint'
    )
