"""What benchmarks of whole steps share: chosen cases, peaks, and the report."""

import argparse
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence

from benchmarks import sampler

ROOT = pathlib.Path(__file__).parents[1]


def most_resident() -> int:
  """Bytes of this process's largest resident set so far.

  Not getrusage's ru_maxrss, which a process inherits from its parent.
  """
  lines = pathlib.Path('/proc/self/status').read_text().splitlines()
  found = next(line for line in lines if line.startswith('VmHWM'))
  return 1024 * int(found.split()[1])


def memory(
  module: str,
  name: str,
  contender: str,
  directory: str,
  arguments: Sequence[str],
) -> int:
  """What `module` prints for --memory-of, in a process of its own.

  Args:
    module: a benchmark, run as this one was.
    name, contender: the case, and who.
    directory: of the weights.
    arguments: this process's own.
  """
  what = json.dumps([name, contender, directory])
  command = [*(sys.executable, '-m', module, *arguments), f'--memory-of={what}']
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  if done.returncode:
    raise RuntimeError(f'{contender} in a process of its own: {done.stderr}')
  return int(done.stdout.split()[-1])


def compare_to(row: dict, mine: dict) -> None:
  """Adds how many times ours a row's time and peak are."""
  row['times_ours'] = row['median_seconds'] / mine['median_seconds']
  row['peak_times_ours'] = row['peak_bytes'] / mine['peak_bytes']


def chosen(only: str, known: Collection[str]) -> list[str]:
  """Names of cases that --only picks, all by default; exits for a wrong one."""
  names = only.split(',') if only else list(known)
  wrong = sorted(set(names) - set(known))
  if wrong:
    sys.exit(f'--only={wrong[0]}; it can be {", ".join(known)}')
  return names


def report(
  options: argparse.Namespace,
  names: Sequence[str],
  compare: Callable[[str], dict],
) -> None:
  """Compares case by case; --json is written after each of them."""
  result = {
    'settings': vars(options),
    'cores': os.cpu_count(),
    'load': os.getloadavg(),
    'versions': sampler.versions(),
  }
  print(f'{result["cores"]} cores, load {result["load"][0]:.2f}; ', end='')
  print(result['versions'])
  for name in names:
    result[name] = compare(name)
    if options.json:
      text = json.dumps(result, indent=2) + '\n'
      pathlib.Path(options.json).write_text(text)
