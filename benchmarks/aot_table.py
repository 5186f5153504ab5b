r"""Compiles rows of configs/tpu.txt and prints their costs.

  python -m benchmarks.aot_table FOLDER v5p:4x4x4 27b
  python -m benchmarks.aot_table FOLDER --print_only

Each row of the stages sft, rft, grpo, reward_model and score has programs.
Each is one call of configs/aot.py with the sizes of the stage's config, the
overrides and the flags of the row. FOLDER keeps a report for each,
TOPOLOGY_SIZE_STAGE_PROGRAM.json. A program whose report exists is not compiled
again. Training of a 27B takes 3 to 20 minutes on two CPU cores.

The first table has a line per program: bound, XLA's estimate (waits for the
network, kernels) and calibrated time, MFU by XLA's estimate, and memory. See
docs/pods.md for what they are. The second has a line per row of grpo with all
of its programs: the time of a step and of 2000 steps, if all prompts and
generations have their largest size, and the memory of rollouts, in which the
training state and the weights of the sampler are on the devices.
"""

import argparse
import json
import math
import os
import pathlib
import shlex
import subprocess
import sys
from typing import Any, NamedTuple

from benchmarks import harness
from grm_jax.stages import run_record

PROGRAMS = {
  'sft': ('sft_step',),
  'rft': ('sft_step',),
  'grpo': ('grpo_update', 'reference', 'prefill', 'decode'),
  'reward_model': ('reward_model_step',),
  'score': ('prefill', 'decode'),
}
SAMPLING = ('prefill', 'decode')
GIB = 2**30
# Parts that stages and configs/aot.py have in common.
_PARTS = ('optimizer', 'lora', 'loss', 'reference', 'mesh', 'compute')

Report = dict[str, Any]


class Row(NamedTuple):
  """A row of configs/tpu.txt; the names of flags are replaced by the flags."""

  topology: str
  size: str
  stage: str
  overrides: list[str]
  flags: str

  def report(self, folder: pathlib.Path, program: str) -> pathlib.Path:
    """Returns the path of a program's report."""
    topology = self.topology.replace(':', '_')
    name = f'{topology}_{self.size}_{self.stage}_{program}.json'
    return (folder / name).resolve()


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


def aot_arguments(row: Row, program: str) -> list[str]:
  """Returns the arguments of grm_jax.main that compile a program of the row."""
  config = harness.load_config(f'configs/{row.stage}.py', row.overrides)
  config = config.get('train', config)  # rft trains by the config of sft
  sizes = _sampler_sizes if program in SAMPLING else _training_sizes
  values = {
    'program': program,
    'topology': row.topology,
    # The row 27b-lora is of the model 27b.
    'size': f'gemma2_{row.size.removesuffix("-lora")}',
    **sizes(config, row, program),
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


def _training_sizes(config, row: Row, program: str) -> dict[str, Any]:
  """Returns what an update or the reference takes from the stage's config."""
  batch = config.batch
  generations = config.get('group_size', batch.get('generations_per_prompt'))
  if 'grad_accum_steps' in batch:
    micro_batches = batch.grad_accum_steps
  elif row.stage == 'grpo':
    prompts = config.prompts_per_rollout // config.num_minibatches
    micro_batches = prompts // batch.micro_batch_prompts
  else:
    prompts = batch.texts_per_step // generations
    micro_batches = prompts // batch.micro_batch_prompts
  parts = ('lora', 'reference', 'mesh', 'compute')
  return {
    'micro_batch_prompts': batch.micro_batch_prompts,
    'grad_accum_steps': micro_batches,
    'prompt_size': max(batch.prompt_buckets),
    'num_generations': generations,
    'generation_size': max(batch.generation_buckets),
    # An update has no decode layout.
    **_leaves(config, parts if program == 'reference' else _PARTS),
  }


def _sampler_sizes(config, row: Row, program: str) -> dict[str, Any]:
  """Returns what prefill and decode take from the stage's config."""
  if row.stage == 'grpo':
    sampler, batch = config.rollout, config.batch
    new_tokens = max(batch.generation_buckets)
  else:
    sampler = batch = config.sampling
    new_tokens = sampler.max_new_tokens or 1024
  prompts = sampler.concurrent_prompts
  if program == 'prefill':  # the engine computes one prompt per shard at once
    tensor = config.mesh.decode_tensor or config.mesh.tensor
    prompts = _num_devices(row) // tensor
  # Adapters are merged, except into int8.
  is_separate = (
    sampler.int8 and config.get('lora', {}).get('base_dtype') == 'int8'
  )
  return {
    'micro_batch_prompts': prompts,
    'prompt_size': max(batch.prompt_buckets),
    'num_generations': sampler.generations_per_prompt,
    'generation_size': new_tokens,
    'sampling.int8': sampler.int8,
    'mesh.decode_tensor': config.mesh.decode_tensor,
    **_leaves(config, ('mesh', 'lora') if is_separate else ('mesh',)),
  }


def _leaves(config, parts: tuple[str, ...]) -> dict[str, Any]:
  """Returns the leaves of parts, without that of the decode layout."""
  return {
    key: value
    for key, value in run_record.flatten(config).items()
    if key.split('.')[0] in parts and key != 'mesh.decode_tensor'
  }


def _num_devices(row: Row) -> int:
  return math.prod(map(int, row.topology.split(':')[1].split('x')))


def compile_program(row: Row, program: str, path: pathlib.Path) -> None:
  """Writes the report of a program; prints the error if it does not compile."""
  arguments = [*aot_arguments(row, program), f'--config.json={path}']
  command = [f'LIBTPU_INIT_ARGS={row.flags}', *arguments]
  print(f'{path.stem}: {shlex.join(command)}', flush=True)
  out = subprocess.run(
    [sys.executable, '-m', 'grm_jax.main', *arguments],
    cwd=harness.ROOT,
    env=os.environ | {'LIBTPU_INIT_ARGS': row.flags},
    capture_output=True,
    text=True,
  )
  if out.returncode:
    print(f'{path.stem}: {out.stderr.strip().splitlines()[-1]}', flush=True)


def line(row: Row, report: Report) -> str:
  """Returns the first table's line of a report."""
  first = report['programs'][0]
  mesh = ' x '.join(str(x) for x in report['mesh'].values())
  batch = f'{report["grad_accum_steps"]} x {report["micro_batch_prompts"]}'
  xla = report['xla_seconds']
  waits, kernels = (
    first['runs_per_step'] * first[f'{x}_seconds']
    for x in ('exposed', 'kernel')
  )
  unknown = sum(x.get('unestimated_fusions', 0) for x in report['programs'])
  return (
    f'| {_name(row)} | {row.stage}, {report["program"]} | {mesh} | {batch} | '
    f'{report["bound_seconds"]:.3g} s | '
    f'{xla:.3g} s ({waits:.2g}, {kernels:.2g}) | {report["xla_mfu"]:.0%} | '
    f'{report["calibrated_seconds"]:.3g} s '
    f'+-{report["calibration_error"]:.0%}'
    f'{f", without {unknown} fusions" if unknown else ""} | '
    f'{_gib(report["peak_bytes"], report)} |'
  )


def step_line(row: Row, reports: dict[str, Report]) -> str:
  """Returns the second table's line of a row of grpo.

  Args:
    row: the row.
    reports: of all programs of the stage.
  """
  config = harness.load_config('configs/grpo.py', row.overrides)
  update, decode = reports['grpo_update'], reports['decode']
  waves = config.prompts_per_rollout / decode['micro_batch_prompts']
  waves *= config.group_size / decode['num_generations']
  tokens = waves * decode['generation_size']
  prefills = (
    config.prompts_per_rollout / reports['prefill']['micro_batch_prompts']
  )
  seconds = {
    'update': update['calibrated_seconds'],
    'reference': reports['reference']['calibrated_seconds'],
    'prefill': prefills * reports['prefill']['calibrated_seconds'],
    'decode': tokens * decode['calibrated_seconds'],
  }
  total = sum(seconds.values())
  state = update['parameters_bytes'] + update['optimizer_bytes']
  return (
    f'| {_name(row)} | '
    + ' | '.join(f'{x:.3g}' for x in (*seconds.values(), total))
    + f' s | {2000 * total / 3600:.3g} h +-{update["calibration_error"]:.0%} | '
    f'{_gib(update["peak_bytes"], update)} | '
    f'{_gib(decode["peak_bytes"] + state, decode)} |'
  )


def _name(row: Row) -> str:
  size, *adapter = row.size.upper().split('-')
  name = f'{size}, {row.topology}'
  if not adapter:
    return name
  config = harness.load_config(f'configs/{row.stage}.py', row.overrides)
  lora = config.get('train', config).lora
  return f'{name}, LoRA on {lora.base_dtype}'


def _gib(count: int, report: Report) -> str:
  return f'{count / GIB:.1f} of {report["memory_bytes"] / GIB:g} GiB'


def main() -> None:
  """Compiles programs and prints the tables of all reports."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('folder', type=pathlib.Path, help='of the reports')
  parser.add_argument(
    'words', nargs='*', help='compile programs that have all of these words'
  )
  parser.add_argument(
    '--print_only', action='store_true', help='compile nothing'
  )
  args = parser.parse_args()
  args.folder.mkdir(parents=True, exist_ok=True)
  programs = [
    (row, program)
    for row in read_rows()
    for program in PROGRAMS.get(row.stage, ())
  ]
  wanted = [x for x in programs if {*args.words} <= {*x[0][:3], x[1]}]
  if not wanted:
    parser.error(f'no row of configs/tpu.txt has {" ".join(args.words)}')
  for row, program in [] if args.print_only else wanted:
    path = row.report(args.folder, program)
    if not path.exists():
      compile_program(row, program, path)
  print_tables(args.folder)


def print_tables(folder: pathlib.Path) -> None:
  """Prints the tables of all reports in a folder."""
  print(
    '| model, slice | program | data x fsdp x tensor | micro-batches x '
    'prompts | bound | XLA (waits, kernels) | MFU | calibrated | memory |'
  )
  print('| ' + '--- | ' * 9)
  steps = []
  for row in read_rows():
    reports = {
      program: json.loads(path.read_text())
      for program in PROGRAMS.get(row.stage, ())
      if (path := row.report(folder, program)).exists()
    }
    for report in reports.values():
      print(line(row, report))
    if row.stage == 'grpo' and len(reports) == len(PROGRAMS['grpo']):
      steps.append(step_line(row, reports))
  print(
    '\n| model, slice | update | reference | prefill | decode | step | '
    '2000 steps | memory of the update | of rollouts |'
  )
  print('| ' + '--- | ' * 9, *steps, sep='\n')


if __name__ == '__main__':
  main()
