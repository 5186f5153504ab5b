r"""One whole step of GRPO: rollout, reference, update; time and peak memory.

  python -m benchmarks.grpo_step --json=grpo_step.json
  python -m benchmarks.grpo_step --only=long --repeats=3

The small Gemma-2 of benchmarks/sampler.py with random weights, in float32 on
the CPU; P prompts of S tokens, a group of R generations of T tokens each, one
update on each rollout (no old log-probabilities), a KL term. `--only` picks:

  medium    S=512.
  long      S=1024.
  longest   S=2048.

The contenders:

  grm_jax        what stages/grpo/train.py does: Roller, Reference, Updater. Every
                 prompt is computed once for its group in each of them.
  google-tunix   its GRPOLearner with its own sampler and its own Gemma class,
                 each prompt given R times, as it does. Its cache has exactly
                 S + T places and nothing is padded, the cheapest settings it
                 has. It updates on `--micro` prompts at once and accumulates.
                 Left out where it is not installed.

Before anything is measured both compute the reference's log-probabilities of
the same generations, which have to agree. For times, contenders take turns, so
that a busy machine is busy for all; medians are printed, ratios of medians, and
the least and the greatest ratio of a round. Parts are measured where each waits
for its arrays. Peak memory is the largest resident set of a process of the
contender's own, with everything in it: libraries, compiling, policy, reference,
optimizer, caches. A contender whose process asks for more memory than there is
here is named and left out.
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

from benchmarks import grpo_step_baselines as peers
from benchmarks import harness, sampler
from benchmarks.grpo_step_baselines import OURS, PARTS, Contender, Setting
from benchmarks.interleaved_timing import Timed, ratio, turns
from benchmarks.workload import Case
from grm_jax.checkpoint import model_directory
from grm_jax.model.compute_config import REMAT, ComputeConfig
from grm_jax.model.transformer import Transformer
from grm_jax.sharding import mesh

MODULE = 'benchmarks.grpo_step'
# Before the rounds that count: one compiles, one runs on the first update.
_FIRST_STEPS = 2
_MOST_APART = 1e-3  # of log-probabilities


def memory_here(name: str, case: Case, setting: Setting) -> int:
  """The bytes that this process comes to hold by a contender's steps."""
  made = peers.contenders()[name](case, setting)
  for _ in range(_FIRST_STEPS):
    made.step()
  made.close()
  return harness.most_resident()


def check_same(
  made: dict[str, Contender], case: Case, model: Transformer
) -> float:
  """The most that log-probabilities differ; RuntimeError if it is much."""
  rng = np.random.default_rng(1)
  shape = (case.prompts, case.rows, case.new_tokens)
  tokens = rng.integers(4, model.config.vocab_size, shape, np.int32)
  found = {name: x.reference_logps(tokens) for name, x in made.items()}
  apart = max(float(np.abs(x - found[OURS]).max()) for x in found.values())
  if apart > _MOST_APART:
    raise RuntimeError(f'log-probabilities are {apart} apart: other models')
  return apart


def compare(
  name: str, case: Case, setting: Setting, repeats: int, args: Sequence[str]
) -> dict:
  """The table of a case."""
  known = peers.contenders()
  peaks, left_out = harness.peaks(MODULE, name, known, setting.checkpoint, args)
  made = {contender: known[contender](case, setting) for contender in peaks}
  apart = check_same(made, case, setting.model)
  runs = {who: lambda _, x=x: x.step() for who, x in made.items()}
  found = turns(runs, repeats, str(case), uncounted=_FIRST_STEPS)
  for one in made.values():
    one.close()
  rows = {who: _row(who, found, peaks) for who in found}
  print(
    f'\n{name}: {case}, {repeats} rounds in turn; log-probabilities '
    f'{apart:.1e} apart'
  )
  parts = ''.join(f'{x:>10}' for x in (*PARTS, 'whole'))
  rest = ''.join(f'{x:>10}' for x in ('cores', 'peak GB', 'ratio'))
  print(f'{"":24}{parts} {"ratio, spread":>18}{rest}')
  for who, row in rows.items():
    parts = ''.join(f'{row["parts"][part]:10.2f}' for part in PARTS)
    print(
      f'{who:24}{parts}{row["median_seconds"]:10.2f}'
      f' {ratio(found[who], found[OURS])!s:>18}{row["cores"]:10.2f}'
      f'{row["peak_bytes"] / 1e9:10.2f}{row["peak_times_ours"]:9.2f}x'
    )
  return {
    'case': dataclasses.asdict(case),
    'logps_apart': apart,
    'load_after': os.getloadavg(),
    'contenders': rows,
    'left_out': left_out,
  }


def _row(who: str, found: dict[str, Timed], peaks: dict[str, int]) -> dict:
  timed = found[who]
  return {
    'seconds': timed.seconds,
    'median_seconds': timed.median,
    'times_ours': dataclasses.asdict(ratio(timed, found[OURS])),
    'parts': {
      part: statistics.median(x[part] for x in timed.results) for part in PARTS
    },
    'cores': timed.cores,
    'peak_bytes': peaks[who],
    'peak_times_ours': peaks[who] / peaks[OURS],
  }


def cases(options: argparse.Namespace) -> dict[str, Case]:
  def case(size):
    shape = (options.prompts, options.generations)
    return Case(*shape, size, options.generation_size)

  return {
    'medium': case(options.prompt_size),
    'long': case(options.long_prompt_size),
    'longest': case(options.longest_prompt_size),
  }


def parse(arguments: Sequence[str]) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  sampler.add_size_flags(parser)
  parser.add_argument('--prompts', type=int, default=4)
  parser.add_argument('--generations', type=int, default=4)
  parser.add_argument('--prompt-size', type=int, default=512)
  parser.add_argument('--long-prompt-size', type=int, default=1024)
  parser.add_argument('--longest-prompt-size', type=int, default=2048)
  parser.add_argument('--generation-size', type=int, default=128)
  parser.add_argument('--micro', type=int, default=1, help="tunix's")
  parser.add_argument('--chunk', type=int, default=16, help='of our sampler')
  parser.add_argument('--remat', choices=sorted(REMAT), default='dots')
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--only', default='', help='names, commas between')
  parser.add_argument('--json', help='also write the result there')
  parser.add_argument('--memory-of', help=argparse.SUPPRESS)
  return parser.parse_args(arguments)


def _setting(options: argparse.Namespace, directory: str) -> Setting:
  """The same for all; the model directory is written if it is not there."""
  compute = ComputeConfig(remat=options.remat)
  model = Transformer(sampler.size_of(options), compute, mesh.one_device())
  setting = Setting(model, directory, options.micro, options.chunk)
  if not os.listdir(directory):
    model_directory.save(directory, 0, model, setting.params(), {})
  return setting


def main(arguments: Sequence[str] | None = None) -> None:
  arguments = sys.argv[1:] if arguments is None else arguments
  options = parse(arguments)
  sys.stdout.reconfigure(line_buffering=True)
  jax.config.update('jax_platforms', 'cpu')
  known = cases(options)
  if options.memory_of:
    name, contender, directory = json.loads(options.memory_of)
    setting = _setting(options, directory)
    print(memory_here(contender, known[name], setting))
    return
  names = harness.chosen(options.only, known)
  with tempfile.TemporaryDirectory() as directory:
    setting = _setting(options, directory)

    def compared(name):
      return compare(name, known[name], setting, options.repeats, arguments)

    harness.report(options, names, compared)


if __name__ == '__main__':
  main()
