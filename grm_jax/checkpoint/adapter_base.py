"""The base of an adapter: which checkpoint it is, and where it is now.

A checkpoint with an adapter stores the path, the step and a digest of its base.
The path may be wrong after folders have moved; the digest decides.
"""

import dataclasses
import hashlib
import os
from collections.abc import Iterable
from typing import Any

from grm_jax.checkpoint import orbax_checkpoint
from grm_jax.errors import UserError
from grm_jax.model.lora import AdapterConfig

RANDOM = 'random'  # instead of a directory: a tiny model with random weights
_SEED = 'seed '  # begins the digest of random parameters


def provenance(
  directory: str, step: int | None, seed: int = 0
) -> dict[str, Any]:
  """Returns where parameters come from, as JSON values.

  Args:
    directory: a model directory, or RANDOM.
    step: None for the latest.
    seed: of random parameters.

  Returns:
    checkpoint (the directory), step (the resolved number) and digest, which
    identifies the parameters wherever the directory is.
  """
  if directory == RANDOM:
    return {'checkpoint': directory, 'step': None, 'digest': f'{_SEED}{seed}'}
  identity = orbax_checkpoint.identity(directory, step)
  text = f'{identity["params"]} {identity["model"]}'
  return {
    'checkpoint': str(directory),
    'step': identity['step'],
    'digest': hashlib.sha256(text.encode()).hexdigest()[:12],
  }


def new_adapter(
  target: str,
  base: str,
  step: int | None,
  *,
  rank: int,
  alpha: float,
  targets: Iterable[str],
  base_dtype: str,
  seed: int = 0,
) -> AdapterConfig:
  """Returns the configuration of a new adapter on a model directory.

  Args:
    target: model directory that the adapter will be written to.
    base: model directory of the base, or RANDOM.
    step: its step; None for the latest.
    rank: see AdapterConfig, as the following.
    alpha: the factor of the change, times the rank.
    targets: names of the adapted kernels.
    base_dtype: dtype of the frozen parameters.
    seed: seed of a random base.
  """
  origin = provenance(base, step, seed)
  from_here = ''
  if base != RANDOM:
    base = str(orbax_checkpoint.absolute_path(base))
    if '://' not in base and '://' not in target:
      from_here = os.path.relpath(base, target)
  return AdapterConfig(
    rank,
    alpha,
    tuple(targets),
    base_dtype,
    base,
    base_step=origin['step'],
    base_digest=origin['digest'],
    base_from_here=from_here,
  )


def seed_of(adapter: AdapterConfig) -> int:
  """Returns the seed of a random base."""
  return int(adapter.base_digest.removeprefix(_SEED))


def find(
  directory: str, adapter: AdapterConfig, candidates: Iterable[str] = ()
) -> str:
  """Returns the path at which the base of an adapter is now.

  Args:
    directory: of the adapter.
    adapter: the adapter.
    candidates: other directories that may be the base.

  Raises:
    UserError: no directory has the base.
  """
  paths = [adapter.base]
  if adapter.base_from_here:
    beside = os.path.join(directory, adapter.base_from_here)
    paths.append(os.path.normpath(beside))
  reasons = []
  for path in (*paths, *filter(None, candidates)):
    try:
      digest = provenance(path, adapter.base_step)['digest']
    except UserError as error:
      reasons.append(str(error))
      continue
    if digest == adapter.base_digest:
      return path
    reasons.append(f'step {adapter.base_step} of {path} has other parameters')
  raise UserError(
    f'{directory} is an adapter, trained on step {adapter.base_step} of '
    f'{adapter.base}: {reasons[0]}. Restore this base, or give its new path as '
    '--config.base of configs/convert.py'
  )


def check(directory: str, step: int | None) -> None:
  """Raises UserError if a checkpoint or a base of it is not there."""
  adapter = of_item(orbax_checkpoint.read_json(directory, 'model', step))
  if adapter is not None and adapter.base != RANDOM:
    check(find(directory, adapter), adapter.base_step)


def of_item(item: dict[str, Any]) -> AdapterConfig | None:
  """Returns the adapter in the `model` item of a checkpoint.

  Raises:
    KeyError, TypeError: it was not written by `to_item`.
  """
  adapter = item.get('adapter')
  if adapter is None:
    return None
  return AdapterConfig(**adapter | {'targets': tuple(adapter['targets'])})


def to_item(adapter: AdapterConfig) -> dict[str, Any]:
  """Returns an adapter as JSON values."""
  return dataclasses.asdict(adapter)
