"""TPU slices by name, described by libtpu on a machine without a TPU."""

import os
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from grm_jax.errors import UserError
from grm_jax.sharding.chip_specs import CHIPS, ChipSpec

GENERATIONS = ('v4', 'v5e', 'v5p', 'v6e', 'tpu7x')


def devices(name: str, num_slices: int = 1) -> Sequence[jax.Device]:
  """Returns the devices of a slice: programs compile for them, none runs.

  Args:
    name: generation and shape of a slice, such as 'v5e:4x4'.
    num_slices: number of such slices, joined by the data-centre network.

  Raises:
    UserError: an unknown generation or shape, or libtpu is not installed.
  """
  chip(name)
  # Without this variable libtpu waits for a metadata server of a TPU VM.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  # libtpu locks the chip against a second process; here there is no chip.
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  options: dict[str, Any] = {'num_slices': num_slices}
  if name.startswith('v4:'):
    # JAX uses the two cores of a v4 chip as one device ("megacore").
    options['chip_config_name'] = 'megacore'
  if name.endswith(':1x1'):
    # libtpu assumes hosts of four chips.
    options['chips_per_host_bounds'] = (1, 1, 1)
  try:
    return topologies.get_topology_desc(
      platform='tpu', topology_name=name, **options
    ).devices
  except (RuntimeError, jax.errors.JaxRuntimeError) as error:
    raise UserError(
      f'config.topology={name!r} cannot be described: {error}; install libtpu '
      '(pip install libtpu) and give a shape that this generation has'
    ) from error


def chip(name: str) -> ChipSpec:
  """Returns the chip of a slice.

  Args:
    name: as in `devices`.

  Raises:
    UserError: an unknown generation, or not a name of a slice.
  """
  generation = name.split(':')[0]
  if generation not in GENERATIONS or ':' not in name:
    raise UserError(
      f'config.topology is {name!r}; give GENERATION:SHAPE such as v5p:4x4x4, '
      f'with a generation of {", ".join(GENERATIONS)}'
    )
  return CHIPS[generation]
