"""Weights of a judge, read from a model directory."""

import gc

import jax
import numpy as np
import pytest

from grm_jax.checkpoint import integrity, model_directory
from grm_jax.judges import factory as judge_factory
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.sampling import decode_weights
from grm_jax.sharding import mesh
from tests.stages.stage_runs import write_model


@pytest.mark.parametrize('int8', [False, True])
def test_a_model_is_not_in_memory_twice(tmp_path, monkeypatch, int8):
  """Each parameter becomes weights of the sampler before the next is read."""
  path = str(tmp_path / 'model')
  write_model(tmp_path / 'model')
  layout = mesh.one_device()
  model = model_directory.build_model(path, None, ComputeConfig(), layout)
  params = model_directory.load_params(path, None, model)
  expected, _ = decode_weights.place(model, params, int8)
  largest = max(x.nbytes for x in jax.tree.leaves(params))
  size = sum(x.nbytes for x in jax.tree.leaves(expected))
  del params
  monkeypatch.setattr(integrity, '_RESTORE_BATCH_BYTES', 1)
  before = live_bytes()
  sizes, most = [], []
  make_converter = decode_weights.converter

  def observed(*args):
    convert = make_converter(*args)

    def convert_and_measure(path, x):
      sizes.append(x.nbytes)
      result = jax.block_until_ready(convert(path, x))
      most.append(live_bytes() - before)
      return result

    return convert_and_measure

  monkeypatch.setattr(decode_weights, 'converter', observed)
  weights = judge_factory.load_weights(path, None, model, int8)
  assert sizes == sorted(sizes, reverse=True)
  assert max(most) < size + largest
  jax.tree.map(np.testing.assert_array_equal, weights, expected)


def live_bytes():
  """Returns the bytes of all arrays that exist."""
  gc.collect()
  return sum(x.nbytes for x in jax.live_arrays())
