"""One of two processes of 4 CPU devices; run by test_checkpoints.py.

Usage: python -m tests.training.checkpoints_two_processes DIRECTORY
"""

import sys

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from grm_jax.checkpoint import array_checksum, orbax_checkpoint
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

  def placed(value, spec):
    return jax.make_array_from_callback(
      value.shape, NamedSharding(mesh, spec), lambda index: value[index]
    )

  params = {
    'w': placed(values['w'], PartitionSpec('a', 'b')),
    'count': placed(values['count'], PartitionSpec()),
  }
  with orbax_checkpoint.CheckpointManager(directory, keep=2) as saved:
    for step in (1, 2, 3):
      saved.save(step, params, {'mu': params['w']}, meta={'step': step})
    assert saved.steps() == [2, 3]
  # Process order is reversed: every process reads what the other one wrote.
  other = Mesh(devices[::-1].reshape(2, 4), ('a', 'b'), (AxisType.Auto,) * 2)
  sharding = NamedSharding(other, PartitionSpec('a', 'b'))
  whole = NamedSharding(other, PartitionSpec())
  abstract = {
    'w': jax.ShapeDtypeStruct((64, 16), np.float32, sharding=sharding),
    'count': jax.ShapeDtypeStruct((), np.int32, sharding=whole),
  }
  mu = {'mu': abstract['w']}
  restored, opt_state = orbax_checkpoint.restore(directory, abstract, mu)
  for name, array in {**restored, 'w2': opt_state['mu']}.items():
    expected = values[name[:1] if name == 'w2' else name]
    assert len(array.addressable_shards) == 4
    for shard in array.addressable_shards:
      np.testing.assert_array_equal(shard.data, expected[shard.index])
  assert orbax_checkpoint.read_json(directory, 'meta') == {'step': 3}
  number = int(array_checksum.fingerprint(restored['w']))
  print(f'process {jax.process_index()} fingerprint {number}')


if __name__ == '__main__':
  main(sys.argv[1])
