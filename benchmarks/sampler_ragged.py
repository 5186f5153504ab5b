"""Generations of uneven lengths: refilled rows beside fixed batches.

See benchmarks/sampler.py, measurement `uneven`. Two variants: requests of one
sample whose max_tokens are log-normal, and requests of several samples that
the model ends itself. The fixed batches are the same Engine given as many
samples as it has rows, and the next ones when all of those are done.
"""

import dataclasses
import statistics

import numpy as np

from benchmarks.interleaved_timing import Timed, turns
from benchmarks.sampler_engine import (
  Bench,
  generate,
  make_engine,
  random_prompts,
)
from grm_jax.sampling.engine import Engine
from grm_jax.sampling.request import Request

# Uneven lengths: the mean and the most of a generation's tokens, and the
# spread of their logarithm.
MEAN, MOST, SIGMA = 60, 256, 1.0
PROMPT_SIZES = (64, 256)
SLOTS = 16
# Steps between two refills; a row that ends waits for half of them.
CHUNK = 8


def uneven(bench: Bench) -> dict:
  """Rows refilled as they end, beside fixed batches, in two variants."""
  rng = np.random.default_rng(1)
  count = bench.options.requests
  sizes = rng.integers(PROMPT_SIZES[0], PROMPT_SIZES[1] + 1, count)
  prompts = random_prompts(bench, sizes)
  lengths = uneven_lengths(rng, count)
  buckets = (128, PROMPT_SIZES[1])
  single = [
    Request(f'{i}', prompt, max_tokens=int(lengths[i]))
    for i, prompt in enumerate(prompts)
  ]
  batches = [single[i : i + SLOTS] for i in range(0, count, SLOTS)]
  engine = make_engine(bench, SLOTS, 1, MOST, buckets, chunk=CHUNK)
  title = f'{count} requests of 1 sample, P={SLOTS} R=1, uneven max_tokens'
  result = {'single': refilled(bench, title, engine, single, batches)}
  # Samples of one request share max_tokens, so here the model stops itself:
  # about one token in MEAN is a stop.
  vocab_size, side = bench.model.config.vocab_size, int(SLOTS**0.5)
  stop_ids = 4 + rng.choice(vocab_size - 4, vocab_size // MEAN, replace=False)
  engine = make_engine(
    bench, side, side, MOST, buckets, stop_ids.tolist(), chunk=CHUNK
  )
  several, batches = grouped(prompts[: count // SLOTS], side)
  title = (
    f'{len(several)} requests of {SLOTS} samples, P={side} R={side}, stops'
  )
  result['groups'] = refilled(bench, title, engine, several, batches)
  return result


def uneven_lengths(rng: np.random.Generator, count: int) -> np.ndarray:
  """Log-normal lengths of 1 to MOST, scaled to a mean of MEAN."""
  drawn = rng.lognormal(0.0, SIGMA, count)
  low, high = 0.0, 10.0 * MOST
  for _ in range(60):
    middle = (low + high) / 2
    lengths = np.clip(np.rint(drawn * middle), 1, MOST).astype(int)
    low, high = (middle, high) if lengths.mean() < MEAN else (low, middle)
  return lengths


def grouped(
  prompts: list[list[int]], side: int
) -> tuple[list[Request], list[list[Request]]]:
  """SLOTS samples of each prompt, and the same as batches of side x side.

  A fixed batch computes its prompts again for every wave of samples, which
  the steps and the occupancy do not show, and the seconds do.
  """
  several = [
    Request(f'{i}', prompt, num_samples=SLOTS)
    for i, prompt in enumerate(prompts)
  ]
  batches = [
    [
      dataclasses.replace(request, id=f'{request.id} {wave}', num_samples=side)
      for request in several[first : first + side]
    ]
    for first in range(0, len(several), side)
    for wave in range(SLOTS // side)
  ]
  return several, batches


def refilled(
  bench: Bench,
  title: str,
  engine: Engine,
  requests: list[Request],
  batches: list[list[Request]],
) -> dict:
  """Times all requests at once against one batch after the other."""
  generate(engine, bench.weights, batches[0])

  def count(calls):
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

  runs = {'engine': count([requests]), 'fixed batches': count(batches)}
  found = turns(runs, bench.options.uneven_repeats, 'uneven', uncounted=0)
  result = {name: uneven_row(timed) for name, timed in found.items()}
  slow = result['fixed batches']['tokens_per_second']
  print(f'\n{title}')
  head = ('seconds', 'tokens', 'tokens/s', 'ratio', 'steps', 'busy', 'mean')
  print(f'{"":14}' + ''.join(f'{x:>9}' for x in head))
  for name, row in result.items():
    print(
      f'{name:14}{statistics.median(row["seconds"]):9.1f}{row["tokens"]:9}'
      f'{row["tokens_per_second"]:9.1f}{row["tokens_per_second"] / slow:8.2f}x'
      f'{row["steps"]:9}{row["occupancy"]:9.1%}{row["mean_tokens"]:9.1f}'
    )
  return result


def uneven_row(timed: Timed) -> dict:
  """The medians and the last round's counts."""
  rates = [
    counts['tokens'] / seconds
    for counts, seconds in zip(timed.results, timed.seconds, strict=True)
  ]
  last = timed.results[-1]
  return {
    'seconds': timed.seconds,
    'tokens_per_second': statistics.median(rates),
    'tokens': last['tokens'],
    'steps': last['steps'],
    'occupancy': last['tokens'] / last['row_steps'],
    'mean_tokens': last['tokens'] / last['generations'],
  }
