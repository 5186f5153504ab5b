"""Generations of varying length: continuous batching against static batches.

This is the measurement `ragged` of benchmarks/sampler.py. It has two variants:
requests of one sample with log-normal max_tokens, and requests of several
samples that end at stop tokens. A static batch gives the same Engine as many
samples as it has rows, and the next batch starts when all of them have ended.
"""

import dataclasses
import statistics

import numpy as np

from benchmarks.interleaved_timing import Timings, run_interleaved
from benchmarks.sampler_engine import (
  Bench,
  generate,
  make_engine,
  random_prompts,
)
from grm_jax.sampling.engine import Engine
from grm_jax.sampling.request import Request

# Tokens per generation: mean, maximum, and standard deviation of the logarithm.
MEAN_LENGTH, MAX_LENGTH, LOG_STD = 60, 256, 1.0
PROMPT_SIZES = (64, 256)
SLOTS = 16
# A finished row waits half of these steps on average until it is refilled.
DECODE_STEPS_PER_CALL = 8


def measure_ragged(bench: Bench) -> dict:
  """Measures both variants."""
  rng = np.random.default_rng(1)
  count = bench.options.requests
  sizes = rng.integers(PROMPT_SIZES[0], PROMPT_SIZES[1] + 1, count)
  prompts = random_prompts(bench, sizes)
  lengths = lognormal_lengths(rng, count)
  buckets = (128, PROMPT_SIZES[1])
  single = [
    Request(f'{i}', prompt, max_tokens=int(lengths[i]))
    for i, prompt in enumerate(prompts)
  ]
  batches = [single[i : i + SLOTS] for i in range(0, count, SLOTS)]
  engine = make_engine(
    bench,
    SLOTS,
    1,
    MAX_LENGTH,
    buckets,
    decode_steps_per_call=DECODE_STEPS_PER_CALL,
  )
  title = f'{count} requests of 1 sample, P={SLOTS} R=1, ragged max_tokens'
  result = {'single': compare_batching(bench, title, engine, single, batches)}
  # Samples of one request share max_tokens. Here stop tokens end them: one
  # token id in MEAN_LENGTH is a stop token.
  vocab_size, side = bench.model.config.vocab_size, int(SLOTS**0.5)
  stop_ids = 4 + rng.choice(
    vocab_size - 4, vocab_size // MEAN_LENGTH, replace=False
  )
  engine = make_engine(
    bench,
    side,
    side,
    MAX_LENGTH,
    buckets,
    stop_ids.tolist(),
    decode_steps_per_call=DECODE_STEPS_PER_CALL,
  )
  requests, batches = group_requests(prompts[: count // SLOTS], side)
  title = (
    f'{len(requests)} requests of {SLOTS} samples, P={side} R={side}, stops'
  )
  result['groups'] = compare_batching(bench, title, engine, requests, batches)
  return result


def lognormal_lengths(rng: np.random.Generator, count: int) -> np.ndarray:
  """Samples log-normal lengths up to MAX_LENGTH with mean MEAN_LENGTH."""
  samples = rng.lognormal(0.0, LOG_STD, count)
  low, high = 0.0, 10.0 * MAX_LENGTH  # bisection of the scale
  for _ in range(60):
    middle = (low + high) / 2
    lengths = np.clip(np.rint(samples * middle), 1, MAX_LENGTH).astype(int)
    low, high = (
      (middle, high) if lengths.mean() < MEAN_LENGTH else (low, middle)
    )
  return lengths


def group_requests(
  prompts: list[list[int]], side: int
) -> tuple[list[Request], list[list[Request]]]:
  """Requests SLOTS samples per prompt, at once and in static batches.

  A static batch has `side` prompts with `side` samples each. It recomputes its
  prompts for every wave of samples, which affects the seconds but not the
  counts of steps and the occupancy.

  Returns:
    All requests, and the static batches of requests.
  """
  requests = [
    Request(f'{i}', prompt, num_samples=SLOTS)
    for i, prompt in enumerate(prompts)
  ]
  batches = [
    [
      dataclasses.replace(request, id=f'{request.id} {wave}', num_samples=side)
      for request in requests[first : first + side]
    ]
    for first in range(0, len(requests), side)
    for wave in range(SLOTS // side)
  ]
  return requests, batches


def compare_batching(
  bench: Bench,
  title: str,
  engine: Engine,
  requests: list[Request],
  batches: list[list[Request]],
) -> dict:
  """Times all requests at once against static batches in sequence."""
  generate(engine, bench.weights, batches[0])

  def make_run(calls):
    def run(seed):
      before = engine.stats
      for call in calls:
        generate(
          engine,
          bench.weights,
          [dataclasses.replace(r, seed=seed) for r in call],
        )
      return {
        name: getattr(engine.stats, name) - getattr(before, name)
        for name in ('tokens', 'row_steps', 'steps', 'generations')
      }

    return run

  runs = {
    'continuous': make_run([requests]),
    'static batches': make_run(batches),
  }
  timings = run_interleaved(
    runs, bench.options.ragged_repeats, 'ragged', warmup_rounds=0
  )
  result = {name: make_row(x) for name, x in timings.items()}
  static_rate = result['static batches']['tokens_per_second']
  print(f'\n{title}')
  head = ('seconds', 'tokens', 'tokens/s', 'ratio', 'steps', 'busy', 'mean')
  print(f'{"":14}' + ''.join(f'{x:>9}' for x in head))
  for name, row in result.items():
    print(
      f'{name:14}{statistics.median(row["seconds"]):9.1f}{row["tokens"]:9}'
      f'{row["tokens_per_second"]:9.1f}'
      f'{row["tokens_per_second"] / static_rate:8.2f}x'
      f'{row["steps"]:9}{row["occupancy"]:9.1%}{row["mean_tokens"]:9.1f}'
    )
  return result


def make_row(timings: Timings) -> dict:
  """Returns the median rate and the counts of the last round."""
  rates = [
    counts['tokens'] / seconds
    for counts, seconds in zip(timings.results, timings.seconds, strict=True)
  ]
  last = timings.results[-1]
  return {
    'seconds': timings.seconds,
    'tokens_per_second': statistics.median(rates),
    'tokens': last['tokens'],
    'steps': last['steps'],
    'occupancy': last['tokens'] / last['row_steps'],
    'mean_tokens': last['tokens'] / last['generations'],
  }
