"""From examples to requests of an engine, and from generations to judgements.

  asked -> orders -> prompts (one per order) -> requests
  generations -> texts -> scores -> judgements, an example at a time

An example of n responses has at most n distinct prompts under balanced
orders, however many samples are drawn; each is computed once. Where the
template asks for judgements by given principles, one more generation writes
them before, and all samples of the example share them.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator

from grm_jax.errors import UserError
from grm_jax.judgement import response_order
from grm_jax.judgement.judgement import ExampleError, JudgedExample, Judgement
from grm_jax.judgement.judgement_request import JudgementRequest
from grm_jax.judgement.prompt_format import PromptFormat
from grm_jax.sampling.request import Generation, RejectedRequest, Request
from grm_jax.tokenizer import chat_format
from grm_jax.tokenizer.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class PromptBuilder:
  """How examples are asked.

  Attributes:
    judging: for judgements.
    writing: for principles of examples without any; None if judgements need
      none.
    tokenizer: the model's.
    limit: most tokens of a prompt.
  """

  judging: PromptFormat
  writing: PromptFormat | None
  tokenizer: Tokenizer
  limit: int

  def tokens(
    self, asked: JudgementRequest, order: tuple[int, ...], write: bool
  ) -> tuple[int, ...]:
    """A prompt; UserError where the example does not fit.

    Args:
      asked: the example.
      order: in which its responses are shown.
      write: whether principles are asked for, not a judgement.
    """
    forms, hint = (self.writing, False) if write else (self.judging, asked.hint)
    render = functools.partial(chat_format.render_user, self.tokenizer)
    return forms.tokenize(
      asked.example, order, render, limit=self.limit, hint=hint
    )


@dataclasses.dataclass
class PendingExample:
  """An example whose samples are being drawn; places of `samples` by request.

  `written` are the principles that were written for it, '' if none were.
  """

  asked: JudgementRequest
  written: str
  samples: list[Judgement | None]
  places: dict[str, list[int]]
  orders: list[tuple[int, ...]]
  missing: int


class JudgementScheduler:
  """Examples on their way through an engine, numbered as they came."""

  def __init__(
    self,
    prompts: PromptBuilder,
    hand_out: Callable[[int, JudgedExample | ExampleError], None],
    show: Callable[[int, int, Judgement], None] | None = None,
  ):
    """Begins with no example.

    Args:
      prompts: how they are asked.
      hand_out: told the number of an example and what came of it, once.
      show: told the number, the place among its samples and a judgement, as
        soon as it was written.
    """
    self._prompts, self._hand_out, self._show = prompts, hand_out, show
    self._ready: collections.deque[Request] = collections.deque()
    self._writing: dict[
      int, JudgementRequest
    ] = {}  # while principles are written
    self._work: dict[int, PendingExample] = {}

  def requests(
    self, asked: Iterable[JudgementRequest | ExampleError | None]
  ) -> Iterator[Request | None]:
    """Requests of every example, those that waited first.

    Args:
      asked: examples, read as the engine gets free; a Fault is handed out as
        it is. None says that there is none yet, and comes back as None.
    """
    number = 0
    for item in asked:
      if isinstance(item, ExampleError):
        self._hand_out(number, item)
      elif item is not None:
        self._ask(number, item)
      number += item is not None
      while self._ready:
        yield self._ready.popleft()
      if item is None:
        yield None
    while self._ready or self._writing:
      yield self._ready.popleft() if self._ready else None

  def drop(self, numbers: Iterable[int]) -> list[str]:
    """Forgets examples: nothing more is asked or handed out of them.

    Returns:
      The requests of them that may be at work.
    """
    found = []
    for number in numbers:
      if self._writing.pop(number, None) is not None:
        found.append(_name(number, 'principles'))
      this = self._work.pop(number, None)
      found += this.places if this is not None else ()
    if found:
      kept = [x for x in self._ready if x.id not in found]
      self._ready = collections.deque(kept)
    return found

  def collect(self, item: Generation | RejectedRequest) -> None:
    """Reads what the engine has written."""
    number = int(item.request.split(':')[0])
    if number in self._writing:
      self._judge_by(item, number)
      return
    if number not in self._work:
      return  # another prompt of the example was refused, or it was dropped
    this = self._work[number]
    if isinstance(item, RejectedRequest):
      del self._work[number]
      self._hand_out(number, ExampleError(this.asked.example.id, item.reason))
      return
    place = this.places[item.request][item.sample]
    found = self._judgement(item, this, this.orders[place])
    this.samples[place] = found
    this.missing -= 1
    if self._show is not None:
      self._show(number, place, found)
    if not this.missing:
      del self._work[number]
      self._hand_out(
        number, JudgedExample(this.asked.example, tuple(this.samples))
      )

  def _ask(self, number, asked, written='') -> None:
    """Makes ready what to generate next for an example."""
    write = self._prompts.writing is not None and not asked.example.principles
    try:
      if write:
        self._ready.append(self._of_principles(number, asked))
        self._writing[number] = asked
      else:
        self._ready.extend(self._of_judgements(number, asked, written))
    except UserError as error:
      self._hand_out(number, ExampleError(asked.example.id, str(error)))

  def _of_principles(self, number, asked) -> Request:
    """Asks for principles; the responses stand in their own order."""
    order = tuple(range(len(asked.example.responses)))
    tokens = self._prompts.tokens(asked, order, write=True)
    name, key = _name(number, 'principles'), f'{asked.example.id} principles'
    return _request(name, tokens, 1, asked, key)

  def _of_judgements(self, number, asked, written) -> list[Request]:
    example = asked.example
    shown = response_order.orders(
      asked.order,
      len(example.responses),
      max(1, asked.k),
      asked.seed,
      example.id,
    )
    places = {}
    for place, order in enumerate(shown):
      places.setdefault(order, []).append(place)
    requests = [
      _request(
        _name(number, i),
        self._prompts.tokens(asked, order, write=False),
        len(places[order]),
        asked,
        f'{example.id} {",".join(map(str, order))}',
      )
      for i, order in enumerate(places)
    ]
    named = zip((r.id for r in requests), places.values(), strict=True)
    self._work[number] = PendingExample(
      asked=asked,
      written=written,
      samples=[None] * len(shown),
      places=dict(named),
      orders=shown,
      missing=len(shown),
    )
    return requests

  def _judge_by(self, item, number) -> None:
    """Asks for judgements by the principles that were written."""
    asked = self._writing.pop(number)
    reason = item.reason if isinstance(item, RejectedRequest) else ''
    written = '' if reason else item.text.strip()
    if not written:
      reason = reason or 'the judge wrote no principles'
      self._hand_out(number, ExampleError(asked.example.id, reason))
      return
    example = dataclasses.replace(asked.example, principles=written)
    self._ask(number, dataclasses.replace(asked, example=example), written)

  def _judgement(
    self, item: Generation, this: PendingExample, order
  ) -> Judgement:
    # Only what comes after the principles is read: they are no judgement.
    shown = self._prompts.judging.read(item.text, len(order))
    text = f'{this.written}\n\n{item.text}' if this.written else item.text
    return Judgement(
      order=order,
      text=text,
      num_tokens=len(item.tokens),
      finish=item.finish,
      scores=None if shown is None else response_order.restore(shown, order),
    )


def _name(number, what) -> str:
  return f'{number}:{what}'


def _request(name, tokens, count, asked: JudgementRequest, key) -> Request:
  return Request(
    id=name,
    prompt=tokens,
    num_samples=count,
    temperature=asked.temperature if asked.k else 0.0,
    seed=asked.seed,
    key=key,
  )
