"""Runs one command in several real processes that form one JAX run."""

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


def run_together(arguments, count=2, devices=4):
  """Runs `python *arguments` in `count` processes of `devices` CPU devices.

  Returns:
    The standard output of each; raises AssertionError with all output when
    one fails.
  """
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    port = probe.getsockname()[1]
  children = []
  for number in range(count):
    environment = {
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
      'GRM_COORDINATOR': f'127.0.0.1:{port}',
      'GRM_NUM_PROCESSES': str(count),
      'GRM_PROCESS_ID': str(number),
    }
    children.append(
      subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
    )
  # All are read at once: one that waits to be read holds up the others.
  try:
    with futures.ThreadPoolExecutor(count) as pool:
      done = list(pool.map(lambda x: x.communicate(timeout=HANG), children))
  finally:
    for child in children:
      child.kill()
  told = '\n'.join(out + err for out, err in done)
  assert all(child.returncode == 0 for child in children), told
  return [out for out, _ in done]
