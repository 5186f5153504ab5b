r"""Sampling side by side with other samplers, and against the machine.

  python -m benchmarks.sampler --json=sampler.json
  python -m benchmarks.sampler --only=versus_one --repeats=5

One small Gemma-2 with random weights, in float32 on the CPU. `--only` picks:

  versus, versus_long, versus_one, versus_many
            tokens/s beside google-tunix (the prompt given R times) and
            transformers (num_return_sequences=R), those that are installed,
            on the same weights; greedy tokens are compared first.
  machine   tokens/s against what this machine's own product and memory rates
            would allow, weights and caches read once a step.
  growth    seconds for 1, 2, 4, ... generations of one prompt.
  memory    bytes of the caches beside those of a repeated prompt.
  uneven    generations of uneven lengths: rows given to the next sample as
            they end, beside fixed batches that wait for their longest.

Seconds are whole calls, prefill included; everything is compiled and called
once before. Contenders take turns, so that a busy machine is busy for all;
medians are printed, ratios of medians, and the least and the greatest ratio of
a round. The column `cores` is processor seconds a second: far below the number
of cores, something else had them, or the contender did not use them.
google-tunix and transformers are left out where they are not installed;
requirements-peers.txt tells how to.
"""

import argparse
import dataclasses
import functools
import importlib.util
import sys

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness, sampler_baselines
from benchmarks.interleaved_timing import ratio, turns
from benchmarks.sampler_engine import (
  Bench,
  cache_bytes,
  engine_run,
  make_bench,
  make_engine,
  ours,
  random_prompts,
)
from benchmarks.sampler_ragged import uneven
from benchmarks.sampler_roofline import against_machine
from benchmarks.workload import Case
from grm_jax.model.config import ModelConfig

SIZE = ModelConfig(
  num_layers=8,
  width=512,
  mlp_width=2048,
  num_heads=8,
  num_kv_heads=4,
  head_dim=64,
  query_pre_attn_scalar=64,
  vocab_size=32768,
  window=256,
)
_SIZE_FLAGS = (
  'num_layers',
  'width',
  'mlp_width',
  'num_heads',
  'num_kv_heads',
  'head_dim',
  'vocab_size',
  'window',
)
OURS = 'grm_jax'


def versus(bench: Bench, case: Case) -> dict:
  """One table of contenders."""
  agree = greedy_agreement(bench)
  prompts = random_prompts(bench, [case.prompt_size] * case.prompts)
  runs = {
    name: make(case, prompts, 1.0) for name, make in contenders(bench).items()
  }
  found = turns(runs, bench.options.repeats, str(case))
  shape = (case.prompts, case.rows, case.new_tokens)
  for name, timed in found.items():
    shapes = {x.shape for x in timed.results}
    if shapes != {shape}:
      raise RuntimeError(f'{name} made tokens {shapes}, asked for {shape}')
  mine = found[OURS]
  print(f'\n{case}: whole calls, {bench.options.repeats} rounds in turn')
  print(
    f'{"":24} {"seconds":>8} {"tokens/s":>9} {"ours is":>18} {"cores":>6} '
    f'{"greedy":>7}'
  )
  for name, timed in found.items():
    print(
      f'{name:24} {timed.median:8.2f} {case.drawn / timed.median:9.1f} '
      f'{ratio(timed, mine)!s:>18} {timed.cores:6.2f} {agree[name]:>7}'
    )
  return {
    'case': dataclasses.asdict(case),
    'seconds': {name: x.seconds for name, x in found.items()},
    'cpu_seconds': {name: x.cpu_seconds for name, x in found.items()},
    'tokens_per_second': {k: case.drawn / x.median for k, x in found.items()},
    'times_ours': {
      name: dataclasses.asdict(ratio(timed, mine))
      for name, timed in found.items()
    },
    'greedy_tokens_as_ours': agree,
  }


@functools.cache
def contenders(bench: Bench) -> dict[str, sampler_baselines.Contender]:
  """Ours and the installed peers."""
  peers = sampler_baselines.peers(bench.model, bench.params)
  return {OURS: ours(bench), **peers}


@functools.cache
def greedy_agreement(bench: Bench) -> dict[str, str]:
  """How many greedy tokens are as ours, 'n/m'; ties may part them."""
  case = Case(4, 1, bench.options.prompt_size, 8)
  prompts = random_prompts(bench, [case.prompt_size] * case.prompts)
  made = {
    name: make(case, prompts, 0.0)(0)
    for name, make in contenders(bench).items()
  }
  return {
    name: f'{np.sum(tokens == made[OURS])}/{tokens.size}'
    for name, tokens in made.items()
  }


def growth(bench: Bench) -> dict:
  """Seconds for 1, 2, 4, ... generations of one prompt."""
  options = bench.options
  prompts = random_prompts(bench, [options.prompt_size])
  runs, cases, engines = {}, {}, {}
  for power in range(options.most_rows.bit_length()):
    case = Case(1, 2**power, options.prompt_size, options.new_tokens)
    name = str(case.rows)
    engines[name] = make_engine(
      bench, 1, case.rows, case.new_tokens, (case.prompt_size,)
    )
    runs[name], cases[name] = (
      engine_run(engines[name], bench.weights, case, prompts),
      case,
    )
  found = turns(runs, options.repeats, 'growth')
  print(f'\nP=1 S={options.prompt_size} T={options.new_tokens}, R grows')
  print(
    f'{"R":>4} {"seconds":>8} {"of R=1":>7} {"tokens/s":>9} {"cache MB":>9}'
  )
  rows, first = [], found['1'].median
  for name, timed in found.items():
    row = {
      'rows': cases[name].rows,
      'seconds': timed.seconds,
      'times_one': timed.median / first,
      'tokens_per_second': cases[name].drawn / timed.median,
      'cache_bytes': cache_bytes(engines[name]),
    }
    rows.append(row)
    print(
      f'{name:>4} {timed.median:8.2f} {row["times_one"]:7.2f} '
      f'{row["tokens_per_second"]:9.1f} {row["cache_bytes"] / 1e6:9.1f}'
    )
  return {'rows': rows}


def memory(bench: Bench) -> dict:
  """Bytes of the arrays of caches, prompts shared and repeated."""
  options = bench.options
  case = Case(1, 2 * options.rows, options.long_prompt_size, 256)
  engine = make_engine(
    bench, 1, case.rows, case.new_tokens, (case.prompt_size,)
  )
  prompts = random_prompts(bench, [case.prompt_size])
  one = dataclasses.replace(case, new_tokens=1)
  engine_run(engine, bench.weights, one, prompts)(0)
  shared = cache_bytes(engine)
  repeated, how = repeated_bytes(bench, case)
  print(f'\n{case}: caches {shared / 1e6:.1f} MB; a repeated prompt as {how}')
  print(f'needs {repeated / 1e6:.1f} MB, so ours is {shared / repeated:.1%}')
  return {
    'case': dataclasses.asdict(case),
    'bytes': shared,
    'repeated_bytes': repeated,
    'repeated_counted': how,
    'share': shared / repeated,
  }


def repeated_bytes(bench: Bench, case: Case) -> tuple[int, str]:
  """Bytes of S + T places on every layer for every row, and who says so."""
  rows, places = case.rows * case.prompts, case.prompt_size + case.new_tokens
  if importlib.util.find_spec('tunix'):
    network = sampler_baselines.tunix_model(bench.model, bench.params)
    cache = network.init_cache(rows, places, jnp.float32)
    made = [x[name] for x in cache.values() for name in ('k', 'v')]
    return sum(x.nbytes for x in made), 'google-tunix makes it'
  size = bench.model.config
  one = size.num_layers * size.num_kv_heads * size.head_dim
  return rows * places * 2 * 4 * one, 'arithmetic has it'


def measurements(options: argparse.Namespace) -> dict:
  """Name -> function of a Bench."""
  r, s, t = options.rows, options.prompt_size, options.new_tokens
  side = int(r**0.5)
  cases = {
    'versus': Case(1, r, s, t),
    'versus_long': Case(1, r, options.long_prompt_size, t),
    'versus_one': Case(1, 1, s, t),
    'versus_many': Case(side, side, s, t),
  }
  return {
    **{
      name: lambda bench, case=case: versus(bench, case)
      for name, case in cases.items()
    },
    'machine': against_machine,
    'growth': growth,
    'memory': memory,
    'uneven': uneven,
  }


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add_size_flags(parser)
  parser.add_argument('--rows', type=int, default=16)
  parser.add_argument('--most-rows', type=int, default=64, help='of growth')
  parser.add_argument('--prompt-size', type=int, default=512)
  parser.add_argument('--long-prompt-size', type=int, default=2048)
  parser.add_argument('--new-tokens', type=int, default=128)
  parser.add_argument('--requests', type=int, default=256, help='of uneven')
  parser.add_argument('--chunk', type=int, default=32, help='of the engine')
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--uneven-repeats', type=int, default=1)
  parser.add_argument('--only', default='', help='names, commas between')
  parser.add_argument('--json', help='also write the result there')
  return parser.parse_args()


def add_size_flags(parser: argparse.ArgumentParser) -> None:
  """What `size_of` reads."""
  for name in _SIZE_FLAGS:
    flag = '--' + name.replace('_', '-')
    parser.add_argument(flag, type=int, default=getattr(SIZE, name))


def size_of(options: argparse.Namespace) -> ModelConfig:
  """The model's size; queries are scaled by H, the only way tunix knows."""
  sizes = {name: getattr(options, name) for name in _SIZE_FLAGS}
  return ModelConfig(query_pre_attn_scalar=options.head_dim, **sizes)


def main() -> None:
  options = parse()
  sys.stdout.reconfigure(line_buffering=True)
  jax.config.update('jax_platforms', 'cpu')
  known = measurements(options)
  names = harness.chosen(options.only, known)
  bench = make_bench(size_of(options), options)
  harness.report(options, names, lambda name: known[name](bench))


if __name__ == '__main__':
  main()
