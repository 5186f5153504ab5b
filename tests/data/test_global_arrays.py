"""Which rows a process holds, by layouts of any kind, and arrays of them."""

import dataclasses

import jax
import numpy as np
import pytest

from grm_jax.data import global_arrays
from grm_jax.data.batch_iterator import once
from grm_jax.data.tokenized_example import BatchShape
from grm_jax.errors import UserError
from grm_jax.sharding import mesh, rules
from tests.data.made import ragged
from tests.messages import naming
from tests.processes import run_together


@dataclasses.dataclass(frozen=True)
class Device:
  """What a mesh reads of a device, to stand for one of several processes."""

  id: int
  process_index: int
  platform: str = 'cpu'
  device_kind: str = 'cpu'


def layout(shape, processes=None):
  devices = processes and [Device(i, p) for i, p in enumerate(processes)]
  return rules.layout(mesh.make_mesh(*shape, devices=devices), rules.RULES)


@pytest.mark.parametrize(
  'shape, processes, expected',
  [
    # data, fsdp, tensor; the process of each device; the rows of each of 8.
    ((1, 8, 1), [0] * 8, [[0, 1, 2, 3, 4, 5, 6, 7]]),
    ((1, 8, 1), [0] * 4 + [1] * 4, [[0, 1, 2, 3], [4, 5, 6, 7]]),
    ((2, 2, 2), [0] * 4 + [1] * 4, [[0, 1, 2, 3], [4, 5, 6, 7]]),
    # Processes in another order, and by turns.
    ((1, 8, 1), [1] * 4 + [0] * 4, [[4, 5, 6, 7], [0, 1, 2, 3]]),
    ((1, 8, 1), [0, 1] * 4, [[0, 2, 4, 6], [1, 3, 5, 7]]),
    # A tensor axis over several processes: they hold the same rows.
    ((1, 1, 8), [0] * 4 + [1] * 4, [[0, 1, 2, 3, 4, 5, 6, 7]] * 2),
    ((1, 2, 4), [0, 0, 1, 1, 2, 2, 3, 3], [[0, 1, 2, 3]] * 2 + [[4, 5, 6, 7]]),
    # One row in common, the others not.
    ((1, 4, 2), [0, 0, 0, 1, 1, 1, 1, 1], [[0, 1, 2, 3], [2, 3, 4, 5, 6, 7]]),
  ],
)
def test_rows_of_a_process(monkeypatch, shape, processes, expected):
  made = layout(shape, processes)
  for process, rows in enumerate(expected):
    monkeypatch.setattr(jax, 'process_index', lambda p=process: p)
    assert global_arrays.process_rows(made, 8).tolist() == rows


def test_prompts_that_the_mesh_cannot_split():
  text = naming('config.batch.micro_batch_prompts', 6, 4)
  with pytest.raises(UserError, match=text):
    global_arrays.process_rows(layout((2, 2, 2)), 6)


def test_rows_are_checked():
  ((batch, _),) = once(
    ragged(4, 0), prompts=4, limits=BatchShape((128,), (64,), 2)
  )
  text = naming(4, 8, 'rows_of_process')
  with pytest.raises(ValueError, match=text):
    global_arrays.place(batch, layout((2, 2, 2)), 8)


@pytest.mark.parametrize('shape', [(2, 2, 2), (1, 8, 1), (1, 1, 8)], ids=str)
@pytest.mark.parametrize('rows', [0, 2])
def test_arrays_are_split_by_prompt(shape, rows):
  ((batch, _),) = once(
    ragged(8, 0), prompts=8, limits=BatchShape((128,), (64,), rows)
  )
  made = layout(shape)
  placed = global_arrays.place(batch, made, 8)
  assert (placed.generations is None) == (rows == 0)
  for x, wanted in zip(
    jax.tree.leaves(placed), jax.tree.leaves(batch), strict=True
  ):
    np.testing.assert_array_equal(x, wanted, strict=True)
    names = ('prompts', 'tokens', 'tokens')[: x.ndim]
    assert x.sharding == made.sharding(names)
    assert x.addressable_shards[0].data.shape[0] == 8 // made.split('prompts')


TWO_PROCESSES = """
import jax, numpy as np
from jax.sharding import Mesh
from grm_jax.data import placing
from grm_jax.data.batch_iterator import Batches
from grm_jax.data.tokenized_example import Limits
from grm_jax.parallel import mesh, rules, start
from tests.data.made import ragged

start.start()
assert jax.process_count() == 2

def batches(rows):
  return Batches(ragged(20, 0), {'s': 1}, prompts=8, seed=0, window=2,
                 limits=Limits((32, 128), (64,), 2), rows_of_process=rows)

ORDERS = {'in order': range(8), 'by turns': (0, 4, 1, 5, 2, 6, 3, 7),
          'one in common': (0, 1, 2, 4, 3, 5, 6, 7)}
for shape in ((1, 8, 1), (2, 2, 2), (1, 4, 2), (1, 1, 8)):
  for name, order in ORDERS.items():
    devices = np.array(jax.devices())[list(order)].reshape(shape)
    layout = rules.layout(Mesh(devices, mesh.AXES), rules.RULES)
    rows = placing.process_rows(layout, 8)
    share, whole = batches(rows), batches(None)
    for _ in range(3):
      placed = placing.place(next(share)[0], layout, 8)
      wanted = next(whole)[0]
      for x, y in zip(jax.tree.leaves(placed), jax.tree.leaves(wanted)):
        assert x.shape == y.shape
        assert len(x.addressable_shards) == 4
        for shard in x.addressable_shards:
          np.testing.assert_array_equal(shard.data, y[shard.index])
    print(shape, name, rows.tolist())
"""


def test_two_real_processes():
  first, second = (
    out.strip().splitlines()[-12:]
    for out in run_together(['-c', TWO_PROCESSES])
  )
  assert first[0] == '(1, 8, 1) in order [0, 1, 2, 3]'
  assert second[0] == '(1, 8, 1) in order [4, 5, 6, 7]'
  assert first[1] == '(1, 8, 1) by turns [0, 2, 4, 6]'
  assert second[-1] == '(1, 1, 8) one in common [0, 1, 2, 3, 4, 5, 6, 7]'
