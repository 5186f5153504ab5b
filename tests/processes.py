"""Runs one command in several real processes that form one JAX run."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
from concurrent import futures

ROOT = pathlib.Path(__file__).parents[1]
# Seconds after which what a test waits for hangs: never a measure of speed, for
# a machine can be busy or slow.
HANG = 900


@contextlib.contextmanager
def begun(arguments, count=2, devices=4):
  """`count` processes of `python *arguments` that form one run.

  Args:
    devices: CPU devices of each.

  Yields:
    The processes, whose standard output and error are pipes. What still runs
    after the block is killed.
  """
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    port = probe.getsockname()[1]
  environment = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
  }
  if count > 1:
    environment['GRM_COORDINATOR'] = f'127.0.0.1:{port}'
    environment['GRM_NUM_PROCESSES'] = str(count)
  children = [
    subprocess.Popen(
      [sys.executable, *map(str, arguments)],
      cwd=ROOT,
      env=environment | ({'GRM_PROCESS_ID': str(n)} if count > 1 else {}),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for n in range(count)
  ]
  try:
    yield children
  finally:
    for child in children:
      child.kill()


def ends(children):
  """(standard output, error) of each when all have ended."""
  # All are read at once: one that waits to be read holds up the others.
  with futures.ThreadPoolExecutor(len(children)) as pool:
    return list(pool.map(lambda x: x.communicate(timeout=HANG), children))


def run_together(arguments, count=2, devices=4):
  """Runs `python *arguments` in `count` processes of `devices` CPU devices.

  Returns:
    The standard output of each; raises AssertionError with all output when
    one fails.
  """
  with begun(arguments, count, devices) as children:
    done = ends(children)
  told = '\n'.join(out + err for out, err in done)
  assert all(child.returncode == 0 for child in children), told
  return [out for out, _ in done]
