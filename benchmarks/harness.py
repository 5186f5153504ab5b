"""Shared parts of the benchmarks: workload selection, peak memory, report."""

import argparse
import json
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from benchmarks import hardware

ROOT = pathlib.Path(__file__).parents[1]
# Error texts of JAX, NumPy and torch for a failed allocation.
_OUT_OF_MEMORY_TEXTS = (
  'RESOURCE_EXHAUSTED',
  'MemoryError',
  'not enough memory',
)


def load_config(path: str, overrides: Sequence[str]) -> ConfigDict:
  """Returns the config of a command line.

  Args:
    path: value of --config, such as configs/serve.py:tiny.
    overrides: other arguments, such as --config.seed=1.
  """
  values = flags.FlagValues()
  argv = ['main', f'--config={ROOT / path}', *overrides]
  config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=argv)
  values(argv)
  return values.config


def peak_resident_bytes() -> int:
  """Returns the largest resident set size of this process so far.

  getrusage's ru_maxrss is unsuitable: a process inherits it from its parent.
  """
  lines = pathlib.Path('/proc/self/status').read_text().splitlines()
  line = next(line for line in lines if line.startswith('VmHWM'))
  return 1024 * int(line.split()[1])


def measure_peaks(
  module: str,
  workload_name: str,
  contenders: Collection[str],
  directory: str,
  arguments: Sequence[str],
) -> tuple[dict[str, int], dict[str, str]]:
  """Measures the peak memory of each contender in a separate process.

  A contender that runs out of memory then ends neither the other contenders
  nor the benchmark.

  Args:
    module: benchmark module, which prints the bytes for --memory-of.
    workload_name: name of the workload.
    contenders: names of the contenders, grm_jax first.
    directory: directory of the weights.
    arguments: command-line arguments of this process.

  Returns:
    The peak in bytes by contender, and the error message of each contender
    that ran out of memory.

  Raises:
    RuntimeError: a contender failed for another reason, or grm_jax failed.
  """
  peaks, left_out = {}, {}
  for contender in contenders:
    target = json.dumps([workload_name, contender, directory])
    command = [sys.executable, '-m', module, *arguments]
    process = subprocess.run(
      [*command, f'--memory-of={target}'],
      cwd=ROOT,
      capture_output=True,
      text=True,
    )
    if not process.returncode:
      peaks[contender] = int(process.stdout.split()[-1])
    elif peaks and (reason := _out_of_memory_reason(process)):
      left_out[contender] = reason
      print(f'\n{workload_name}: {contender} ran out of memory: {reason}')
    else:
      raise RuntimeError(
        f'memory measurement of {contender} failed: {process.stderr}'
      )
  return peaks, left_out


def _out_of_memory_reason(process: subprocess.CompletedProcess) -> str:
  """Returns the out-of-memory message; '' for any other failure."""
  if process.returncode == -signal.SIGKILL:
    return 'killed by the system'
  matches = (
    line
    for line in process.stderr.splitlines()
    if any(text in line for text in _OUT_OF_MEMORY_TEXTS)
  )
  return next(matches, '').strip()


def select(only: str, available: Collection[str]) -> list[str]:
  """Parses --only; '' selects everything, an unknown name exits."""
  names = only.split(',') if only else list(available)
  unknown = sorted(set(names) - set(available))
  if unknown:
    sys.exit(
      f'error: --only={unknown[0]} is unknown; available: '
      f'{", ".join(available)}'
    )
  return names


def run_workloads(
  options: argparse.Namespace,
  names: Sequence[str],
  compare: Callable[[str], dict],
) -> None:
  """Runs the workloads in order; rewrites the --json file after each."""
  machine = hardware.describe()
  result = {'settings': vars(options), **machine}
  print(hardware.format_description(machine))
  for name in names:
    result[name] = compare(name)
    write_json(options.json, result)


def write_json(path: str | None, result: dict) -> None:
  """Writes the result as JSON if a path is given."""
  if path:
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(path).write_text(json.dumps(result, indent=2) + '\n')
