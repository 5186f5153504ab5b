"""The sampling engine: requests in, finished generations out.

  requests -> slots (prefill, insert) -> rows -> decode, C steps per call
                 ^                        |
                 +----- ended rows -------+--> generations

Between two calls of `decode` the host gives ended rows to other samples
(continuous batching). The engine yields finished generations after it has
started the next call, so the caller parses them while the device is busy.

On a pod, every process runs the same engine on the same requests.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import jax
import numpy as np
import tqdm
from absl import logging

from grm_jax.model.transformer import Transformer
from grm_jax.sampling import decode_state, stop_strings
from grm_jax.sampling.compiled_functions import CompiledFunctions, EngineShapes
from grm_jax.sampling.decode_session import DecodeSession
from grm_jax.sampling.decode_state import DecodeOutput, DecodeWeights
from grm_jax.sampling.request import (
  EngineLimits,
  Generation,
  RejectedRequest,
  Request,
  rejection_reason,
)
from grm_jax.sampling.slot_scheduler import ActiveSample, SlotTable

_FINISH = {
  decode_state.RUNNING: '',
  decode_state.STOPPED: 'stop',
  decode_state.FULL: 'length',
}


@dataclasses.dataclass(frozen=True)
class EngineStats:
  """Counters over all runs of an engine.

  Attributes:
    tokens: sampled tokens, those after a stop string included.
    row_steps: rows times steps, the tokens that fully busy rows would sample.
    steps: decode steps.
    calls: calls of `decode`.
    prompts: computed prompts.
    generations: finished generations.
    seconds: time inside `run`, the caller's time included.
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
    """The fraction of row steps that sampled a token."""
    return self.tokens / max(1, self.row_steps)

  @property
  def tokens_per_second(self) -> float:
    """Sampled tokens per second."""
    return self.tokens / self.seconds if self.seconds else 0.0

  def __str__(self):
    return (
      f'{self.tokens_per_second:.0f} tokens/s, {self.occupancy:.0%} of rows '
      'busy'
    )

  def since(self, earlier: 'EngineStats') -> 'EngineStats':
    """Returns the difference to `earlier`."""
    pairs = zip(
      dataclasses.astuple(self), dataclasses.astuple(earlier), strict=True
    )
    return EngineStats(*(x - y for x, y in pairs))


class Engine:
  """Samples generations for a stream of requests; see `run`.

  Attributes:
    model: the network.
    compiled: its compiled functions.
    limits: limits of requests.
    stats: counters over all runs.
  """

  def __init__(
    self,
    model: Transformer,
    *,
    prompts: int,
    generations_per_prompt: int,
    max_new_tokens: int,
    prompt_buckets: Sequence[int],
    decode_steps_per_call: int = 16,
    num_cache_lengths: int = 1,
    prefill_prompts: int | None = None,
    stop_ids: Sequence[int] = (),
    forbidden_ids: Sequence[int] = (),
    detokenize: stop_strings.Detokenize | None = None,
  ):
    """Compiles nothing before `warm_up` or `run`.

    More slots with fewer rows each lose less when lengths are uneven. More
    rows per slot share a prompt's cache between more samples.

    Args:
      model: the network; its compute and layout are those of decoding.
      prompts: P, prompt slots.
      generations_per_prompt: R, rows of a slot: samples of a prompt that are
        generated at once.
      max_new_tokens: T, the maximum length of a generation.
      prompt_buckets: lengths that prompts are padded to; the last is the
        maximum length of a prompt.
      decode_steps_per_call: C, steps between two refills of rows.
      num_cache_lengths: number of lengths in which `decode` can read the
        generation caches. A call uses the shortest one that holds its longest
        row, which saves reading while all rows are short. With 1, and one
        bucket, all calls have the same shapes, and no bit of a generation
        depends on other requests.
      prefill_prompts: A, prompts computed at once; None for the minimum that
        the mesh allows.
      stop_ids: token ids that end a generation.
      forbidden_ids: token ids that are never sampled.
      detokenize: token ids to text; needed for stop strings and
        Generation.text.

    Raises:
      UserError: a number is below 1, or the mesh does not divide a number of
        prompts.
      ValueError: a token id is outside the vocabulary.
    """
    if prefill_prompts is None:
      prefill_prompts = model.layout.num_shards('prompts')
    shapes = EngineShapes(
      prompts=prompts,
      generations_per_prompt=generations_per_prompt,
      max_new_tokens=max_new_tokens,
      decode_steps_per_call=decode_steps_per_call,
      prefill_prompts=prefill_prompts,
      prompt_buckets=tuple(sorted(set(prompt_buckets))),
      num_cache_lengths=num_cache_lengths,
    )
    self.model = model
    self.compiled = CompiledFunctions(model, shapes, stop_ids, forbidden_ids)
    self.limits = EngineLimits(
      max_prompt_tokens=shapes.prompt_buckets[-1],
      max_new_tokens=max_new_tokens,
      vocab_size=model.config.vocab_size,
      has_detokenizer=detokenize is not None,
    )
    self.stats = EngineStats()
    self._shapes, self._detokenize = shapes, detokenize
    self._max_samples = 0  # of any request so far

  def warm_up(self, weights: DecodeWeights) -> int:
    """Compiles every function ahead of time; returns their number."""
    return self.compiled.warm_up(weights)

  def run(
    self,
    weights: DecodeWeights,
    requests: Iterable[Request | None],
    *,
    progress: str = '',
    total: int = 0,
    dropped: Callable[[], Collection[str]] = tuple,
  ) -> Iterator[Generation | RejectedRequest]:
    """Generates for a stream of requests, which it reads as slots get free.

    Args:
      weights: parameters of the model, from decode_weights.place.
      requests: their ids must differ while they are processed. None means that
        no request is ready. The engine reads on when rows have ended, so a
        request may depend on an earlier generation. While the engine is idle
        it reads on at once, and the iterator may block.
      progress: name of a progress bar, '' for none. The bar is shown on
        terminals only; one log line with this name follows at the end.
      total: expected number of generations, for the bar; 0 if unknown.
      dropped: called before every decode call; returns ids of requests to
        cancel. Their rows are given to other requests at once.

    Yields:
      Generations in the order in which they end, and a RejectedRequest for
      every request that breaks a limit, and for every sample whose tokens have
      no text.
    """
    bar = tqdm.tqdm(
      desc=progress,
      total=total or None,
      unit='gen',
      disable=None if progress else True,
    )
    begin, earlier = time.monotonic(), self.stats
    with bar:
      for item in self._run(weights, iter(requests), dropped):
        self._set_seconds(earlier, begin)
        if isinstance(item, Generation):
          bar.update()
          bar.set_postfix_str(str(self.stats), refresh=False)
        yield item
    self._set_seconds(earlier, begin)
    if progress:
      self._log(progress, self.stats.since(earlier))

  def _run(
    self,
    weights: DecodeWeights,
    requests: Iterator[Request | None],
    dropped: Callable[[], Collection[str]],
  ) -> Iterator[Generation | RejectedRequest]:
    """Runs the loop of refill, decode and collect; see `run`."""
    shapes = self._shapes
    session = DecodeSession(self.compiled, weights)
    table = SlotTable(*shapes.rows, shapes.max_new_tokens)
    ended: list[ActiveSample] = []
    has_more = True
    while has_more or ended or table.requests():
      table.drop(dropped())
      admitted, rejected, has_more = self._admit(table, requests)
      if admitted:
        max_length = max(len(x.prompt) for x in table.requests())
        session.add_prompts(admitted, max_length)
        self._count(prompts=len(admitted))
      output = session.decode(table) if table.requests() else None
      # The device is busy from here on; the caller's work overlaps with it.
      yield from rejected
      yield from map(self._result, ended)
      ended = []
      if output is not None:
        for _, _, row in table.rows():
          # An error is raised again when the sample ends.
          with contextlib.suppress(Exception):
            self._check_stop_strings(row)
        ended = self._collect(table, output)

  def _admit(
    self, table: SlotTable, requests: Iterator[Request | None]
  ) -> tuple[list[tuple[int, Request]], list[RejectedRequest], bool]:
    """Fills the free slots of the table from the stream of requests.

    Returns:
      (slot number, request) of each admitted request, the rejected requests,
      and whether the stream may have more.
    """
    admitted: list[tuple[int, Request]] = []
    rejected: list[RejectedRequest] = []
    free_slots = table.free_slots()
    while len(admitted) < len(free_slots):
      try:
        request = next(requests)
      except StopIteration:
        return admitted, rejected, False
      if request is None:
        break
      reason = rejection_reason(request, self.limits)
      if request.id in (x.id for x in table.requests()):
        reason = 'the engine is processing another request with this id'
      if reason:
        rejected.append(RejectedRequest(request.id, reason, request.tag))
        continue
      slot_number = free_slots[len(admitted)]
      table.admit(slot_number, request)
      admitted.append((slot_number, request))
      self._max_samples = max(self._max_samples, request.num_samples)
    return admitted, rejected, True

  def _collect(
    self, table: SlotTable, output: DecodeOutput
  ) -> list[ActiveSample]:
    """Waits for a decode call; returns the samples that it has ended."""
    host_output = jax.device_get(output)
    steps, (p, r) = int(host_output.steps), self._shapes.rows
    self._count(
      tokens=int(host_output.counts.sum()),
      row_steps=steps * p * r,
      steps=steps,
      calls=1,
    )
    finishes = [
      [_FINISH[x] for x in row] for row in host_output.status.tolist()
    ]
    return table.collect(
      host_output.counts,
      finishes,
      host_output.tokens,
      host_output.sampling_logps,
      host_output.model_logps,
    )

  def _check_stop_strings(self, row: ActiveSample) -> None:
    """Ends a sample whose text contains one of its stop strings."""
    if not row.request.stop:
      return
    assert self._detokenize is not None  # rejection_reason has checked it
    length = stop_strings.first_stop(
      row.tokens, row.num_checked, row.request.stop, self._detokenize
    )
    row.num_checked = len(row.tokens)
    if length is not None:
      row.truncate(length, 'string')

  def _result(self, row: ActiveSample) -> Generation | RejectedRequest:
    """Returns the generation of an ended sample, or why it has no text."""
    try:
      return self._generation(row)
    except Exception as error:  # of this sample; all others are intact
      request = row.request
      logging.error('request %s', request.id, exc_info=error)
      reason = f'the generation has no text: {type(error).__name__}: {error}'
      return RejectedRequest(request.id, reason, request.tag)

  def _generation(self, row: ActiveSample) -> Generation:
    """Returns the generation of an ended sample."""
    self._check_stop_strings(row)
    text = None
    if self._detokenize is not None:
      text = stop_strings.cut_text(
        self._detokenize(row.tokens), row.request.stop
      )
    self._count(generations=1)
    return Generation(
      request_id=row.request.id,
      sample=row.sample,
      tokens=np.array(row.tokens, np.int32),
      finish=row.finish,
      sampling_logps=np.array(row.sampling_logps, np.float32),
      model_logps=np.array(row.model_logps, np.float32),
      text=text,
      tag=row.request.tag,
    )

  def _count(self, **increments: int) -> None:
    """Adds to the counters of `stats`."""
    totals = {k: getattr(self.stats, k) + n for k, n in increments.items()}
    self.stats = dataclasses.replace(self.stats, **totals)

  def _set_seconds(self, earlier: EngineStats, begin: float) -> None:
    """Sets the time of `stats`; the current run began at `begin`."""
    seconds = earlier.seconds + time.monotonic() - begin
    self.stats = dataclasses.replace(self.stats, seconds=seconds)

  def _log(self, name: str, stats: EngineStats) -> None:
    rows, advice = self._shapes.generations_per_prompt, ''
    if 0 < self._max_samples < rows:
      advice = (
        f'; generations_per_prompt is {rows}, but no prompt had more than '
        f'{self._max_samples} samples; set it to {self._max_samples} and '
        'increase prompts for more speed'
      )
    logging.info('%s: %s%s', name, stats, advice)
