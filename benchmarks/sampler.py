r"""Sampler throughput against other samplers and against the hardware.

  python -m benchmarks.sampler --json=sampler.json
  python -m benchmarks.sampler --only=versus_one --repeats=5

Uses one small Gemma-2 with random weights in float32 on the CPU. --only picks:

  versus, versus_long, versus_one, versus_many
            tokens/s against google-tunix (R copies of the prompt) and
            transformers (num_return_sequences=R) on the same weights; greedy
            tokens are compared first.
  machine   tokens/s against the bound of this machine's matrix-product and
            memory rates, with weights and caches read once per step.
  growth    seconds for 1, 2, 4, ... generations of one prompt.
  memory    bytes of the KV caches against those of a repeated prompt.
  ragged    generations of varying length: continuous batching, which refills
            finished rows, against static batches.

Seconds are for whole calls with prefill, after a warmup call that compiles. The
contenders run round-robin, so that background load affects all of them. The
tables show medians, ratios of medians, and the smallest and largest ratio of a
round. The column `cores` is processor seconds per second; a value far below the
number of cores means that other processes used them or that the contender left
them idle. google-tunix and transformers are skipped if they are not installed;
requirements-peers.txt has the commands.
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
from benchmarks.interleaved_timing import ratio, run_interleaved
from benchmarks.sampler_engine import (
  Bench,
  cache_bytes,
  engine_contender,
  engine_run,
  make_bench,
  make_engine,
  random_prompts,
)
from benchmarks.sampler_ragged import measure_ragged
from benchmarks.sampler_roofline import measure_roofline
from benchmarks.workload import Workload
from grm_jax.model.config import ModelConfig

CONFIG = ModelConfig(
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
_MODEL_FLAGS = (
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


def versus(bench: Bench, workload: Workload) -> dict:
  """Compares all contenders on one workload."""
  agreement = greedy_agreement(bench)
  prompts = random_prompts(bench, [workload.prompt_size] * workload.prompts)
  runs = {
    name: make(workload, prompts, 1.0)
    for name, make in contenders(bench).items()
  }
  timings = run_interleaved(runs, bench.options.repeats, str(workload))
  shape = (
    workload.prompts,
    workload.generations_per_prompt,
    workload.new_tokens,
  )
  for name, x in timings.items():
    shapes = {tokens.shape for tokens in x.results}
    if shapes != {shape}:
      raise RuntimeError(f'{name} returned tokens {shapes} instead of {shape}')
  ratios = {name: ratio(x, timings[OURS]) for name, x in timings.items()}
  print(
    f'\n{workload}: whole calls, {bench.options.repeats} interleaved rounds'
  )
  print(
    f'{"":24} {"seconds":>8} {"tokens/s":>9} {"ratio, spread":>18} '
    f'{"cores":>6} {"greedy":>7}'
  )
  rates = {
    name: workload.num_generated_tokens / x.median
    for name, x in timings.items()
  }
  for name, x in timings.items():
    print(
      f'{name:24} {x.median:8.2f} {rates[name]:9.1f} '
      f'{ratios[name]!s:>18} {x.cores:6.2f} {agreement[name]:>7}'
    )
  return {
    'case': dataclasses.asdict(workload),
    'seconds': {name: x.seconds for name, x in timings.items()},
    'cpu_seconds': {name: x.cpu_seconds for name, x in timings.items()},
    'tokens_per_second': rates,
    'times_ours': {name: dataclasses.asdict(x) for name, x in ratios.items()},
    'greedy_tokens_as_ours': agreement,
  }


@functools.cache
def contenders(bench: Bench) -> dict[str, sampler_baselines.Contender]:
  """Returns grm_jax and the installed baselines."""
  baselines = sampler_baselines.installed(bench.model, bench.params)
  return {OURS: engine_contender(bench), **baselines}


@functools.cache
def greedy_agreement(bench: Bench) -> dict[str, str]:
  """Counts greedy tokens that equal those of grm_jax, as 'n/m'.

  Ties between logits can make correct samplers differ.
  """
  workload = Workload(4, 1, bench.options.prompt_size, 8)
  prompts = random_prompts(bench, [workload.prompt_size] * workload.prompts)
  greedy_tokens = {
    name: make(workload, prompts, 0.0)(0)
    for name, make in contenders(bench).items()
  }
  return {
    name: f'{np.sum(tokens == greedy_tokens[OURS])}/{tokens.size}'
    for name, tokens in greedy_tokens.items()
  }


def growth(bench: Bench) -> dict:
  """Measures 1, 2, 4, ... generations of one prompt."""
  options = bench.options
  prompts = random_prompts(bench, [options.prompt_size])
  runs, workloads, engines = {}, {}, {}
  for power in range(options.max_rows.bit_length()):
    workload = Workload(1, 2**power, options.prompt_size, options.new_tokens)
    name = str(workload.generations_per_prompt)
    engines[name] = make_engine(
      bench,
      1,
      workload.generations_per_prompt,
      workload.new_tokens,
      (workload.prompt_size,),
    )
    runs[name] = engine_run(engines[name], bench.weights, workload, prompts)
    workloads[name] = workload
  timings = run_interleaved(runs, options.repeats, 'growth')
  print(f'\nP=1 S={options.prompt_size} T={options.new_tokens}, growing R')
  print(
    f'{"R":>4} {"seconds":>8} {"vs R=1":>7} {"tokens/s":>9} {"cache MB":>9}'
  )
  rows, single_seconds = [], timings['1'].median
  for name, x in timings.items():
    row = {
      'rows': workloads[name].generations_per_prompt,
      'seconds': x.seconds,
      'times_one': x.median / single_seconds,
      'tokens_per_second': workloads[name].num_generated_tokens / x.median,
      'cache_bytes': cache_bytes(engines[name]),
    }
    rows.append(row)
    print(
      f'{name:>4} {x.median:8.2f} {row["times_one"]:7.2f} '
      f'{row["tokens_per_second"]:9.1f} {row["cache_bytes"] / 1e6:9.1f}'
    )
  return {'rows': rows}


def memory(bench: Bench) -> dict:
  """Compares KV cache sizes with shared and with repeated prompts."""
  options = bench.options
  workload = Workload(1, 2 * options.rows, options.long_prompt_size, 256)
  engine = make_engine(
    bench,
    1,
    workload.generations_per_prompt,
    workload.new_tokens,
    (workload.prompt_size,),
  )
  prompts = random_prompts(bench, [workload.prompt_size])
  single_token = dataclasses.replace(workload, new_tokens=1)
  engine_run(engine, bench.weights, single_token, prompts)(0)
  shared = cache_bytes(engine)
  repeated, source = repeated_bytes(bench, workload)
  print(f'\n{workload}: caches with a shared prompt {shared / 1e6:.1f} MB;')
  print(
    f'with a repeated prompt {repeated / 1e6:.1f} MB ({source}): '
    f'{shared / repeated:.1%}'
  )
  return {
    'case': dataclasses.asdict(workload),
    'bytes': shared,
    'repeated_bytes': repeated,
    'repeated_counted': source,
    'share': shared / repeated,
  }


def repeated_bytes(bench: Bench, workload: Workload) -> tuple[int, str]:
  """Returns the bytes of S + T positions per row and layer, and the source."""
  rows = workload.generations_per_prompt * workload.prompts
  positions = workload.prompt_size + workload.new_tokens
  if importlib.util.find_spec('tunix'):
    network = sampler_baselines.tunix_model(bench.model, bench.params)
    cache = network.init_cache(rows, positions, jnp.float32)
    arrays = [x[name] for x in cache.values() for name in ('k', 'v')]
    return sum(x.nbytes for x in arrays), 'allocated by google-tunix'
  config = bench.model.config
  width = config.num_layers * config.num_kv_heads * config.head_dim
  # Keys and values of 4 bytes each.
  return rows * positions * 2 * 4 * width, 'calculated'


def measurements(options: argparse.Namespace) -> dict:
  """Returns the measurements, functions of a Bench, by name."""
  r, s, t = options.rows, options.prompt_size, options.new_tokens
  side = int(r**0.5)
  workloads = {
    'versus': Workload(1, r, s, t),
    'versus_long': Workload(1, r, options.long_prompt_size, t),
    'versus_one': Workload(1, 1, s, t),
    'versus_many': Workload(side, side, s, t),
  }
  return {
    **{
      name: lambda bench, workload=workload: versus(bench, workload)
      for name, workload in workloads.items()
    },
    'machine': measure_roofline,
    'growth': growth,
    'memory': memory,
    'ragged': measure_ragged,
  }


def parse() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add_model_flags(parser)
  parser.add_argument('--rows', type=int, default=16)
  parser.add_argument('--max-rows', type=int, default=64, help='R of growth')
  parser.add_argument('--prompt-size', type=int, default=512)
  parser.add_argument('--long-prompt-size', type=int, default=2048)
  parser.add_argument('--new-tokens', type=int, default=128)
  parser.add_argument('--requests', type=int, default=256, help='of ragged')
  parser.add_argument('--decode-steps-per-call', type=int, default=32)
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--ragged-repeats', type=int, default=1)
  parser.add_argument('--only', default='', help='comma-separated names')
  parser.add_argument('--json', help='also write the result to this JSON file')
  return parser.parse_args()


def add_model_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags that `make_config` reads."""
  for name in _MODEL_FLAGS:
    flag = '--' + name.replace('_', '-')
    parser.add_argument(flag, type=int, default=getattr(CONFIG, name))


def make_config(options: argparse.Namespace) -> ModelConfig:
  """Makes the config; tunix always scales queries by head_dim."""
  fields = {name: getattr(options, name) for name in _MODEL_FLAGS}
  return ModelConfig(query_pre_attn_scalar=options.head_dim, **fields)


def main() -> None:
  options = parse()
  sys.stdout.reconfigure(line_buffering=True)
  jax.config.update('jax_platforms', 'cpu')
  available = measurements(options)
  names = harness.select(options.only, available)
  bench = make_bench(make_config(options), options)
  harness.run_workloads(options, names, lambda name: available[name](bench))


if __name__ == '__main__':
  main()
