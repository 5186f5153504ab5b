"""Sizes of the mesh axes, errors for impossible sizes, and slices."""

import dataclasses

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from grm_jax.errors import UserError
from grm_jax.sharding import mesh, rules
from tests.messages import naming, setting


@pytest.mark.parametrize(
  'sizes, devices, expected',
  [
    ((1, -1, 1), 8, (1, 8, 1)),
    ((-1, 2, 2), 8, (2, 2, 2)),
    ((2, 1, -1), 8, (2, 1, 4)),
    ((2, 2, 2), 8, (2, 2, 2)),
    ((1, -1, 1), 1, (1, 1, 1)),
    ((4, -1, 4), 64, (4, 4, 4)),
  ],
)
def test_minus_one_takes_the_remaining_devices(sizes, devices, expected):
  assert mesh.axis_sizes(*sizes, devices) == expected


@pytest.mark.parametrize(
  'sizes, words',
  [
    ((2, 2, 1), ['config.mesh.fsdp', 4, 8]),
    ((4, 4, 1), ['config.mesh.fsdp', 16, 8]),
    ((3, -1, 1), ['config.mesh.fsdp', 3, 8]),
    ((-1, 16, 1), ['config.mesh.fsdp', 16, 8]),
    ((-1, -1, 1), []),
    ((0, 8, 1), []),
    ((-2, 8, 1), []),
  ],
)
def test_impossible_sizes_are_rejected(sizes, words):
  words = 'data', 'fsdp', 'tensor', *sizes, *words
  with pytest.raises(UserError, match=naming(*words)):
    mesh.axis_sizes(*sizes, 8)


def test_slices_must_divide_data():
  assert mesh.axis_sizes(-1, 4, 1, 16, num_slices=2) == (4, 4, 1)
  words = *setting('mesh.data', 3), *setting('mesh.num_slices', 2)
  with pytest.raises(UserError, match=naming(*words)):
    mesh.axis_sizes(3, 2, 1, 6, num_slices=2)
  with pytest.raises(UserError, match=naming(*setting('mesh.num_slices', 0))):
    mesh.axis_sizes(2, 1, 1, 2, num_slices=0)


def test_mesh_has_every_device_once():
  devices = mesh.make_mesh(2, -1, 2)
  assert devices.axis_names == ('data', 'fsdp', 'tensor')
  assert dict(devices.shape) == {'data': 2, 'fsdp': 2, 'tensor': 2}
  assert set(devices.devices.flat) == set(jax.devices())


def test_default_mesh_is_fsdp():
  assert dict(mesh.make_mesh().shape) == {'data': 1, 'fsdp': 8, 'tensor': 1}


@dataclasses.dataclass(frozen=True)
class FakeDevice:
  """A device of another process, with the attributes that make_mesh reads."""

  id: int
  process_index: int
  platform: str = 'cpu'
  device_kind: str = 'cpu'


def test_slices_are_the_outer_factor_of_data():
  devices = [FakeDevice(i, i // 4) for i in range(8)]
  array = mesh.make_mesh(4, 1, 2, num_slices=2, devices=devices[::-1]).devices
  assert array.shape == (4, 1, 2)
  processes = np.vectorize(lambda device: device.process_index)(array)
  np.testing.assert_array_equal(processes[:2], 0)
  np.testing.assert_array_equal(processes[2:], 1)
  assert set(array.flat) == set(devices)


def test_more_slices_than_processes():
  with pytest.raises(
    UserError, match=naming(*setting('mesh.num_slices', 2), 1)
  ):
    mesh.make_mesh(2, 2, 2, num_slices=2)


def test_from_config():
  config = ConfigDict({'mesh': dict(data=2, fsdp=-1, tensor=2, num_slices=1)})
  config.mesh.logical_axis_rules = ConfigDict(rules.RULES)
  config.mesh.logical_axis_rules.logit_vocab = ('tensor',)
  layout = mesh.from_config(config)
  assert dict(layout.mesh.shape) == {'data': 2, 'fsdp': 2, 'tensor': 2}
  assert (
    layout.num_shards('logit_vocab') == 2 and layout.num_shards('vocab') == 4
  )


def test_decode_mesh_moves_devices_from_fsdp_to_tensor():
  """The devices and their order stay the same."""
  config = ConfigDict({'mesh': dict(data=2, fsdp=4, tensor=1, num_slices=1)})
  config.mesh.logical_axis_rules = ConfigDict(rules.RULES)
  config.mesh.decode_tensor = 4
  train = mesh.from_config(config)
  decode = mesh.from_config(config, weights='resident')
  assert dict(train.mesh.shape) == {'data': 2, 'fsdp': 4, 'tensor': 1}
  assert dict(decode.mesh.shape) == {'data': 2, 'fsdp': 1, 'tensor': 4}
  assert (train.mesh.devices.flat == decode.mesh.devices.flat).all()
  # Decoding splits heads, and prompts over fewer devices than training.
  assert (train.num_shards('heads'), decode.num_shards('heads')) == (1, 4)
  assert (train.num_shards('prompts'), decode.num_shards('prompts')) == (8, 2)
  config.mesh.decode_tensor = 0
  unchanged = mesh.from_config(config, weights='resident')
  assert unchanged.mesh == train.mesh
  for invalid in (3, 8, -1):
    config.mesh.decode_tensor = invalid
    words = *setting('mesh.decode_tensor', invalid), 4, 1
    with pytest.raises(UserError, match=naming(*words)):
      mesh.from_config(config, weights='resident')


def test_one_device_splits_nothing():
  layout = mesh.one_device()
  assert layout.mesh.size == 1
  assert all(layout.num_shards(name) == 1 for name in rules.RULES)
