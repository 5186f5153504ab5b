"""Start and end of a run with several processes.

Examples are a TPU pod, or two processes on one machine.
"""

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from grm_jax.errors import UserError

# A process that sends no heartbeat for this many seconds counts as lost, and
# JAX ends the other processes.
HEARTBEAT_S = 60
# Process 0 runs the coordination service. After an error it waits this many
# seconds before it exits, so that other processes can report their own error.
EXIT_GRACE_S = 5

_LOST_PEER = re.compile(
  r'Gloo|NCCL|coordination service|heartbeat|[Bb]arrier .*timed out|'
  r'[Tt]ask .* (?:died|has been lost)|Connection (?:reset|closed) by peer'
)
T = TypeVar('T')

_VARIABLES = ('GRM_COORDINATOR', 'GRM_NUM_PROCESSES', 'GRM_PROCESS_ID')


def initialize() -> None:
  """Joins the processes of a run; call it before any JAX array is made.

  The environment variables GRM_COORDINATOR (host:port), GRM_NUM_PROCESSES and
  GRM_PROCESS_ID describe the processes. With GRM_COORDINATOR=auto JAX finds
  them itself, which works on TPU VMs, Slurm and Kubernetes; this is the
  default if TPU_WORKER_HOSTNAMES lists several hosts. In all other cases the
  run has a single process.

  Raises:
    UserError: some but not all of the variables are set, a number is not a
      whole number, or JAX_PLATFORMS names a platform without devices.
  """
  try:
    _join()
    _log_devices()
  except (AssertionError, RuntimeError) as error:
    # JAX raises both if a platform has no plugin or no devices.
    platforms = os.environ.get('JAX_PLATFORMS')
    if not platforms or jax.distributed.is_initialized():
      raise
    reason = ' '.join(str(error).split()) or 'it has no plugin or no devices'
    raise UserError(
      f'JAX_PLATFORMS is {platforms!r}, but JAX cannot use it: {reason}; set '
      'JAX_PLATFORMS=cpu, or install the plugin for this platform'
    ) from error


def _join() -> None:
  values = [os.environ.get(name) for name in _VARIABLES]
  hosts = os.environ.get('TPU_WORKER_HOSTNAMES', '')
  # On machines without a TPU libtpu sets the variable to a warning sentence.
  on_pod = ',' in hosts and not hosts.startswith('WARNING')
  if values[0] == 'auto' or (on_pod and not any(values)):
    _initialize_jax()
  elif all(values):
    _initialize_jax(values[0], *_process_numbers(values[1:]))
  elif any(values):
    missing = [n for n, v in zip(_VARIABLES, values, strict=True) if not v]
    raise UserError(
      f'{", ".join(missing)} not set; set all of {", ".join(_VARIABLES)}, or '
      'none for a single process'
    )


def _log_devices() -> None:
  logging.info(
    'process %d of %d, %d local devices of %d, platform %s',
    jax.process_index(),
    jax.process_count(),
    jax.local_device_count(),
    jax.device_count(),
    jax.devices()[0].platform,
  )


def _process_numbers(values):
  """Returns (number of processes, index of this process) as ints."""
  for name, value in zip(_VARIABLES[1:], values, strict=True):
    if not value.isdecimal():
      raise UserError(f'{name} is {value!r}; set it to a whole number')
  return map(int, values)


def _initialize_jax(*addresses):
  jax.distributed.initialize(*addresses, heartbeat_timeout_seconds=HEARTBEAT_S)


def is_multiprocess() -> bool:
  """Returns whether this run has several processes."""
  return jax.distributed.is_initialized() and jax.process_count() > 1


def is_lost_peer(error: BaseException) -> bool:
  """Returns whether an error means that another process has ended.

  The exceptions of collectives are RuntimeErrors or ValueErrors with a text of
  the library that communicates.
  """
  return bool(_LOST_PEER.search(str(error)))


def exit_process(status: int) -> None:
  """Ends this process after an error.

  With several processes it does not run exit handlers: JAX's would wait for
  the other processes, which may be waiting for this one in a collective.

  Args:
    status: the exit code.
  """
  if not is_multiprocess():
    sys.exit(status)
  if not jax.process_index():
    time.sleep(EXIT_GRACE_S)
  logging.flush()
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


def broadcast_from_host0(number: int) -> int:
  """Returns the number that process 0 passed, in every process."""
  if jax.process_count() == 1:
    return number
  return int(multihost_utils.broadcast_one_to_all(number))


def run_on_all(read: Callable[[], T]) -> T:
  """Returns what `read` returns in this process.

  All processes must call it at the same point.

  Raises:
    UserError: in all processes, if `read` raises it in any process.
  """
  if jax.process_count() == 1:
    return read()
  try:
    result, message = read(), ''
  except UserError as error:
    result, message = None, str(error)
  for index, text in enumerate(_gather_texts(message)):
    if text:
      raise UserError(f'process {index}: {text}')
  return cast(T, result)


@contextlib.contextmanager
def enter_on_all(context: contextlib.AbstractContextManager) -> Iterator[None]:
  """Enters a context in every process; all processes must call it.

  Raises:
    UserError: in all processes, if entering raises it in any process.
  """
  with contextlib.ExitStack() as stack:
    run_on_all(lambda: stack.enter_context(context))
    yield


def agree(read: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
  """Returns what `read` returns, if it returns the same in all processes.

  All processes must call it at the same point.

  Args:
    read: returns JSON values by name, for example of config keys.

  Raises:
    UserError: in all processes, if `read` raises it in any process or returns
      different values. The message names the process and the first value that
      differs.
  """
  values = dict(run_on_all(read))
  if jax.process_count() > 1:
    first, *others = map(json.loads, _gather_texts(json.dumps(values)))
    for index, other in enumerate(others, 1):
      _check_equal(first, other, index)
  return values


def _check_equal(
  first: Mapping[str, Any], other: Mapping[str, Any], index: int
) -> None:
  for key in sorted({*first, *other}):
    if first.get(key) != other.get(key):
      raise UserError(
        f'{key} is {other.get(key)!r} in process {index} but '
        f'{first.get(key)!r} in process 0; start all processes with the same '
        'command, files and version of grm_jax'
      )


def _gather_texts(text: str) -> list[str]:
  """Returns the texts of all processes."""
  data = np.frombuffer(text.encode(), np.uint8)
  lengths = multihost_utils.process_allgather(np.int32(data.size))
  padded = np.zeros(max(1, lengths.max()), np.uint8)
  padded[: data.size] = data
  rows = multihost_utils.process_allgather(padded)
  return [
    bytes(row[:length]).decode()
    for row, length in zip(rows, lengths, strict=True)
  ]


def barrier(name: str) -> None:
  """Waits until all processes have reached the barrier.

  Args:
    name: appears in error messages; the same in all processes.
  """
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)
