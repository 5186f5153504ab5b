"""Runs one command in several real processes that form one JAX run."""

import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def run_together(arguments, count=2, devices=4, timeout=240):
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
  try:
    done = [child.communicate(timeout=timeout) for child in children]
  finally:
    for child in children:
      child.kill()
  told = '\n'.join(out + err for out, err in done)
  assert all(child.returncode == 0 for child in children), told
  return [out for out, _ in done]
