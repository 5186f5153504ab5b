"""Process of test_two_processes: imports its part and reports what it read."""

import json
import sys

import jax
import numpy as np

from grm_jax.checkpoint.huggingface import config as hf_config
from grm_jax.checkpoint.huggingface import load as hf_load
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.model.transformer import Transformer
from grm_jax.sharding import distributed, mesh, rules


class CountedSlice:
  """A lazy tensor that counts the bytes read from it.

  Attributes:
    num_bytes: bytes read from all tensors so far.
  """

  num_bytes = 0

  def __init__(self, view):
    self.view = view

  def __getitem__(self, index):
    values = self.view[index]
    CountedSlice.num_bytes += values.nbytes
    return values

  def __getattr__(self, name):
    return getattr(self.view, name)


def main(directory):
  distributed.initialize()
  model_config, scalar = hf_config.read_config(directory)
  read_slice = hf_load.TensorSource.slice
  hf_load.TensorSource.slice = lambda self, key: CountedSlice(
    read_slice(self, key)
  )
  source = hf_load.open_source(directory)

  def load(layout):
    model = Transformer(model_config, ComputeConfig(), layout, scalar)
    return hf_load.load_params(source, model, 'source')

  params = load(rules.make_layout(mesh.make_mesh(1, 4, 2), rules.RULES))
  num_bytes = CountedSlice.num_bytes
  unsharded = load(mesh.one_device())
  num_wrong = 0
  for sharded, full in zip(
    jax.tree.leaves(params), jax.tree.leaves(unsharded), strict=True
  ):
    for shard in sharded.addressable_shards:
      expected = np.asarray(full)[shard.index]
      num_wrong += not np.array_equal(np.asarray(shard.data), expected)
  report = {
    'processes': jax.process_count(),
    'devices': jax.device_count(),
    'read': num_bytes,
    'wrong': num_wrong,
  }
  print(json.dumps(report))


if __name__ == '__main__':
  main(sys.argv[1])
