"""TPU slices by name, on a machine that has none.

libtpu can describe a slice ("v5p:4x4x4") and compile for it on any CPU.
"""

import os
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from grm_jax.errors import UserError
from grm_jax.sharding.chip_specs import CHIPS, ChipSpec

GENERATIONS = ('v4', 'v5e', 'v5p', 'v6e')


def devices(name: str, slices: int = 1) -> Sequence[jax.Device]:
  """The devices of slices `name`; they can be compiled for, not run on.

  Args:
    name: generation and shape of a slice, such as 'v5e:4x4'.
    slices: how many of them, joined by the data-centre network.

  Raises:
    UserError: an unknown generation or shape, or libtpu is not installed.
  """
  chip(name)
  # Without these libtpu waits for a metadata server that is not there.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  # It guards a chip against two users; here there is no chip.
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  how = {'num_slices': slices}
  if name.startswith('v4:'):
    # By default libtpu tells of the two cores of a v4; JAX has them as one.
    how['chip_config_name'] = 'megacore'
  try:
    return topologies.get_topology_desc(
      platform='tpu', topology_name=name, **how
    ).devices
  except (RuntimeError, jax.errors.JaxRuntimeError) as error:
    raise UserError(
      f'config.topology {name!r} cannot be described: {error}. libtpu must be '
      'installed (pip install libtpu) and know the shape'
    ) from error


def chip(name: str) -> ChipSpec:
  """The chip that the slice `name` is made of.

  Raises:
    UserError: an unknown generation, or no name of a slice.
  """
  generation = name.split(':')[0]
  if generation not in GENERATIONS or ':' not in name:
    raise UserError(
      f'config.topology is {name!r}; expected GENERATION:SHAPE such as '
      f'v5p:4x4x4, with one of {", ".join(GENERATIONS)}'
    )
  return CHIPS[generation]
