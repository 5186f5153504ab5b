"""Start-up of several processes (a TPU pod, or two on one machine)."""

import os
import sys
import time

import jax
from absl import logging
from jax.experimental import multihost_utils

from grm_jax.errors import UserError

# Seconds without a sign of life after which a process counts as gone, and JAX
# ends the others.
HEARTBEAT_S = 60
# Seconds that the first process, which the others hear from, lives on to let
# them say what is wrong with them.
EXIT_GRACE_S = 5


def initialize() -> None:
  """Joins the processes of a run; must come before the first JAX array.

  The three variables GRM_COORDINATOR (host:port), GRM_NUM_PROCESSES and
  GRM_PROCESS_ID say who is who. GRM_COORDINATOR=auto lets JAX find the other
  hosts by itself, which it can on TPU VMs, Slurm and Kubernetes; where
  TPU_WORKER_HOSTNAMES lists several hosts that is the default. A single
  process starts nothing.

  Raises:
    UserError: only some of the three variables are set, or one that must be a
      whole number is not.
  """
  names = ('GRM_COORDINATOR', 'GRM_NUM_PROCESSES', 'GRM_PROCESS_ID')
  given = [os.environ.get(name) for name in names]
  hosts = os.environ.get('TPU_WORKER_HOSTNAMES', '')
  # libtpu puts a sentence there on machines that have no TPU.
  several = ',' in hosts and not hosts.startswith('WARNING')
  if given[0] == 'auto' or (several and not any(given)):
    _join()
  elif all(given):
    for name, value in zip(names[1:], given[1:], strict=True):
      if not value.isdecimal():
        raise UserError(f'{name} is {value!r}; it must be a whole number')
    _join(given[0], int(given[1]), int(given[2]))
  elif any(given):
    missing = [n for n, v in zip(names, given, strict=True) if not v]
    raise UserError(f'set {", ".join(missing)} too, or none of {names}')
  logging.info(
    'process %d of %d, %d local of %d %s devices',
    jax.process_index(),
    jax.process_count(),
    jax.local_device_count(),
    jax.device_count(),
    jax.devices()[0].platform,
  )


def _join(*known):
  jax.distributed.initialize(*known, heartbeat_timeout_seconds=HEARTBEAT_S)


def is_multiprocess() -> bool:
  """Whether this process has others that may wait for it."""
  return jax.distributed.is_initialized() and jax.process_count() > 1


def exit_process(status: int) -> None:
  """Ends this process after an error.

  Several processes: at once, for the ordinary end waits until all of them come
  to theirs, and they may be waiting for this one.
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
  """What the first process says, in all of them."""
  if jax.process_count() == 1:
    return number
  return int(multihost_utils.broadcast_one_to_all(number))


def barrier(name: str) -> None:
  """Goes on when all processes have come here; `name` is for messages."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)
