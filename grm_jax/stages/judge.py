"""A judge: examples in, judgements out. What scoring, evaluation and RFT share.

  example -> orders -> prompts (one per order) -> engine -> texts -> scores

An example of n responses has at most n distinct prompts under balanced
orders, however many samples are drawn; each is computed once. Where the
template asks for judgements by given principles, one more generation writes
them before, and all samples of the example share them.
"""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from grm_jax.judging import example as examples_lib
from grm_jax.judging import judgement, orders, votes
from grm_jax.judging.example import JudgingExample
from grm_jax.judging.forms import Forms
from grm_jax.judging.judgement import Fault, Judged, Judgement
from grm_jax.model import chat
from grm_jax.model.tokenizer import Tokenizer
from grm_jax.sampling.engine import Engine
from grm_jax.sampling.request import Generation, Refusal, Request
from grm_jax.stages.scalar import MetaJudge

# How samples' scores become votes; the last two need a meta RM.
VOTES = ('sum', 'mean', 'majority', 'guided', 'best')


@dataclasses.dataclass(frozen=True)
class Settings:
  """How to judge; the defaults are the paper's where it says.

  Attributes:
    template: name or path, see judging/template.py.
    principles: template by which principles are written, once for an example
      that has none, if `template` has a slot for them.
    single: template of examples of one response, see judging/forms.py.
    too_long: 'shorten' or 'refuse', see judging/prompt.py.
    order: 'balanced', 'random' or 'fixed', see judging/orders.py.
    temperature: of the samples.
    seed: of orders and samples.
    vote: one of VOTES.
    reads: 'scores' or 'best', see judging/forms.py.
    k_meta: samples that `guided` keeps; 0 for half of them.
    hint: whether prompts tell what is right (rejective fine-tuning).
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
    self.forms()
    for key, value, known in (
      ('order', self.order, orders.KINDS),
      ('vote', self.vote, VOTES),
    ):
      if value not in known:
        raise ValueError(
          f'config.{key} is {value!r}; it can be {", ".join(known)}'
        )
    if not 0 <= self.temperature < float('inf'):
      raise ValueError(
        f'config.temperature is {self.temperature}; it must be 0 or more'
      )
    if self.k_meta < 0:
      raise ValueError(f'config.k_meta is {self.k_meta}; 0 is half of k')

  def forms(self) -> Forms:
    """The prompts that these settings ask with."""
    return Forms(self.template, self.single, self.too_long, self.reads)


@dataclasses.dataclass
class _Work:
  """An example whose samples are being drawn; places of `samples` by order.

  `written` are the principles that were written for it, '' if none were.
  """

  example: JudgingExample
  written: str
  samples: list[Judgement | None]
  places: dict[str, list[int]]
  orders: list[tuple[int, ...]]
  missing: int


@dataclasses.dataclass
class _Run:
  """A call of `judge`: examples by number, and what to ask next.

  Attributes:
    k: samples of each example.
    writing: examples whose principles are being written.
    ready: requests that waited for principles.
    work: examples whose samples are being drawn.
    done: examples to hand out when it is their turn.
  """

  k: int
  writing: dict[int, JudgingExample]
  ready: collections.deque[Request]
  work: dict[int, _Work]
  done: dict[int, Judged | Fault]


class Judge:
  """An engine, a tokenizer and a template; see `judge` and `score`."""

  def __init__(
    self,
    engine: Engine,
    tokenizer: Tokenizer,
    settings: Settings,
    meta: MetaJudge | None = None,
  ):
    """`meta` rates every judgement; votes by it need it.

    Raises:
      ValueError: a vote that needs a meta RM, and none given.
    """
    check_meta(settings, meta is not None)
    self.engine, self.tokenizer, self.settings = engine, tokenizer, settings
    self.meta = meta
    self._forms, self._writing_forms = settings.forms(), None
    self._forms.check()
    if 'principles' in self._forms.of(2).slots():
      self._writing_forms = Forms(settings.principles, '', settings.too_long)
    self._chat = functools.partial(chat.render_user, tokenizer)

  def score(
    self, rows: Iterable[dict[str, Any]], k: int = 8, progress: str = ''
  ) -> list[dict[str, Any]]:
    """Votes, scores and generations of rows, in their order.

    Args:
      rows: {query | messages, responses[, id, reference, principles]}.
      k: samples of each; 0 is one greedy judgement.
      progress: name of a progress bar, '' for none.

    Returns:
      One row for each, see `report`.

    Raises:
      ValueError: a row that cannot be judged, before the others are.
    """
    found = [examples_lib.from_row(row, i) for i, row in enumerate(rows)]
    out = []
    for item in self.judge(found, k, progress=progress, total=len(found)):
      if isinstance(item, Fault):
        raise ValueError(f'{item.id}: {item.reason}')
      out.append(report(item, self.settings))
    return out

  def judge(
    self,
    examples: Iterable[JudgingExample | Fault],
    k: int,
    *,
    progress: str = '',
    total: int = 0,
  ) -> Iterator[Judged | Fault]:
    """Judgements of a stream of examples, in its order.

    Args:
      examples: read as the engine gets free; faults are passed through.
      k: samples of each; 0 is one greedy judgement.
      progress: name of a progress bar over samples.
      total: number of examples, if known.
    """
    if k < 0:
      raise ValueError(f'config.k is {k}; 0 is one greedy judgement')
    now = _Run(k, {}, collections.deque(), {}, {})
    items = self.engine.run(
      self._requests(examples, now),
      progress=progress,
      total=total * (max(1, k) + (self._writing_forms is not None)),
    )
    following = 0
    for item in itertools.chain(items, (None,)):
      if item is not None:
        self._collect(item, now)
      while following in now.done:
        judged = now.done.pop(following)
        rated = self.meta is not None and isinstance(judged, Judged)
        yield self.meta.rate(judged) if rated else judged
        following += 1

  def _requests(self, examples, now: _Run) -> Iterator[Request | None]:
    """Requests of every example, those that waited first; None to wait."""
    for number, example in enumerate(examples):
      while now.ready:
        yield now.ready.popleft()
      if isinstance(example, Fault):
        now.done[number] = example
        continue
      yield from self._ask(number, example, now)
    while now.ready or now.writing:
      yield now.ready.popleft() if now.ready else None

  def _ask(self, number, example, now, written='') -> list[Request]:
    """What to generate next for an example; if it cannot be, it is done."""
    write = self._writing_forms is not None and not example.principles
    try:
      if not write:
        return self._of_example(number, example, now, written)
      request = self._writing(number, example, now.k)
    except ValueError as error:
      now.done[number] = Fault(example.id, str(error))
      return []
    now.writing[number] = example
    return [request]

  def _writing(self, number, example, k) -> Request:
    """Asks for principles; the responses stand in their own order."""
    order = tuple(range(len(example.responses)))
    tokens = self._tokens(self._writing_forms, example, order)
    return self._request(
      f'{number}:principles', tokens, 1, k, f'{example.id} principles'
    )

  def _of_example(self, number, example, now, written) -> list[Request]:
    s, n = self.settings, len(example.responses)
    shown = orders.orders(s.order, n, max(1, now.k), s.seed, example.id)
    places = {}
    for place, order in enumerate(shown):
      places.setdefault(order, []).append(place)
    asked = [
      self._request(
        f'{number}:{i}',
        self._tokens(self._forms, example, order, self.settings.hint),
        len(places[order]),
        now.k,
        f'{example.id} {",".join(map(str, order))}',
      )
      for i, order in enumerate(places)
    ]
    now.work[number] = _Work(
      example=example,
      written=written,
      samples=[None] * len(shown),
      places=dict(zip((r.id for r in asked), places.values(), strict=True)),
      orders=shown,
      missing=len(shown),
    )
    return asked

  def _tokens(self, forms, example, order, hint=False) -> tuple[int, ...]:
    limit = self.engine.limits.prompt
    return forms.tokenize(example, order, self._chat, limit=limit, hint=hint)

  def _request(self, name, tokens, count, k, key) -> Request:
    return Request(
      id=name,
      prompt=tokens,
      num_samples=count,
      temperature=self.settings.temperature if k else 0.0,
      seed=self.settings.seed,
      key=key,
    )

  def _collect(self, item: Generation | Refusal, now: _Run) -> None:
    number = int(item.request.split(':')[0])
    if number in now.writing:
      self._judge_by(item, number, now)
      return
    if number not in now.work:
      return  # another prompt of the example was refused
    this = now.work[number]
    if isinstance(item, Refusal):
      now.done[number] = Fault(this.example.id, item.reason)
      del now.work[number]
      return
    place = this.places[item.request][item.sample]
    this.samples[place] = self._judgement(item, this, this.orders[place])
    this.missing -= 1
    if not this.missing:
      now.done[number] = Judged(this.example, tuple(this.samples))
      del now.work[number]

  def _judge_by(self, item, number, now) -> None:
    """Asks for judgements by the principles that were written."""
    example = now.writing.pop(number)
    if isinstance(item, Refusal):
      now.done[number] = Fault(example.id, item.reason)
      return
    written = item.text.strip()
    if not written:
      now.done[number] = Fault(example.id, 'the judge wrote no principles')
      return
    example = dataclasses.replace(example, principles=written)
    now.ready.extend(self._ask(number, example, now, written))

  def _judgement(self, item: Generation, this: _Work, order) -> Judgement:
    # Only what comes after the principles is read: they are no judgement.
    shown = self._forms.read(item.text, len(order))
    text = f'{this.written}\n\n{item.text}' if this.written else item.text
    return Judgement(
      order=order,
      text=text,
      num_tokens=len(item.tokens),
      finish=item.finish,
      scores=None if shown is None else orders.restore(shown, order),
    )


def check_meta(settings: Settings, there: bool) -> None:
  """ValueError for a vote that needs a meta RM where there is none."""
  if settings.vote in ('guided', 'best') and not there:
    raise ValueError(
      f'config.vote={settings.vote} needs a meta RM; give '
      'config.meta_checkpoint'
    )


def report(judged: Judged, settings: Settings) -> dict[str, Any]:
  """What a user gets of an example, as JSON values.

  Returns:
    {id, votes, best, winners, failures, samples}: votes are None if no sample
    parsed; best is one of the winners, picked by the id among several;
    failures counts samples that did not parse.
  """
  example = judged.example
  found = combine(judged, settings)
  winners = () if found is None else votes.winners(found)
  # Not the first of them: that would favour a place.
  draw = orders.orders(
    'random', max(1, len(winners)), 1, settings.seed, example.id
  )
  return {
    'id': example.id,
    'votes': found,
    'best': winners[draw[0][0]] if winners else None,
    'winners': winners,
    'failures': sum(x.scores is None for x in judged.samples),
    'samples': [judgement.to_row(sample) for sample in judged.samples],
  }


def combine(judged: Judged, settings: Settings) -> tuple[float, ...] | None:
  """The votes of an example's samples; None if none parsed."""
  n = len(judged.example.responses)
  parsed = [sample.scores for sample in judged.samples]
  metas = [sample.meta for sample in judged.samples]
  if settings.vote == 'guided':
    return votes.guided(parsed, metas, n, settings.k_meta or None)
  if settings.vote == 'best':
    return votes.best_of(parsed, metas, n)
  plain = {'sum': votes.summed, 'mean': votes.mean, 'majority': votes.majority}
  return plain[settings.vote](parsed, n)
