"""One of two processes with 4 CPU devices each; saves and restores.

Run by test_orbax_checkpoint.py:

    python -m tests.checkpoint.checkpoints_two_processes DIRECTORY
"""

import sys

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from grm_jax.checkpoint import orbax_checkpoint
from grm_jax.checkpoint.array_checksum import array_checksum
from grm_jax.sharding import distributed


def main(directory: str) -> None:
  jax.config.update('jax_numpy_rank_promotion', 'raise')
  distributed.initialize()
  devices = np.array(jax.devices())
  assert devices.size == 8
  mesh = Mesh(devices.reshape(4, 2), ('a', 'b'), (AxisType.Auto,) * 2)
  values = {
    'w': np.arange(64 * 16, dtype=np.float32).reshape(64, 16),
    'count': np.int32(7),
  }

  def make_global(value, spec):
    return jax.make_array_from_callback(
      value.shape, NamedSharding(mesh, spec), lambda index: value[index]
    )

  params = {
    'w': make_global(values['w'], PartitionSpec('a', 'b')),
    'count': make_global(values['count'], PartitionSpec()),
  }
  with orbax_checkpoint.CheckpointManager(directory, max_to_keep=2) as writer:
    for step in (1, 2, 3):
      writer.save(step, params, {'mu': params['w']}, meta={'step': step})
    assert writer.steps() == [2, 3]
  # Reversed device order: every process reads what the other one wrote.
  reversed_mesh = Mesh(
    devices[::-1].reshape(2, 4), ('a', 'b'), (AxisType.Auto,) * 2
  )
  sharding = NamedSharding(reversed_mesh, PartitionSpec('a', 'b'))
  replicated = NamedSharding(reversed_mesh, PartitionSpec())
  abstract = {
    'w': jax.ShapeDtypeStruct((64, 16), np.float32, sharding=sharding),
    'count': jax.ShapeDtypeStruct((), np.int32, sharding=replicated),
  }
  mu = {'mu': abstract['w']}
  restored, opt_state = orbax_checkpoint.restore(directory, abstract, mu)
  for name, array in {**restored, 'w2': opt_state['mu']}.items():
    expected = values[name[:1] if name == 'w2' else name]
    assert len(array.addressable_shards) == 4
    for shard in array.addressable_shards:
      np.testing.assert_array_equal(shard.data, expected[shard.index])
  assert orbax_checkpoint.read_json(directory, 'meta') == {'step': 3}
  checksum = int(array_checksum(restored['w']))
  print(f'process {jax.process_index()} checksum {checksum}')


if __name__ == '__main__':
  main(sys.argv[1])
