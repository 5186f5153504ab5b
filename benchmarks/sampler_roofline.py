"""What this machine's own rates would allow a sampler, and what ours makes.

See benchmarks/sampler.py, measurement `machine`.
"""

import dataclasses
import functools
import statistics

import jax

from benchmarks import hardware
from benchmarks.interleaved_timing import Timed, turns
from benchmarks.sampler_engine import (
  Bench,
  cache_bytes,
  engine_run,
  make_engine,
  random_prompts,
)
from benchmarks.workload import Case
from grm_jax.model.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Work:
  """What must be computed and read."""

  flops: float
  bytes: float

  def seconds(self, rates: hardware.Rates) -> tuple[float, float]:
    """At least, where both overlap fully, and where they do not at all."""
    times = self.flops / rates.flops, self.bytes / rates.bytes
    return max(times), sum(times)


def step_work(bench: Bench, case: Case, caches: int) -> Work:
  """One decode step of all rows, in the middle of the generations.

  Every weight is read once and so is all of the caches' arrays.
  """
  leaves = jax.tree.leaves(bench.params)
  rows = case.prompts * case.rows
  keys = visible(bench.model.config, case.prompt_size + case.new_tokens // 2)
  flops = 2 * sum(x.size for x in leaves) + attention_flops(bench, keys)
  return Work(rows * flops, sum(x.nbytes for x in leaves) + caches)


def prefill_work(bench: Bench, case: Case) -> Work:
  """All prompt tokens through the layers, one of each prompt to the head."""
  leaves = jax.tree.leaves(bench.params)
  layers = sum(x.size for x in jax.tree.leaves(bench.params['pairs']))
  head = sum(x.size for x in leaves) - layers
  s = case.prompt_size
  keys = sum(visible(bench.model.config, place + 1) for place in range(s))
  flops = 2 * (layers * s + head) + attention_flops(bench, keys)
  return Work(case.prompts * flops, sum(x.nbytes for x in leaves))


def visible(size: ModelConfig, places: int) -> int:
  """Keys that a token sees, itself included, summed over layers."""
  return size.num_pairs * int(places + size.visible_keys(places))


def attention_flops(bench: Bench, keys: int) -> int:
  """Products with the keys and with the values."""
  return 4 * bench.model.config.num_heads * bench.model.config.head_dim * keys


def against_machine(bench: Bench) -> dict:
  """tokens/s beside the bound of this machine's own rates."""
  options = bench.options
  case = Case(1, options.rows, options.prompt_size, options.new_tokens)
  one = dataclasses.replace(case, new_tokens=1)
  prompts = random_prompts(bench, [case.prompt_size])
  engine = make_engine(
    bench, 1, case.rows, case.new_tokens, (case.prompt_size,)
  )
  weights = sum(x.nbytes for x in jax.tree.leaves(bench.params))
  # Rates take turns with the rest: another moment may have other ones.
  runs = {
    'rates': lambda _: hardware.measure(weights),
    'whole': engine_run(engine, bench.weights, case, prompts),
    'first': engine_run(engine, bench.weights, one, prompts),
  }
  found = turns(runs, options.repeats, 'machine')
  rates = functools.reduce(hardware.better, found['rates'].results)
  step = step_work(bench, case, cache_bytes(engine))
  result = {
    'case': dataclasses.asdict(case),
    'rates': dataclasses.asdict(rates),
    'step': dataclasses.asdict(step),
    'step_products_seconds': step.flops / rates.flops,
    'step_reading_seconds': step.bytes / rates.bytes,
    'whole_seconds': found['whole'].seconds,
    'first_seconds': found['first'].seconds,
    'parts': parts(
      case, found, step.seconds(rates), prefill_work(bench, case).seconds(rates)
    ),
  }
  print_machine(case, result)
  return result


def parts(
  case: Case,
  found: dict[str, Timed],
  step: tuple[float, float],
  start: tuple[float, float],
) -> dict:
  """Decode alone, the whole call, and the prefill with the first token.

  A call of one token is the prefill and one step, so what a whole call takes
  more is the other T - 1 steps.
  """
  steps = case.new_tokens - 1

  def seconds(pick):
    whole, first = pick(found['whole'].seconds), pick(found['first'].seconds)
    return {'decode': whole - first, 'whole': whole, 'first token': first}

  median, best = seconds(statistics.median), seconds(min)
  bounds = {
    'decode': [steps * x for x in step],
    'whole': [x + steps * y for x, y in zip(start, step, strict=True)],
    'first token': start,
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


def print_machine(case: Case, result: dict) -> None:
  print('\nThis machine, of each kind the best counts')
  for name, rate in result['rates']['programs'].items():
    print(f'  {name:32} {rate / 1e9:8.1f} {_unit(name)}')
  step = result['step']
  print(
    f'{case}: a step multiplies {step["flops"] / 1e9:.2f} GFLOP, at least '
    f'{1e3 * result["step_products_seconds"]:.2f} ms,\nand reads '
    f'{step["bytes"] / 1e6:.0f} MB, at least '
    f'{1e3 * result["step_reading_seconds"]:.2f} ms. The bound is the longer '
    'of the two;\nthe sum is one after the other.'
  )
  tokens = {
    'decode': case.drawn - case.rows,
    'whole': case.drawn,
    'first token': case.rows,
  }
  head = ('seconds', 'tokens/s', 'bound', 'of bound', 'of sum', 'best round')
  print(f'{"":12}' + ''.join(f'{x:>11}' for x in head))
  for name, x in result['parts'].items():
    print(
      f'{name:12}{x["seconds"]:11.3f}{tokens[name] / x["seconds"]:11.1f}'
      f'{tokens[name] / x["bound_seconds"]:11.1f}{x["share_of_bound"]:11.1%}'
      f'{x["share_of_sum"]:11.1%}{x["best_share_of_bound"]:11.1%}'
    )


def _unit(name):
  return 'GFLOP/s' if name.startswith('product') else 'GB/s'
