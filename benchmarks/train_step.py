r"""Time and peak memory of one training step: forward, backward, AdamW.

  python -m benchmarks.train_step --json=train_step.json
  python -m benchmarks.train_step --only=short --repeats=9

The small Gemma-2 of benchmarks/sampler.py with random weights, in float32 on
the CPU; cross-entropy of the generation tokens. `--only` picks:

  shared    P prompts with R generations each: rejective fine-tuning.
  sft       one generation per prompt: supervised fine-tuning.
  short     like shared with short prompts, where sharing gains least.

All contenders make the same update from the same weights:

  grm_jax                   training.train_step.TrainStep; computes each prompt
                            once.
  grm_jax, prompt repeated  the same step on R copies of each prompt.
  transformers              Gemma2ForCausalLM on R copies of each prompt, with
                            labels of -100 on prompts, logits_to_keep for the
                            generations, attention 'eager' ('sdpa' has no
                            softcap) and AdamW(fused=True), like its Trainer.
                            Skipped if it is not installed.

All contenders clip the gradient at norm 1. transformers saves the activations
that torch saves; grm_jax saves those that --remat selects, by default only the
matrix products, which is faster here than saving everything. The benchmark
checks that the losses of all steps agree, and with them the updates.

The contenders run round-robin, so that background load affects all of them. The
table shows medians, ratios of medians, and the smallest and largest ratio of a
round. `computed` and `useful` are GFLOP/s by training/flops.py: `computed`
counts the tokens that the contender computes, `useful` counts each prompt once.
`cores` is processor seconds per second; a value far below the number of cores
means that other processes used them.
Peak memory is the largest resident set of a separate process per contender. It
includes libraries (0.2 GB for JAX), compilation and weights. A contender that
runs out of memory is reported and skipped.
"""

import argparse
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Collection, Sequence

import jax
import numpy as np

from benchmarks import harness, sampler
from benchmarks.interleaved_timing import Timings, ratio, run_interleaved
from benchmarks.train_step_baselines import (
  OURS,
  Contender,
  Weights,
  contenders,
)
from benchmarks.workload import Workload
from grm_jax.checkpoint.huggingface import save as hf_save
from grm_jax.model.compute_config import REMAT, ComputeConfig
from grm_jax.model.config import ModelConfig
from grm_jax.model.init import init_params
from grm_jax.model.transformer import Transformer
from grm_jax.sharding import mesh

MODULE = 'benchmarks.train_step'
# Unmeasured steps: one from the initial weights, one after the first update.
_WARMUP_STEPS = 2
_LOSS_RTOL = 1e-4


def peak_memory(make: Contender, workload: Workload, weights: Weights) -> int:
  """Runs warmup steps; returns the peak resident bytes of this process."""
  step = make(workload, weights)
  for _ in range(_WARMUP_STEPS):
    step()
  return harness.peak_resident_bytes()


def measure_times(
  workload: Workload, weights: Weights, repeats: int, names: Collection[str]
) -> dict[str, Timings]:
  """Times the contenders round-robin.

  Raises:
    RuntimeError: their losses differ.
  """
  available = contenders(workload)
  steps = {name: available[name](workload, weights) for name in names}
  warmup_losses = {
    name: [step() for _ in range(_WARMUP_STEPS)] for name, step in steps.items()
  }
  runs = {name: lambda _, step=step: step() for name, step in steps.items()}
  timings = run_interleaved(runs, repeats, str(workload), warmup_rounds=0)
  losses = {
    name: warmup_losses[name] + x.results for name, x in timings.items()
  }
  for name, contender_losses in losses.items():
    if not np.allclose(contender_losses, losses[OURS], rtol=_LOSS_RTOL, atol=0):
      raise RuntimeError(
        f'the losses of {name} differ from those of {OURS}: {losses}'
      )
  return timings


def compare(
  name: str,
  workload: Workload,
  weights: Weights,
  repeats: int,
  arguments: Sequence[str],
) -> dict:
  """Measures one workload, prints its table, returns the numbers."""
  peaks, left_out = harness.measure_peaks(
    MODULE, name, contenders(workload), weights.directory, arguments
  )
  timings = measure_times(workload, weights, repeats, peaks)
  rows = {
    contender: _make_row(
      contender,
      workload,
      weights.config,
      timings[contender],
      timings[OURS],
      peaks,
    )
    for contender in timings
  }
  print(f'\n{name}: {workload}, {repeats} interleaved rounds')
  print(
    f'{"":24} {"tokens":>7} {"seconds":>8} {"ratio, spread":>16} '
    f'{"computed":>9} {"useful":>7} {"cores":>6} {"peak GB":>8} {"ratio":>6}'
  )
  for contender, row in rows.items():
    print(
      f'{contender:24} {row["tokens"]:7} {row["median_seconds"]:8.3f} '
      f'{ratio(timings[contender], timings[OURS])!s:>16} '
      f'{row["computed_gflops"]:9.1f} '
      f'{row["useful_gflops"]:7.1f} {row["cores"]:6.2f} '
      f'{row["peak_bytes"] / 1e9:8.2f} {row["peak_times_ours"]:5.2f}x'
    )
  return {
    'case': dataclasses.asdict(workload),
    'useful_flops': workload.train_flops(weights.config),
    'load_after': os.getloadavg(),
    'contenders': rows,
    'left_out': left_out,
  }


def _make_row(
  contender: str,
  workload: Workload,
  config: ModelConfig,
  timings: Timings,
  our_timings: Timings,
  peaks: dict[str, int],
) -> dict:
  computed = workload if contender == OURS else workload.repeated
  return {
    'tokens': computed.num_tokens,
    'seconds': timings.seconds,
    'median_seconds': timings.median,
    'times_ours': dataclasses.asdict(ratio(timings, our_timings)),
    'computed_gflops': computed.train_flops(config) / timings.median / 1e9,
    'useful_gflops': workload.train_flops(config) / timings.median / 1e9,
    'cores': timings.cores,
    'losses': timings.results,
    'peak_bytes': peaks[contender],
    'peak_times_ours': peaks[contender] / peaks[OURS],
  }


def workloads(options: argparse.Namespace) -> dict[str, Workload]:
  shape = (options.prompts, options.generations)
  s, t = options.prompt_size, options.generation_size
  return {
    'shared': Workload(*shape, s, t),
    'sft': Workload(options.prompts, 1, s, t),
    'short': Workload(*shape, options.short_prompt_size, t),
  }


def parse(arguments: Sequence[str]) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  sampler.add_model_flags(parser)
  parser.add_argument('--prompts', type=int, default=4)
  parser.add_argument('--generations', type=int, default=4)
  parser.add_argument('--prompt-size', type=int, default=512)
  parser.add_argument('--short-prompt-size', type=int, default=32)
  parser.add_argument('--generation-size', type=int, default=128)
  parser.add_argument('--remat', choices=sorted(REMAT), default='dots')
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--only', default='', help='comma-separated names')
  parser.add_argument('--json', help='also write the result to this JSON file')
  parser.add_argument('--memory-of', help=argparse.SUPPRESS)
  return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
  arguments = sys.argv[1:] if arguments is None else arguments
  options = parse(arguments)
  sys.stdout.reconfigure(line_buffering=True)
  jax.config.update('jax_platforms', 'cpu')
  available = workloads(options)
  compute = ComputeConfig(remat=options.remat)
  model = Transformer(sampler.make_config(options), compute, mesh.one_device())
  if options.memory_of:
    name, contender, directory = json.loads(options.memory_of)
    make = contenders(available[name])[contender]
    print(peak_memory(make, available[name], Weights(model, directory)))
    return
  names = harness.select(options.only, available)
  with tempfile.TemporaryDirectory() as directory:
    params = init_params(model, jax.random.key(0))
    hf_save.save_directory(directory, params, model)
    del params
    weights = Weights(model, directory)

    def compare_workload(name):
      workload = available[name]
      return compare(name, workload, weights, options.repeats, arguments)

    harness.run_workloads(options, names, compare_workload)


if __name__ == '__main__':
  main()
