"""What benchmarks share: chosen cases, peaks in processes, and the report."""

import argparse
import json
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence

from benchmarks import hardware

ROOT = pathlib.Path(__file__).parents[1]


def most_resident() -> int:
  """Bytes of this process's largest resident set so far.

  Not getrusage's ru_maxrss, which a process inherits from its parent.
  """
  lines = pathlib.Path('/proc/self/status').read_text().splitlines()
  found = next(line for line in lines if line.startswith('VmHWM'))
  return 1024 * int(found.split()[1])


# What JAX, NumPy and torch say of an allocation that was refused.
_REFUSED = ('RESOURCE_EXHAUSTED', 'MemoryError', 'not enough memory')


def peaks(
  module: str,
  name: str,
  contenders: Collection[str],
  directory: str,
  arguments: Sequence[str],
) -> tuple[dict[str, int], dict[str, str]]:
  """Most resident bytes of each contender, and why others did not run.

  Each runs in a process of its own, so that one which needs more memory than
  this machine has ends neither the others nor the benchmark.

  Args:
    module: a benchmark, run as this one was, that prints the bytes for
      --memory-of.
    name: of the case.
    contenders: their names, ours first.
    directory: of the weights.
    arguments: this process's own.

  Raises:
    RuntimeError: one failed for another reason, or ours at all.
  """
  found, left_out = {}, {}
  for contender in contenders:
    what = json.dumps([name, contender, directory])
    command = [sys.executable, '-m', module, *arguments, f'--memory-of={what}']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if not done.returncode:
      found[contender] = int(done.stdout.split()[-1])
    elif found and (why := _memory_missed(done)):
      left_out[contender] = why
      print(f'\n{name}: {contender} does not fit in memory here: {why}')
    else:
      raise RuntimeError(f'{contender} in a process of its own: {done.stderr}')
  return found, left_out


def _memory_missed(done: subprocess.CompletedProcess) -> str:
  """The line that says so, '' where something else was the cause."""
  if done.returncode == -signal.SIGKILL:
    return 'killed by the system'
  lines = done.stderr.splitlines()
  refused = (x for x in lines if any(word in x for word in _REFUSED))
  return next(refused, '').strip()


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
  """Names this machine, compares case by case; --json grows with each."""
  here = hardware.here()
  result = {'settings': vars(options), **here}
  print(hardware.line(here))
  for name in names:
    result[name] = compare(name)
    write(options.json, result)


def write(path: str | None, result: dict) -> None:
  """The result as JSON, if a path was given."""
  if path:
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(path).write_text(json.dumps(result, indent=2) + '\n')
