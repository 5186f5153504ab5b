r"""One whole training step: forward, backward, AdamW; time and peak memory.

  python -m benchmarks.train_step --json=train_step.json
  python -m benchmarks.train_step --only=short --repeats=9

The small Gemma-2 of benchmarks/sampler.py with random weights, in float32 on
the CPU; cross-entropy of the generation tokens. `--only` picks:

  shared    P prompts with R generations each: rejective fine-tuning.
  sft       the same with one generation each: supervised fine-tuning.
  short     as shared, with short prompts, where sharing them gains least.

The contenders make the same update from the same weights:

  grm_jax                   training.step.Steps, each prompt computed once.
  grm_jax, prompt repeated  the same with the prompt given R times.
  transformers              Gemma2ForCausalLM given the prompt R times, labels
                            of -100 on prompts, logits_to_keep so that logits
                            are of generations only, attention 'eager' ('sdpa'
                            has no softcap), AdamW(fused=True); as its Trainer
                            does it. Left out where it is not installed.

All clip the gradient at norm 1. For the backward pass transformers keeps what
torch keeps; grm_jax keeps what `--remat` says, by default the products alone,
which takes less time here than keeping everything. The losses of all steps are
compared, so that updates are as well.

For times, contenders take turns, so that a busy machine is busy for all;
medians are printed, ratios of medians, and the least and the greatest ratio of
a round. `computed` and `useful` are GFLOP/s
by training/flops.py: of what the contender's tokens need, and of what they
would need if each prompt were computed once. `cores` is processor seconds a
second: far below the number of cores, something else had them.
Peak memory is the largest resident set of a process of the contender's own,
with everything in it: libraries (JAX's 0.2 GB in all), compiling, weights. A
contender whose process asks for more memory than there is here is named and
left out.
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
from benchmarks.interleaved_timing import Timed, ratio, turns
from benchmarks.train_step_baselines import (
  OURS,
  Contender,
  Weights,
  contenders,
)
from benchmarks.workload import Case
from grm_jax.checkpoint.huggingface import save as hf_save
from grm_jax.model.compute_config import REMAT, ComputeConfig
from grm_jax.model.init import init_params
from grm_jax.model.transformer import Transformer
from grm_jax.sharding import mesh

MODULE = 'benchmarks.train_step'
# Before the rounds that count: one from the weights all share, one after the
# first update.
_FIRST_STEPS = 2
_MOST_APART = 1e-4  # of losses, relative


def memory_here(make: Contender, case: Case, weights: Weights) -> int:
  """The bytes that this process comes to hold by a contender's steps."""
  step = make(case, weights)
  for _ in range(_FIRST_STEPS):
    step()
  return harness.most_resident()


def times(
  case: Case, weights: Weights, repeats: int, names: Collection[str]
) -> dict[str, Timed]:
  """Rounds of contenders in turn; RuntimeError if their losses differ."""
  known = contenders(case)
  made = {name: known[name](case, weights) for name in names}
  first = {
    name: [step() for _ in range(_FIRST_STEPS)] for name, step in made.items()
  }
  runs = {name: lambda _, step=step: step() for name, step in made.items()}
  found = turns(runs, repeats, str(case), uncounted=0)
  losses = {name: first[name] + x.results for name, x in found.items()}
  for name, some in losses.items():
    if not np.allclose(some, losses[OURS], rtol=_MOST_APART, atol=0):
      raise RuntimeError(f'{name} trains otherwise, losses are {losses}')
  return found


def compare(
  name: str,
  case: Case,
  weights: Weights,
  repeats: int,
  arguments: Sequence[str],
) -> dict:
  """The table of a case."""
  peaks, left_out = harness.peaks(
    MODULE, name, contenders(case), weights.directory, arguments
  )
  found = times(case, weights, repeats, peaks)
  rows = {
    contender: _row(contender, case, weights.size, found, peaks)
    for contender in found
  }
  print(f'\n{name}: {case}, {repeats} rounds in turn')
  print(
    f'{"":24} {"tokens":>7} {"seconds":>8} {"ratio, spread":>16} '
    f'{"computed":>9} {"useful":>7} {"cores":>6} {"peak GB":>8} {"ratio":>6}'
  )
  for contender, row in rows.items():
    print(
      f'{contender:24} {row["tokens"]:7} {row["median_seconds"]:8.3f} '
      f'{ratio(found[contender], found[OURS])!s:>16} '
      f'{row["computed_gflops"]:9.1f} '
      f'{row["useful_gflops"]:7.1f} {row["cores"]:6.2f} '
      f'{row["peak_bytes"] / 1e9:8.2f} {row["peak_times_ours"]:5.2f}x'
    )
  return {
    'case': dataclasses.asdict(case),
    'useful_flops': case.train_flops(weights.size),
    'load_after': os.getloadavg(),
    'contenders': rows,
    'left_out': left_out,
  }


def _row(contender, case, size, found, peaks) -> dict:
  computed = case if contender == OURS else case.repeated
  timed = found[contender]
  return {
    'tokens': computed.tokens,
    'seconds': timed.seconds,
    'median_seconds': timed.median,
    'times_ours': dataclasses.asdict(ratio(timed, found[OURS])),
    'computed_gflops': computed.train_flops(size) / timed.median / 1e9,
    'useful_gflops': case.train_flops(size) / timed.median / 1e9,
    'cores': timed.cores,
    'losses': timed.results,
    'peak_bytes': peaks[contender],
    'peak_times_ours': peaks[contender] / peaks[OURS],
  }


def cases(options: argparse.Namespace) -> dict[str, Case]:
  shape = (options.prompts, options.generations)
  s, t = options.prompt_size, options.generation_size
  return {
    'shared': Case(*shape, s, t),
    'sft': Case(options.prompts, 1, s, t),
    'short': Case(*shape, options.short_prompt_size, t),
  }


def parse(arguments: Sequence[str]) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  sampler.add_size_flags(parser)
  parser.add_argument('--prompts', type=int, default=4)
  parser.add_argument('--generations', type=int, default=4)
  parser.add_argument('--prompt-size', type=int, default=512)
  parser.add_argument('--short-prompt-size', type=int, default=32)
  parser.add_argument('--generation-size', type=int, default=128)
  parser.add_argument('--remat', choices=sorted(REMAT), default='dots')
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--only', default='', help='names, commas between')
  parser.add_argument('--json', help='also write the result there')
  parser.add_argument('--memory-of', help=argparse.SUPPRESS)
  return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
  arguments = sys.argv[1:] if arguments is None else arguments
  options = parse(arguments)
  sys.stdout.reconfigure(line_buffering=True)
  jax.config.update('jax_platforms', 'cpu')
  known = cases(options)
  compute = ComputeConfig(remat=options.remat)
  model = Transformer(sampler.size_of(options), compute, mesh.one_device())
  if options.memory_of:
    name, contender, directory = json.loads(options.memory_of)
    make = contenders(known[name])[contender]
    print(memory_here(make, known[name], Weights(model, directory)))
    return
  names = harness.chosen(options.only, known)
  with tempfile.TemporaryDirectory() as directory:
    params = init_params(model, jax.random.key(0))
    hf_save.save_directory(directory, params, model)
    del params
    weights = Weights(model, directory)

    def compared(name):
      return compare(name, known[name], weights, options.repeats, arguments)

    harness.report(options, names, compared)


if __name__ == '__main__':
  main()
