"""Runs one command in several processes that form one JAX run."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
from concurrent import futures

ROOT = pathlib.Path(__file__).parents[1]
# Flags of a run in a process of its own. Its programs run many times and come
# from the compilation cache, so XLA optimizes a little: the whole pipeline
# takes half as long as at level 0.
RUN_FLAGS = (
  '--xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true '
  '--xla_cpu_use_fusion_emitters=false'
)
# After this many seconds a test counts as hanging. It is not a limit on speed:
# a machine can be busy or slow.
HANG_TIMEOUT_S = 900


@contextlib.contextmanager
def start_processes(arguments, count=2, devices=4, differences=(), folders=()):
  """Starts `python *arguments` in `count` processes that form one run.

  Args:
    arguments: command line after `python`.
    count: number of processes.
    devices: number of CPU devices of each process.
    differences: further arguments of the last process.
    folders: working directory of each process; () for the project's root.

  Yields:
    The processes; their standard output and error are pipes. Processes that
    are still running after the block are killed.
  """
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    port = probe.getsockname()[1]
  environment = {
    **os.environ,
    'PYTHONPATH': str(ROOT),
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f'{RUN_FLAGS} '
    f'--xla_force_host_platform_device_count={devices}',
  }
  if count > 1:
    environment['GRM_COORDINATOR'] = f'127.0.0.1:{port}'
    environment['GRM_NUM_PROCESSES'] = str(count)
  children = [
    subprocess.Popen(
      [
        sys.executable,
        *map(str, arguments),
        *(differences if i == count - 1 else ()),
      ],
      cwd=folders[i] if folders else ROOT,
      env=environment | ({'GRM_PROCESS_ID': str(i)} if count > 1 else {}),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(count)
  ]
  try:
    yield children
  finally:
    for child in children:
      child.kill()


def collect_output(children):
  """Waits for the processes; returns (stdout, stderr) of each."""
  # Read all pipes at the same time: a process with a full pipe blocks, and the
  # others wait for it.
  with futures.ThreadPoolExecutor(len(children)) as pool:
    return list(
      pool.map(lambda x: x.communicate(timeout=HANG_TIMEOUT_S), children)
    )


def run_processes(arguments, count=2, devices=4):
  """Runs `python *arguments` in `count` processes; see `start_processes`.

  Returns:
    The standard output of each process.

  Raises:
    AssertionError: a process failed; the message is the output of all.
  """
  with start_processes(arguments, count, devices) as children:
    outputs = collect_output(children)
  text = '\n'.join(stdout + stderr for stdout, stderr in outputs)
  assert all(child.returncode == 0 for child in children), text
  return [stdout for stdout, _ in outputs]
