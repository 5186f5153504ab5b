r"""Compiles the training rows of configs/tpu.txt and prints their costs.

  python -m benchmarks.aot_table FOLDER v5p:4x4x4 27b
  python -m benchmarks.aot_table FOLDER --print_only

Each row of the stages sft, grpo and reward_model is one call of configs/aot.py
with the sizes of the stage's config, the overrides and the flags of the row.
FOLDER keeps a report for each, TOPOLOGY_SIZE_STAGE.json. A row whose report
exists is not compiled again. A 27B takes 3 to 20 minutes on two CPU cores.

Prints one line per report: bound, XLA's estimate (waits for the network,
kernels) and calibrated time of a step, MFU by XLA's estimate, and memory. See
docs/pods.md for what they are.
"""

import argparse
import json
import os
import pathlib
import shlex
import subprocess
import sys
from typing import Any, NamedTuple

from benchmarks import harness
from grm_jax.stages import run_record

PROGRAMS = {
  'sft': 'sft_step',
  'grpo': 'grpo_update',
  'reward_model': 'reward_model_step',
}
# Parts that stages and configs/aot.py have in common.
_PARTS = ('optimizer', 'lora', 'loss', 'reference', 'mesh', 'compute')


class Row(NamedTuple):
  """A row of configs/tpu.txt; the names of flags are replaced by the flags."""

  topology: str
  size: str
  stage: str
  overrides: list[str]
  flags: str

  @property
  def name(self) -> str:
    """Stem of the report's file name."""
    return f'{self.topology.replace(":", "_")}_{self.size}_{self.stage}'


def read_rows() -> list[Row]:
  """Returns all rows of configs/tpu.txt."""
  text = (harness.ROOT / 'configs' / 'tpu.txt').read_text()
  lines = [x for x in text.splitlines() if x and not x.startswith('#')]
  named = dict(x.split(' = ', 1) for x in lines if '|' not in x)
  rows = []
  for line in (x for x in lines if '|' in x):
    topology, size, stage, overrides, names = map(str.strip, line.split('|'))
    libtpu = ' '.join(named.get(x, x) for x in names.split())
    rows.append(Row(topology, size, stage, overrides.split(), libtpu))
  return rows


def aot_arguments(row: Row) -> list[str]:
  """Returns the arguments of grm_jax.main that compile a step of the row."""
  config = harness.load_config(f'configs/{row.stage}.py', row.overrides)
  batch = config.batch
  generations = config.get('group_size', batch.get('generations_per_prompt'))
  if row.stage == 'sft':
    micro_batches = batch.grad_accum_steps
  elif row.stage == 'grpo':
    prompts = config.prompts_per_rollout // config.num_minibatches
    micro_batches = prompts // batch.micro_batch_prompts
  else:
    prompts = batch.texts_per_step // generations
    micro_batches = prompts // batch.micro_batch_prompts
  values = {
    'program': PROGRAMS[row.stage],
    'topology': row.topology,
    'size': f'gemma2_{row.size}',
    'micro_batch_prompts': batch.micro_batch_prompts,
    'grad_accum_steps': micro_batches,
    'prompt_size': max(batch.prompt_buckets),
    'num_generations': generations,
    'generation_size': max(batch.generation_buckets),
  } | {
    key: value
    for key, value in run_record.flatten(config).items()
    # An update has no decode layout.
    if key.split('.')[0] in _PARTS and key != 'mesh.decode_tensor'
  }
  defaults = run_record.flatten(harness.load_config('configs/aot.py', []))
  return [
    '--config=configs/aot.py',
    *(
      f'--config.{key}={tuple(value) if isinstance(value, list) else value}'
      for key, value in values.items()
      if value != defaults.get(key, value)
    ),
  ]


def compile_row(row: Row, path: pathlib.Path) -> None:
  """Writes the report of a row; prints the error if it does not compile."""
  arguments = [*aot_arguments(row), f'--config.json={path}']
  command = [f'LIBTPU_INIT_ARGS={row.flags}', *arguments]
  print(f'{row.name}: {shlex.join(command)}', flush=True)
  out = subprocess.run(
    [sys.executable, '-m', 'grm_jax.main', *arguments],
    cwd=harness.ROOT,
    env=os.environ | {'LIBTPU_INIT_ARGS': row.flags},
    capture_output=True,
    text=True,
  )
  if out.returncode:
    print(f'{row.name}: {out.stderr.strip().splitlines()[-1]}', flush=True)


def line(report: dict[str, Any]) -> str:
  """Returns the table's line of a report."""
  gradients = report['programs'][0]
  mesh = ' x '.join(str(x) for x in report['mesh'].values())
  gib = 2**30
  batch = f'{report["grad_accum_steps"]} x {report["micro_batch_prompts"]}'
  xla = report['xla_seconds']
  waits, kernels = (
    gradients['runs_per_step'] * gradients[f'{x}_seconds']
    for x in ('exposed', 'kernel')
  )
  return (
    f'| {report["size"].removeprefix("gemma2_").upper()}, '
    f'{report["topology"]} | {report["program"]} | {mesh} | {batch} | '
    f'{report["bound_seconds"]:.3g} s | '
    f'{xla:.3g} s ({waits:.2g}, {kernels:.2g}) | {report["xla_mfu"]:.0%} | '
    f'{report["calibrated_seconds"]:.3g} s '
    f'+-{report["calibration_error"]:.0%} | '
    f'{report["peak_bytes"] / gib:.1f} of '
    f'{report["memory_bytes"] / gib:g} GiB |'
  )


def main() -> None:
  """Compiles rows and prints the table of all reports."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('folder', type=pathlib.Path, help='of the reports')
  parser.add_argument(
    'words', nargs='*', help='compile rows that have all of these words'
  )
  parser.add_argument(
    '--print_only', action='store_true', help='compile nothing'
  )
  args = parser.parse_args()
  args.folder.mkdir(parents=True, exist_ok=True)
  rows = [x for x in read_rows() if x.stage in PROGRAMS]
  wanted = [x for x in rows if {*args.words} <= {*x[:3]}]
  if not wanted:
    parser.error(f'no row of configs/tpu.txt has {" ".join(args.words)}')
  for row in [] if args.print_only else wanted:
    path = (args.folder / f'{row.name}.json').resolve()
    if not path.exists():
      compile_row(row, path)
  print(
    '| model, slice | program | data x fsdp x tensor | micro-batches x '
    'prompts | bound | XLA (waits, kernels) | MFU | calibrated | memory |'
  )
  print('| ' + '--- | ' * 9)
  for row in rows:
    path = args.folder / f'{row.name}.json'
    if path.exists():
      print(line(json.loads(path.read_text())))


if __name__ == '__main__':
  main()
