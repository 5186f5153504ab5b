"""Child of test_two_processes: imports its share and says what it read."""

import json
import sys

import jax
import numpy as np

from grm_jax.checkpoint.huggingface import config as hf_config
from grm_jax.checkpoint.huggingface import load as hf_load
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.model.transformer import Transformer
from grm_jax.sharding import distributed, mesh, rules


class Counted:
  """A lazy tensor that adds up the bytes taken from it."""

  total = 0

  def __init__(self, view):
    self.view = view

  def __getitem__(self, index):
    piece = self.view[index]
    Counted.total += piece.nbytes
    return piece

  def __getattr__(self, name):
    return getattr(self.view, name)


def main(directory):
  distributed.initialize()
  size, scalar = hf_config.read_size(directory)
  lazy = hf_load.TensorSource.slice
  hf_load.TensorSource.slice = lambda self, key: Counted(lazy(self, key))
  source = hf_load.open_source(directory)

  def load(layout):
    model = Transformer(size, ComputeConfig(), layout, scalar)
    return hf_load.load_params(source, model, 'source')

  params = load(rules.layout(mesh.make_mesh(1, 4, 2), rules.RULES))
  read = Counted.total
  whole = load(mesh.one_device())
  wrong = 0
  for ours, full in zip(
    jax.tree.leaves(params), jax.tree.leaves(whole), strict=True
  ):
    for shard in ours.addressable_shards:
      expected = np.asarray(full)[shard.index]
      wrong += not np.array_equal(np.asarray(shard.data), expected)
  print(
    json.dumps(
      {
        'processes': jax.process_count(),
        'devices': jax.device_count(),
        'read': read,
        'wrong': wrong,
      }
    )
  )


if __name__ == '__main__':
  main(sys.argv[1])
