r"""Time and peak memory of one GRPO step: rollout, reference, update.

  python -m benchmarks.grpo_step --json=grpo_step.json
  python -m benchmarks.grpo_step --only=long --repeats=3

Uses the small Gemma-2 of benchmarks/sampler.py with random weights in float32
on the CPU. A step has P prompts of S tokens, R generations of T tokens each,
one update per rollout (no old log-probabilities) and a KL term. --only picks:

  medium    S=512.
  long      S=1024.
  longest   S=2048.

The contenders:

  grm_jax        the functions of stages/grpo/train.py. Rollout, reference and
                 update compute each prompt once for its group.
  google-tunix   GRPOLearner with tunix's sampler and Gemma class, which
                 computes R copies of each prompt. The cache has exactly S + T
                 positions without padding, its cheapest settings. It updates on
                 --micro prompts at once and accumulates gradients. Skipped if
                 it is not installed.

First, the benchmark checks that the reference log-probabilities of the same
generations agree. The contenders run round-robin, so that background load
affects all of them. The table shows medians, ratios of medians, and the
smallest and largest ratio of a round. The time of a part includes the wait for
its arrays. Peak memory is the largest resident set of a separate process per
contender. It includes libraries, compilation, policy, reference, optimizer and
caches. A contender that runs out of memory is reported and skipped.
"""

import argparse
import dataclasses
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence

import jax
import numpy as np

from benchmarks import grpo_step_baselines, harness, sampler
from benchmarks.grpo_step_baselines import OURS, PARTS, Contender, StepSetup
from benchmarks.interleaved_timing import Timings, ratio, run_interleaved
from benchmarks.workload import Workload
from grm_jax.checkpoint import model_directory
from grm_jax.model.compute_config import REMAT, ComputeConfig
from grm_jax.model.transformer import Transformer
from grm_jax.sharding import mesh

MODULE = 'benchmarks.grpo_step'
# Unmeasured steps: one compiles, one runs on the first update.
_WARMUP_STEPS = 2
_LOGP_ATOL = 1e-3


def peak_memory(name: str, workload: Workload, setup: StepSetup) -> int:
  """Runs warmup steps; returns the peak resident bytes of this process."""
  contender = grpo_step_baselines.contenders()[name](workload, setup)
  for _ in range(_WARMUP_STEPS):
    contender.step()
  contender.close()
  return harness.peak_resident_bytes()


def check_agreement(
  contenders: dict[str, Contender], workload: Workload, model: Transformer
) -> float:
  """Compares the reference log-probabilities of all contenders.

  Returns:
    The largest absolute difference to those of grm_jax.

  Raises:
    RuntimeError: the difference exceeds the tolerance.
  """
  rng = np.random.default_rng(1)
  shape = (
    workload.prompts,
    workload.generations_per_prompt,
    workload.new_tokens,
  )
  tokens = rng.integers(4, model.config.vocab_size, shape, np.int32)
  logps = {name: x.reference_logps(tokens) for name, x in contenders.items()}
  difference = max(float(np.abs(x - logps[OURS]).max()) for x in logps.values())
  if difference > _LOGP_ATOL:
    raise RuntimeError(
      f'reference log-probabilities differ by {difference}, more than '
      f'{_LOGP_ATOL}; the contenders compute different models'
    )
  return difference


def compare(
  name: str,
  workload: Workload,
  setup: StepSetup,
  repeats: int,
  args: Sequence[str],
) -> dict:
  """Measures one workload, prints its table, returns the numbers."""
  available = grpo_step_baselines.contenders()
  peaks, left_out = harness.measure_peaks(
    MODULE, name, available, setup.checkpoint, args
  )
  contenders = {name: available[name](workload, setup) for name in peaks}
  difference = check_agreement(contenders, workload, setup.model)
  runs = {name: lambda _, x=x: x.step() for name, x in contenders.items()}
  timings = run_interleaved(
    runs, repeats, str(workload), warmup_rounds=_WARMUP_STEPS
  )
  for x in contenders.values():
    x.close()
  rows = {name: _make_row(name, timings, peaks) for name in timings}
  print(
    f'\n{name}: {workload}, {repeats} interleaved rounds; log-probabilities '
    f'differ by at most {difference:.1e}'
  )
  part_columns = ''.join(f'{x:>10}' for x in (*PARTS, 'whole'))
  memory_columns = ''.join(f'{x:>10}' for x in ('cores', 'peak GB', 'ratio'))
  print(f'{"":24}{part_columns} {"ratio, spread":>18}{memory_columns}')
  for contender, row in rows.items():
    parts = ''.join(f'{row["parts"][part]:10.2f}' for part in PARTS)
    print(
      f'{contender:24}{parts}{row["median_seconds"]:10.2f}'
      f' {ratio(timings[contender], timings[OURS])!s:>18}{row["cores"]:10.2f}'
      f'{row["peak_bytes"] / 1e9:10.2f}{row["peak_times_ours"]:9.2f}x'
    )
  return {
    'case': dataclasses.asdict(workload),
    'logps_apart': difference,
    'load_after': os.getloadavg(),
    'contenders': rows,
    'left_out': left_out,
  }


def _make_row(
  contender: str, timings: dict[str, Timings], peaks: dict[str, int]
) -> dict:
  contender_timings = timings[contender]
  return {
    'seconds': contender_timings.seconds,
    'median_seconds': contender_timings.median,
    'times_ours': dataclasses.asdict(ratio(contender_timings, timings[OURS])),
    'parts': {
      part: statistics.median(x[part] for x in contender_timings.results)
      for part in PARTS
    },
    'cores': contender_timings.cores,
    'peak_bytes': peaks[contender],
    'peak_times_ours': peaks[contender] / peaks[OURS],
  }


def workloads(options: argparse.Namespace) -> dict[str, Workload]:
  def make_workload(prompt_size):
    shape = (options.prompts, options.generations)
    return Workload(*shape, prompt_size, options.generation_size)

  return {
    'medium': make_workload(options.prompt_size),
    'long': make_workload(options.long_prompt_size),
    'longest': make_workload(options.longest_prompt_size),
  }


def parse(arguments: Sequence[str]) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  sampler.add_model_flags(parser)
  parser.add_argument('--prompts', type=int, default=4)
  parser.add_argument('--generations', type=int, default=4)
  parser.add_argument('--prompt-size', type=int, default=512)
  parser.add_argument('--long-prompt-size', type=int, default=1024)
  parser.add_argument('--longest-prompt-size', type=int, default=2048)
  parser.add_argument('--generation-size', type=int, default=128)
  parser.add_argument(
    '--micro', type=int, default=1, help='prompts of a micro-batch of tunix'
  )
  parser.add_argument('--decode-steps-per-call', type=int, default=16)
  parser.add_argument('--remat', choices=sorted(REMAT), default='dots')
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--only', default='', help='comma-separated names')
  parser.add_argument('--json', help='also write the result to this JSON file')
  parser.add_argument('--memory-of', help=argparse.SUPPRESS)
  return parser.parse_args(arguments)


def _make_setup(options: argparse.Namespace, directory: str) -> StepSetup:
  """Makes the setup; writes the model to an empty directory."""
  compute = ComputeConfig(remat=options.remat)
  model = Transformer(sampler.make_config(options), compute, mesh.one_device())
  setup = StepSetup(
    model, directory, options.micro, options.decode_steps_per_call
  )
  if not os.listdir(directory):
    model_directory.save(directory, 0, model, setup.params(), {})
  return setup


def main(arguments: Sequence[str] | None = None) -> None:
  arguments = sys.argv[1:] if arguments is None else arguments
  options = parse(arguments)
  sys.stdout.reconfigure(line_buffering=True)
  jax.config.update('jax_platforms', 'cpu')
  available = workloads(options)
  if options.memory_of:
    name, contender, directory = json.loads(options.memory_of)
    setup = _make_setup(options, directory)
    print(peak_memory(contender, available[name], setup))
    return
  names = harness.select(options.only, available)
  with tempfile.TemporaryDirectory() as directory:
    setup = _make_setup(options, directory)

    def compare_workload(name):
      workload = available[name]
      return compare(name, workload, setup, options.repeats, arguments)

    harness.run_workloads(options, names, compare_workload)


if __name__ == '__main__':
  main()
