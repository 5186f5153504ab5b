"""From prompts to generations: batches, length buckets, waves of samples.

Prompts are padded to the next of a few lengths (buckets), P at a time; each
batch is prefilled once and decoded R rows at a time, in as many waves as it
takes to draw all samples. So three programs are compiled for each bucket, and
no more, whatever the settings: `warm_up` compiles them ahead.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from grm_jax.model.batch import Batch
from grm_jax.model.gemma import Gemma
from grm_jax.sampling import decode
from grm_jax.sampling.choose import settings

FINISH = {decode.STOPPED: 'stop', decode.FULL: 'length'}


@dataclasses.dataclass(frozen=True)
class Generation:
  """One sample of one prompt.

  Attributes:
    request: the number of its prompt's request.
    sample: which sample of the request, from 0.
    tokens: int32 [n], the stop token included.
    finish: 'stop' (a stop token) or 'length'.
    drawn_logps: float32 [n], under the distribution really drawn from.
    model_logps: float32 [n], under the model at temperature 1, untruncated.
  """

  request: int
  sample: int
  tokens: np.ndarray
  finish: str
  drawn_logps: np.ndarray
  model_logps: np.ndarray


class Sampler:
  """Compiled programs and weights for generating; see `generate`."""

  def __init__(
    self,
    model: Gemma,
    params: dict,
    *,
    prompts: int,
    rows: int,
    size: int,
    buckets: Sequence[int],
    stop_ids: Sequence[int],
    forbidden: Sequence[int] = (),
  ):
    """Prepares programs; nothing is compiled before the first use.

    Args:
      model: the network.
      params: its parameters, in the dtype to decode with.
      prompts: P, prompts computed at once.
      rows: R, samples drawn at once of each.
      size: T, the most tokens of a generation.
      buckets: prompt lengths to pad to, S is the smallest that fits.
      stop_ids: ids that end a generation.
      forbidden: ids that are never drawn.

    Raises:
      ValueError: a number below 1, or an id that the model does not have.
    """
    for name, value in (
      ('prompts', prompts),
      ('rows', rows),
      ('size', size),
      ('the smallest bucket', min(buckets, default=0)),
    ):
      if value < 1:
        raise ValueError(f'{name} is {value}; it must be at least 1')
    for i in (*stop_ids, *forbidden):
      if not 0 <= i < model.size.vocab_size:
        raise ValueError(f'id {i} is not below {model.size.vocab_size}')
    self.model, self.params = model, params
    self.layers = jax.jit(decode.unstack)(params)
    self.prompts, self.rows, self.size = prompts, rows, size
    self.buckets = tuple(sorted(set(buckets)))
    self.stop_ids = jnp.asarray(stop_ids, jnp.int32)
    never = np.zeros(model.size.table_rows, bool)
    never[list(forbidden)] = True
    self.forbidden = jnp.asarray(never)
    self._functions = {
      'prefill': functools.partial(decode.prefill, model),
      'start': lambda ready: decode.start(ready, rows, size),
      'decode': functools.partial(decode.decode, model),
    }
    self._compiled = {}

  def programs(self) -> int:
    """How many programs are compiled so far; 3 for each bucket in the end."""
    return len(self._compiled)

  def _call(self, name, bucket, *arguments):
    """Runs a program, compiling it the first time.

    A compiled program refuses other shapes, so nothing is compiled unseen.
    """
    if (name, bucket) not in self._compiled:
      donated = (4,) if name == 'decode' else ()
      function = jax.jit(self._functions[name], donate_argnums=donated)
      lowered = function.lower(*arguments)
      self._compiled[name, bucket] = lowered.compile()
    return self._compiled[name, bucket](*arguments)

  def warm_up(self) -> int:
    """Compiles everything ahead; returns the number of programs."""
    for bucket in self.buckets:
      list(self.generate([[0] * bucket], 1, max_tokens=1))
    return self.programs()

  def bucket(self, length: int) -> int:
    """The padded length of a prompt; ValueError if none is long enough."""
    for bucket in self.buckets:
      if length <= bucket:
        return bucket
    raise ValueError(
      f'a prompt has {length} tokens, the longest bucket {self.buckets[-1]}'
    )

  def generate(
    self,
    prompts: Sequence[Sequence[int]],
    num_samples: int,
    *,
    max_tokens: int | None = None,
    seed: int = 0,
    requests: Sequence[int] | None = None,
    **how: float,
  ) -> Iterator[Generation]:
    """Draws `num_samples` generations of every prompt.

    Args:
      prompts: token ids, each with its bos.
      num_samples: of each prompt; more than R run in waves.
      max_tokens: at most T, which is the default.
      seed: with a request's number and a sample's, all that a draw depends on.
      requests: numbers of the prompts, default 0, 1, ...
      **how: temperature, top_k, top_p, min_p; see choose.settings.

    Returns:
      Generations as their batch is done, shortest bucket first.

    Raises:
      ValueError: before any work, for an empty or too long prompt, too many
        tokens, or a setting outside its range.
    """
    requests = range(len(prompts)) if requests is None else requests
    max_tokens = self.size if max_tokens is None else max_tokens
    if not 1 <= max_tokens <= self.size:
      raise ValueError(f'max_tokens is {max_tokens}, must be 1 to {self.size}')
    if len(requests) != len(prompts):
      raise ValueError(f'{len(prompts)} prompts, {len(requests)} requests')
    if not all(len(prompt) for prompt in prompts):
      raise ValueError('a prompt has no tokens; it must begin with bos')
    drawn = settings((self.prompts, self.rows), **how)
    by_bucket = {bucket: [] for bucket in self.buckets}
    for item in zip(requests, prompts, strict=True):
      by_bucket[self.bucket(len(item[1]))].append(item)
    return self._run(by_bucket, num_samples, max_tokens, seed, drawn)

  def _run(self, by_bucket, num_samples, max_tokens, seed, drawn):
    for bucket, items in by_bucket.items():
      for first in range(0, len(items), self.prompts):
        some = items[first : first + self.prompts]
        batch = self._pad(some, bucket)
        ready = self._call('prefill', bucket, self.params, batch)
        for sample in range(0, num_samples, self.rows):
          rows = self._rows(some, sample, num_samples, max_tokens, seed, drawn)
          yield from self._wave(some, bucket, ready, rows)

  def _pad(self, items, bucket):
    tokens = np.zeros((self.prompts, bucket), np.int32)
    lengths = np.ones(self.prompts, np.int32)
    for i, (_, prompt) in enumerate(items):
      tokens[i, : len(prompt)] = prompt
      lengths[i] = len(prompt)
    return Batch(tokens, lengths)

  def _rows(self, items, sample, num_samples, max_tokens, seed, drawn):
    """Who the rows of a wave are; those beyond what is asked draw nothing."""
    shape = (self.prompts, self.rows)
    samples = np.broadcast_to(sample + np.arange(self.rows), shape)
    requests = np.zeros(shape, np.int32)
    requests[: len(items)] = np.array([[r] for r, _ in items])
    asked = samples < num_samples
    asked &= (np.arange(self.prompts) < len(items))[:, None]
    return decode.Rows(
      settings=drawn,
      max_tokens=np.where(asked, max_tokens, 0).astype(np.int32),
      requests=requests,
      samples=samples.astype(np.int32),
      seed=np.int32(seed),
    )

  def _wave(self, items, bucket, ready, rows):
    state = self._call(
      'decode',
      bucket,
      self.params,
      self.layers,
      ready,
      rows,
      self._call('start', bucket, ready),
      self.stop_ids,
      self.forbidden,
    )
    names = ('tokens', 'drawn_logps', 'model_logps', 'lengths', 'status')
    out = jax.device_get({name: getattr(state, name) for name in names})
    for i, r in np.argwhere(rows.max_tokens[: len(items)] > 0):
      n = out['lengths'][i, r]
      yield Generation(
        request=int(rows.requests[i, r]),
        sample=int(rows.samples[i, r]),
        tokens=out['tokens'][i, r, :n],
        finish=FINISH[int(out['status'][i, r])],
        drawn_logps=out['drawn_logps'][i, r, :n],
        model_logps=out['model_logps'][i, r, :n],
      )
