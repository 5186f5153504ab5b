"""Local rows of a batch and global arrays, on layouts of several kinds."""

import dataclasses

import jax
import numpy as np
import pytest

from grm_jax.data import global_arrays
from grm_jax.data.batch_iterator import evaluation_batches
from grm_jax.data.tokenized_example import BatchShape
from grm_jax.errors import UserError
from grm_jax.sharding import mesh, rules
from tests.data.fixtures import ragged
from tests.messages import naming
from tests.processes import run_processes


@dataclasses.dataclass(frozen=True)
class Device:
  """Fake device of one of several processes, with what a mesh reads of it."""

  id: int
  process_index: int
  platform: str = 'cpu'
  device_kind: str = 'cpu'


def make_layout(shape, processes=None):
  devices = processes and [Device(i, p) for i, p in enumerate(processes)]
  return rules.make_layout(mesh.make_mesh(*shape, devices=devices), rules.RULES)


@pytest.mark.parametrize(
  'shape, processes, expected',
  [
    # (data, fsdp, tensor), process of each device, rows of each process.
    ((1, 8, 1), [0] * 8, [[0, 1, 2, 3, 4, 5, 6, 7]]),
    ((1, 8, 1), [0] * 4 + [1] * 4, [[0, 1, 2, 3], [4, 5, 6, 7]]),
    ((2, 2, 2), [0] * 4 + [1] * 4, [[0, 1, 2, 3], [4, 5, 6, 7]]),
    # Processes in reverse order, and alternating.
    ((1, 8, 1), [1] * 4 + [0] * 4, [[4, 5, 6, 7], [0, 1, 2, 3]]),
    ((1, 8, 1), [0, 1] * 4, [[0, 2, 4, 6], [1, 3, 5, 7]]),
    # A tensor axis that spans processes: they hold the same rows.
    ((1, 1, 8), [0] * 4 + [1] * 4, [[0, 1, 2, 3, 4, 5, 6, 7]] * 2),
    ((1, 2, 4), [0, 0, 1, 1, 2, 2, 3, 3], [[0, 1, 2, 3]] * 2 + [[4, 5, 6, 7]]),
    # Processes that share some rows but not all.
    ((1, 4, 2), [0, 0, 0, 1, 1, 1, 1, 1], [[0, 1, 2, 3], [2, 3, 4, 5, 6, 7]]),
  ],
)
def test_local_prompt_indices(monkeypatch, shape, processes, expected):
  layout = make_layout(shape, processes)
  for process, rows in enumerate(expected):
    monkeypatch.setattr(jax, 'process_index', lambda p=process: p)
    assert global_arrays.local_prompt_indices(layout, 8).tolist() == rows


def test_a_batch_that_the_mesh_does_not_divide():
  text = naming('config.batch.micro_batch_prompts', 6, 4)
  with pytest.raises(UserError, match=text):
    global_arrays.local_prompt_indices(make_layout((2, 2, 2)), 6)


def test_a_wrong_number_of_local_rows():
  ((batch, _),) = evaluation_batches(
    ragged(4, 0), num_prompts=4, batch_shape=BatchShape((128,), (64,), 2)
  )
  text = naming(4, 8, 'local_indices')
  with pytest.raises(ValueError, match=text):
    global_arrays.make_global_arrays(batch, make_layout((2, 2, 2)), 8)


@pytest.mark.parametrize('shape', [(2, 2, 2), (1, 8, 1), (1, 1, 8)], ids=str)
@pytest.mark.parametrize('rows', [0, 2])
def test_global_arrays_are_split_by_prompt(shape, rows):
  ((batch, _),) = evaluation_batches(
    ragged(8, 0), num_prompts=8, batch_shape=BatchShape((128,), (64,), rows)
  )
  layout = make_layout(shape)
  placed = global_arrays.make_global_arrays(batch, layout, 8)
  assert (placed.generations is None) == (rows == 0)
  for x, wanted in zip(
    jax.tree.leaves(placed), jax.tree.leaves(batch), strict=True
  ):
    np.testing.assert_array_equal(x, wanted, strict=True)
    names = ('prompts', 'tokens', 'tokens')[: x.ndim]
    assert x.sharding == layout.sharding(names)
    assert x.addressable_shards[0].data.shape[0] == 8 // layout.num_shards(
      'prompts'
    )


TWO_PROCESSES = """
import jax, numpy as np
from jax.sharding import Mesh
from grm_jax.data import global_arrays
from grm_jax.data.batch_iterator import BatchIterator
from grm_jax.data.tokenized_example import BatchShape
from grm_jax.sharding import distributed, mesh, rules
from tests.data.fixtures import ragged

distributed.initialize()
assert jax.process_count() == 2

def batches(local_indices):
  return BatchIterator(
    ragged(20, 0), {'s': 1}, num_prompts=8, seed=0, window=2,
    batch_shape=BatchShape((32, 128), (64,), 2), local_indices=local_indices)

ORDERS = {'in order': range(8), 'alternating': (0, 4, 1, 5, 2, 6, 3, 7),
          'overlapping': (0, 1, 2, 4, 3, 5, 6, 7)}
for shape in ((1, 8, 1), (2, 2, 2), (1, 4, 2), (1, 1, 8)):
  for name, order in ORDERS.items():
    devices = np.array(jax.devices())[list(order)].reshape(shape)
    layout = rules.make_layout(Mesh(devices, mesh.AXES), rules.RULES)
    rows = global_arrays.local_prompt_indices(layout, 8)
    local, whole = batches(rows), batches(None)
    for _ in range(3):
      arrays = global_arrays.make_global_arrays(next(local)[0], layout, 8)
      expected = next(whole)[0]
      for x, y in zip(jax.tree.leaves(arrays), jax.tree.leaves(expected)):
        assert x.shape == y.shape
        assert len(x.addressable_shards) == 4
        for shard in x.addressable_shards:
          np.testing.assert_array_equal(shard.data, y[shard.index])
    print(shape, name, rows.tolist())
"""


def test_global_arrays_of_two_processes():
  first, second = (
    out.strip().splitlines()[-12:]
    for out in run_processes(['-c', TWO_PROCESSES])
  )
  assert first[0] == '(1, 8, 1) in order [0, 1, 2, 3]'
  assert second[0] == '(1, 8, 1) in order [4, 5, 6, 7]'
  assert first[1] == '(1, 8, 1) alternating [0, 2, 4, 6]'
  assert second[-1] == '(1, 1, 8) overlapping [0, 1, 2, 3, 4, 5, 6, 7]'
