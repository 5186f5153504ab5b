"""Start-up of several processes (a TPU pod, or two on one machine)."""

import os

import jax
from absl import logging


def start() -> None:
  """Joins the processes of a run; must come before the first JAX array.

  On a TPU pod JAX finds the other hosts by itself. Elsewhere the three
  variables GRM_COORDINATOR (host:port), GRM_NUM_PROCESSES and GRM_PROCESS_ID
  say who is who. A single process starts nothing.

  Raises:
    ValueError: only some of the three variables are set.
  """
  names = ('GRM_COORDINATOR', 'GRM_NUM_PROCESSES', 'GRM_PROCESS_ID')
  given = [os.environ.get(name) for name in names]
  if all(given):
    jax.distributed.initialize(given[0], int(given[1]), int(given[2]))
  elif any(given):
    missing = [n for n, v in zip(names, given, strict=True) if not v]
    raise ValueError(f'set {", ".join(missing)} too, or none of {names}')
  elif len(os.environ.get('TPU_WORKER_HOSTNAMES', '').split(',')) > 1:
    jax.distributed.initialize()
  logging.info(
    'process %d of %d, %d local of %d %s devices',
    jax.process_index(),
    jax.process_count(),
    jax.local_device_count(),
    jax.device_count(),
    jax.devices()[0].platform,
  )
