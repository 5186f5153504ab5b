"""A stream of requests in, finished generations out, rows kept busy.

  requests -> slots (prefill, insert) -> rows -> decode, C steps a call
                 ^                        |
                 +--- rows that ended ----+--> generations

Between two calls of decode the host gives rows that ended to other samples.
What a person or a parser does with finished generations happens while the
device works on the next call: they are handed out after it was begun.

Every process of a pod runs the same engine on the same requests.
"""

import dataclasses
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import jax
import numpy as np
import tqdm
from absl import logging

from grm_jax.model.batch import Batch
from grm_jax.model.transformer import Transformer
from grm_jax.sampling import decode, stop_strings
from grm_jax.sampling.compiled_functions import (
  CompiledFunctions,
  EngineShapes,
  idle_rows,
)
from grm_jax.sampling.request import (
  EngineLimits,
  Generation,
  RejectedRequest,
  Request,
  fault,
)
from grm_jax.sampling.slot_scheduler import ActiveSample, SlotTable

_END = object()  # of a stream of requests
_FINISH = {decode.RUNNING: '', decode.STOPPED: 'stop', decode.FULL: 'length'}


@dataclasses.dataclass(frozen=True)
class Stats:
  """What an engine has done since it was made.

  Attributes:
    tokens: drawn, those past a stop string included.
    row_steps: rows times steps: the tokens that busy rows would have drawn.
    steps: of decode.
    calls: of decode.
    prompts: prefilled.
    generations: handed out.
    seconds: inside `run`, the consumer's time included.
  """

  tokens: int = 0
  row_steps: int = 0
  steps: int = 0
  calls: int = 0
  prompts: int = 0
  generations: int = 0
  seconds: float = 0.0

  @property
  def occupancy(self) -> float:
    """The share of row steps that drew a token."""
    return self.tokens / max(1, self.row_steps)

  @property
  def tokens_per_second(self) -> float:
    return self.tokens / self.seconds if self.seconds else 0.0

  def __str__(self):
    return (
      f'{self.tokens_per_second:.0f} tokens/s, {self.occupancy:.0%} of rows '
      'busy'
    )

  def since(self, before: 'Stats') -> 'Stats':
    """What was done after `before`."""
    own, others = dataclasses.astuple(self), dataclasses.astuple(before)
    return Stats(*(x - y for x, y in zip(own, others, strict=True)))


class Engine:
  """Programs, slots and rows for generating; see `run`."""

  def __init__(
    self,
    model: Transformer,
    weights: decode.DecodeWeights,
    *,
    prompts: int,
    rows: int,
    size: int,
    buckets: Sequence[int],
    chunk: int = 16,
    reaches: int = 1,
    prefill: int | None = None,
    stop_ids: Sequence[int] = (),
    forbidden: Sequence[int] = (),
    detokenize: stop_strings.Detokenize | None = None,
  ):
    """Prepares everything; nothing is compiled before `warm_up` or `run`.

    The rows of a slot draw samples of one prompt. More slots with fewer rows
    each lose less when lengths are uneven; more rows a slot share a prompt's
    cache between more samples.

    Args:
      model: the network; its compute and layout are those of decoding.
      weights: from placing.place.
      prompts: P, prompt slots.
      rows: R, samples of a prompt that are drawn at once.
      size: T, the most tokens of a generation.
      buckets: lengths to pad prompts to; the last is the longest prompt.
      chunk: C, steps between two refills.
      reaches: how many lengths own caches are read in: a call reads the
        shortest that holds its longest row. Saves reading where rows begin
        together. With one, and one bucket, all calls are of the same shapes,
        and not a bit of a generation depends on the others.
      prefill: A, prompts computed at once; default as few as the mesh allows.
      stop_ids: ids that end a generation.
      forbidden: ids that are never drawn.
      detokenize: ids to text; needed for stop strings and Generation.text.

    Raises:
      UserError: a number below 1, or numbers of prompts that the mesh cannot
        split.
      ValueError: an id that the model does not have.
    """
    sizes = EngineShapes(
      prompts=prompts,
      rows=rows,
      size=size,
      chunk=chunk,
      reaches=reaches,
      prefill=model.layout.split('prompts') if prefill is None else prefill,
      buckets=tuple(sorted(set(buckets))),
    )
    self.programs = CompiledFunctions(
      model, weights, sizes, stop_ids, forbidden
    )
    self.limits = EngineLimits(
      prompt=sizes.buckets[-1],
      new=size,
      vocabulary=model.size.vocab_size,
      text=detokenize is not None,
    )
    self.stats = Stats()
    self.slots = self.state = None
    self._sizes, self._bucket = sizes, None
    self._widest = 0  # the most samples that a request has asked for
    self._detokenize = detokenize

  def warm_up(self) -> int:
    """Compiles everything ahead; returns the number of programs."""
    return self.programs.warm_up()

  def run(
    self,
    requests: Iterable[Request | None],
    *,
    progress: str = '',
    total: int = 0,
    dropped: Callable[[], Collection[str]] = tuple,
  ) -> Iterator[Generation | RejectedRequest]:
    """Generates for a stream of requests, which is read as slots get free.

    Args:
      requests: their ids must differ while they are at work. None says that
        nothing is ready yet: the stream is asked again when rows have ended,
        so that a request may depend on what an earlier one has generated. With
        nothing at work it is asked again at once and may wait there.
      progress: name of a progress bar, '' for none; quiet off a terminal. A
        line of log under this name ends it.
      total: generations expected, for the bar; 0 if unknown.
      dropped: called before every call of decode: ids of requests that nobody
        waits for any more. Their rows are given to others at once.

    Yields:
      Generations in the order in which they end, and a Refusal for every
      request that cannot fit or is otherwise wrong, before any work on it.
    """
    bar = tqdm.tqdm(
      desc=progress,
      total=total or None,
      unit='gen',
      disable=None if progress else True,
    )
    begin, before = time.monotonic(), self.stats
    with bar:
      for item in self._run(iter(requests), dropped):
        spent = before.seconds + time.monotonic() - begin
        self.stats = dataclasses.replace(self.stats, seconds=spent)
        if isinstance(item, Generation):
          bar.update()
          bar.set_postfix_str(str(self.stats), refresh=False)
        yield item
    spent = before.seconds + time.monotonic() - begin
    self.stats = dataclasses.replace(self.stats, seconds=spent)
    if progress:
      self._log(progress, self.stats.since(before))

  def _log(self, name, done: Stats) -> None:
    rows, advice = self._sizes.rows, ''
    if 0 < self._widest < rows:
      advice = (
        f'; no prompt had more than {self._widest} samples for its {rows} '
        'rows: as few rows, and more prompts at once, are faster'
      )
    logging.info('%s: %s%s', name, done, advice)

  def _run(self, requests, dropped):
    table, ended, more = SlotTable(*self._shape(), self._sizes.size), [], True
    while more or ended or table.requests():
      table.drop(dropped())
      refused, more = self._admit(table, requests)
      drawn = self._begin_call(table) if table.requests() else None
      # From here on the device is busy; the rest takes none of its time.
      yield from refused
      yield from map(self._finish, ended)
      ended = []
      if drawn is not None:
        self._find_stops(table)
        ended = self._end_call(table, drawn)

  def _shape(self):
    return self._sizes.prompts, self._sizes.rows

  def _admit(
    self, table: SlotTable, requests: Iterator[Request | None]
  ) -> tuple[list[RejectedRequest], bool]:
    """Fills free slots; returns what was refused, and whether more may come."""
    refused, taken, more = [], [], True
    free = table.free()
    while len(taken) < len(free):
      request = next(requests, _END)
      more = request is not _END
      if request is None or not more:
        break
      reason = fault(request, self.limits)
      if request.id in (r.id for r in table.requests()):
        reason = 'another request of this id is at work'
      if reason:
        refused.append(RejectedRequest(request.id, reason))
        continue
      number = free[len(taken)]
      table.admit(number, request)
      taken.append((number, request))
      self._widest = max(self._widest, request.num_samples)
    if taken:
      self._make_room(max(len(r.prompt) for r in table.requests()))
      taken.sort(key=lambda item: len(item[1].prompt))
      for first in range(0, len(taken), self._sizes.prefill):
        self._prefill(taken[first : first + self._sizes.prefill])
    return refused, more

  def _make_room(self, longest: int) -> None:
    """Slots as long as the longest prompt in use needs."""
    bucket = self._sizes.bucket(longest)
    if self._bucket is None:
      self.slots, self.state = (
        self.programs.empty(bucket),
        self.programs.start(),
      )
    elif self._bucket != bucket:
      self.slots = self.programs.resize(self.slots, self._bucket, bucket)
    self._bucket = bucket

  def _prefill(self, taken: Sequence[tuple[int, Request]]) -> None:
    """Computes up to A prompts and puts them into their slots."""
    # The last one stands in for those that are missing: putting it twice into
    # its slot does no harm.
    count = self._sizes.prefill
    filled = [*taken, *[taken[-1]] * (count - len(taken))]
    bucket = self._sizes.bucket(max(len(r.prompt) for _, r in taken))
    tokens = np.zeros((count, bucket), np.int32)
    for line, (_, request) in zip(tokens, filled, strict=True):
      line[: len(request.prompt)] = request.prompt
    lengths = np.array([len(r.prompt) for _, r in filled], np.int32)
    where = np.array([number for number, _ in filled], np.int32)
    new = self.programs.prefill(bucket, Batch(tokens, lengths))
    self.slots = self.programs.insert(
      self.slots, new, where, bucket, self._bucket
    )
    done = self.stats.prompts + len(taken)
    self.stats = dataclasses.replace(self.stats, prompts=done)

  def _begin_call(self, table: SlotTable) -> decode.DecodeOutput:
    """Dispatches C steps for the rows of the table; does not wait."""
    rows = _describe(table, self._shape())
    reach = self._sizes.reach(rows.lengths.max())
    self.state, drawn = self.programs.decode(
      self._bucket, reach, self.slots, rows, self.state
    )
    return drawn

  def _end_call(
    self, table: SlotTable, drawn: decode.DecodeOutput
  ) -> list[ActiveSample]:
    """Waits for what was drawn and writes it down."""
    drawn = jax.device_get(drawn)
    steps, tokens = int(drawn.steps), int(drawn.counts.sum())
    s, (p, r) = self.stats, self._shape()
    self.stats = dataclasses.replace(
      s,
      tokens=s.tokens + tokens,
      row_steps=s.row_steps + steps * p * r,
      steps=s.steps + steps,
      calls=s.calls + 1,
    )
    finished = [[_FINISH[x] for x in row] for row in drawn.status.tolist()]
    return table.collect(
      drawn.counts,
      finished,
      drawn.tokens,
      drawn.sampling_logps,
      drawn.model_logps,
    )

  def _find_stops(self, table: SlotTable) -> None:
    """Ends rows whose text has met one of their stop strings."""
    for _, _, row in table.rows():
      self._find_stop(row)

  def _find_stop(self, row: ActiveSample) -> None:
    if not row.request.stop:
      return
    length = stop_strings.first_stop(
      row.tokens, row.checked, row.request.stop, self._detokenize
    )
    row.checked = len(row.tokens)
    if length is not None:
      row.cut(length, 'string')

  def _finish(self, row: ActiveSample) -> Generation:
    """The generation of a row that has ended."""
    self._find_stop(row)
    text = None
    if self._detokenize is not None:
      text = stop_strings.cut_text(
        self._detokenize(row.tokens), row.request.stop
      )
    done = self.stats.generations + 1
    self.stats = dataclasses.replace(self.stats, generations=done)
    return Generation(
      request=row.request.id,
      sample=row.sample,
      tokens=np.array(row.tokens, np.int32),
      finish=row.finish,
      sampling_logps=np.array(row.sampling_logps, np.float32),
      model_logps=np.array(row.model_logps, np.float32),
      text=text,
    )


def _describe(table: SlotTable, shape: tuple[int, int]) -> decode.RowState:
  """The table's rows as decode wants to be told."""
  out = idle_rows(shape)
  for p, r, row in table.rows():
    how, request = out.settings, row.request
    how.temperature[p, r], how.top_k[p, r] = request.temperature, request.top_k
    how.top_p[p, r], how.min_p[p, r] = request.top_p, request.min_p
    out.keys[p, r] = row.key
    out.lengths[p, r] = len(row.tokens)
    out.max_tokens[p, r] = row.max_tokens
  return out
