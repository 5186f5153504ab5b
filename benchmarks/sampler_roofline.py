"""Sampler throughput against the roofline of this machine.

This is the measurement `machine` of benchmarks/sampler.py.
"""

import dataclasses
import functools
import statistics

import jax

from benchmarks import hardware
from benchmarks.interleaved_timing import Timings, run_interleaved
from benchmarks.sampler_engine import (
  Bench,
  cache_bytes,
  engine_run,
  make_engine,
  random_prompts,
)
from benchmarks.workload import Workload
from grm_jax.model.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Work:
  """Minimum arithmetic and memory traffic: FLOPs and bytes read."""

  flops: float
  bytes: float

  def seconds(self, rates: hardware.Rates) -> tuple[float, float]:
    """Returns lower bounds with full overlap and without any overlap."""
    times = self.flops / rates.flops, self.bytes / rates.bytes
    return max(times), sum(times)


def step_work(bench: Bench, workload: Workload, cached_bytes: int) -> Work:
  """Returns the work of one decode step halfway through the generations.

  The step reads every weight and the whole cache arrays once.
  """
  leaves = jax.tree.leaves(bench.params)
  rows = workload.prompts * workload.generations_per_prompt
  keys = num_visible_keys(
    bench.model.config, workload.prompt_size + workload.new_tokens // 2
  )
  flops = 2 * sum(x.size for x in leaves) + attention_flops(bench, keys)
  return Work(rows * flops, sum(x.nbytes for x in leaves) + cached_bytes)


def prefill_work(bench: Bench, workload: Workload) -> Work:
  """Returns the work of the prefill; the head sees one token per prompt."""
  leaves = jax.tree.leaves(bench.params)
  layers = sum(x.size for x in jax.tree.leaves(bench.params['pairs']))
  head = sum(x.size for x in leaves) - layers
  s = workload.prompt_size
  keys = sum(num_visible_keys(bench.model.config, i + 1) for i in range(s))
  flops = 2 * (layers * s + head) + attention_flops(bench, keys)
  return Work(workload.prompts * flops, sum(x.nbytes for x in leaves))


def num_visible_keys(config: ModelConfig, num_positions: int) -> int:
  """Returns the keys that the last token attends to, summed over layers."""
  return config.num_pairs * int(
    num_positions + config.visible_keys(num_positions)
  )


def attention_flops(bench: Bench, keys: int) -> int:
  """Returns the FLOPs of the products with keys and values."""
  return 4 * bench.model.config.num_heads * bench.model.config.head_dim * keys


def measure_roofline(bench: Bench) -> dict:
  """Compares the Engine with the bound of this machine's peak rates."""
  options = bench.options
  workload = Workload(1, options.rows, options.prompt_size, options.new_tokens)
  single_token = dataclasses.replace(workload, new_tokens=1)
  prompts = random_prompts(bench, [workload.prompt_size])
  engine = make_engine(
    bench,
    1,
    workload.generations_per_prompt,
    workload.new_tokens,
    (workload.prompt_size,),
  )
  weight_bytes = sum(x.nbytes for x in jax.tree.leaves(bench.params))
  # The peak rates fluctuate, so they are measured in the same rounds.
  runs = {
    'rates': lambda _: hardware.measure(weight_bytes),
    'whole': engine_run(engine, bench.weights, workload, prompts),
    'first': engine_run(engine, bench.weights, single_token, prompts),
  }
  timings = run_interleaved(runs, options.repeats, 'machine')
  rates = functools.reduce(hardware.maximum, timings['rates'].results)
  step = step_work(bench, workload, cache_bytes(engine))
  result = {
    'case': dataclasses.asdict(workload),
    'rates': dataclasses.asdict(rates),
    'step': dataclasses.asdict(step),
    'step_products_seconds': step.flops / rates.flops,
    'step_reading_seconds': step.bytes / rates.bytes,
    'whole_seconds': timings['whole'].seconds,
    'first_seconds': timings['first'].seconds,
    'parts': compare_parts(
      workload,
      timings,
      step.seconds(rates),
      prefill_work(bench, workload).seconds(rates),
    ),
  }
  print_roofline(workload, result)
  return result


def compare_parts(
  workload: Workload,
  timings: dict[str, Timings],
  step: tuple[float, float],
  prefill: tuple[float, float],
) -> dict:
  """Compares decoding, the whole call, and the prefill with their bounds.

  A call for one token is the prefill and one step. The difference to a whole
  call is therefore the time of the other T - 1 steps.

  Args:
    workload: the measured workload.
    timings: rounds of the 'whole' and the 'first' token call.
    step: lower bounds of a decode step in seconds, see Work.seconds.
    prefill: lower bounds of the prefill in seconds.
  """
  steps = workload.new_tokens - 1

  def seconds(aggregate):
    whole = aggregate(timings['whole'].seconds)
    first = aggregate(timings['first'].seconds)
    return {'decode': whole - first, 'whole': whole, 'first token': first}

  median, best = seconds(statistics.median), seconds(min)
  bounds = {
    'decode': [steps * x for x in step],
    'whole': [x + steps * y for x, y in zip(prefill, step, strict=True)],
    'first token': prefill,
  }
  return {
    name: {
      'seconds': median[name],
      'best_seconds': best[name],
      'bound_seconds': bound,
      'sum_seconds': added,
      'share_of_bound': bound / median[name],
      'share_of_sum': added / median[name],
      'best_share_of_bound': bound / best[name],
    }
    for name, (bound, added) in bounds.items()
  }


def print_roofline(workload: Workload, result: dict) -> None:
  print('\nRates of this machine; the bound uses the maximum of each kind')
  for name, rate in result['rates']['programs'].items():
    print(f'  {name:32} {rate / 1e9:8.1f} {_unit(name)}')
  step = result['step']
  print(
    f'{workload}: a decode step computes {step["flops"] / 1e9:.2f} GFLOP in at '
    f'least {1e3 * result["step_products_seconds"]:.2f} ms\nand reads '
    f'{step["bytes"] / 1e6:.0f} MB in at least '
    f'{1e3 * result["step_reading_seconds"]:.2f} ms. The bound assumes full '
    'overlap;\nthe sum assumes none.'
  )
  tokens = {
    'decode': workload.num_generated_tokens - workload.generations_per_prompt,
    'whole': workload.num_generated_tokens,
    'first token': workload.generations_per_prompt,
  }
  head = ('seconds', 'tokens/s', 'bound', 'of bound', 'of sum', 'best round')
  print(f'{"":12}' + ''.join(f'{x:>11}' for x in head))
  for name, x in result['parts'].items():
    print(
      f'{name:12}{x["seconds"]:11.3f}{tokens[name] / x["seconds"]:11.1f}'
      f'{tokens[name] / x["bound_seconds"]:11.1f}{x["share_of_bound"]:11.1%}'
      f'{x["share_of_sum"]:11.1%}{x["best_share_of_bound"]:11.1%}'
    )


def _unit(name: str) -> str:
  return 'GFLOP/s' if name.startswith('product') else 'GB/s'
