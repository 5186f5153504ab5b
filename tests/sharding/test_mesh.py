"""Sizes of the mesh axes, the errors for sizes that cannot be, and slices."""

import dataclasses

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from grm_jax.errors import UserError
from grm_jax.sharding import mesh, rules
from tests.messages import naming, setting


@pytest.mark.parametrize(
  'asked, devices, sizes',
  [
    ((1, -1, 1), 8, (1, 8, 1)),
    ((-1, 2, 2), 8, (2, 2, 2)),
    ((2, 1, -1), 8, (2, 1, 4)),
    ((2, 2, 2), 8, (2, 2, 2)),
    ((1, -1, 1), 1, (1, 1, 1)),
    ((4, -1, 4), 64, (4, 4, 4)),
  ],
)
def test_minus_one_is_what_is_left(asked, devices, sizes):
  assert mesh.axis_sizes(*asked, devices) == sizes


@pytest.mark.parametrize(
  'asked, words',
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
def test_sizes_that_cannot_be(asked, words):
  words = 'data', 'fsdp', 'tensor', *asked, *words
  with pytest.raises(UserError, match=naming(*words)):
    mesh.axis_sizes(*asked, 8)


def test_slices_divide_data():
  assert mesh.axis_sizes(-1, 4, 1, 16, num_slices=2) == (4, 4, 1)
  words = *setting('mesh.data', 3), *setting('mesh.num_slices', 2)
  with pytest.raises(UserError, match=naming(*words)):
    mesh.axis_sizes(3, 2, 1, 6, num_slices=2)
  with pytest.raises(UserError, match=naming(*setting('mesh.num_slices', 0))):
    mesh.axis_sizes(2, 1, 1, 2, num_slices=0)


def test_mesh_has_every_device_once():
  made = mesh.make_mesh(2, -1, 2)
  assert made.axis_names == ('data', 'fsdp', 'tensor')
  assert dict(made.shape) == {'data': 2, 'fsdp': 2, 'tensor': 2}
  assert set(made.devices.flat) == set(jax.devices())


def test_default_mesh_is_fsdp():
  assert dict(mesh.make_mesh().shape) == {'data': 1, 'fsdp': 8, 'tensor': 1}


@dataclasses.dataclass(frozen=True)
class Device:
  """What mesh making reads of a device, to stand for one of two processes."""

  id: int
  process_index: int
  platform: str = 'cpu'
  device_kind: str = 'cpu'


def test_slices_are_the_outer_factor_of_data():
  devices = [Device(i, i // 4) for i in range(8)]
  made = mesh.make_mesh(4, 1, 2, num_slices=2, devices=devices[::-1])
  assert dict(made.shape) == {'data': 4, 'fsdp': 1, 'tensor': 2}
  processes = np.vectorize(lambda device: device.process_index)(made.devices)
  np.testing.assert_array_equal(processes[:2], 0)
  np.testing.assert_array_equal(processes[2:], 1)
  assert set(made.devices.flat) == set(devices)


def test_more_slices_than_there_are():
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
  assert layout.num_shards('logit_vocab') == 2 and layout.num_shards('vocab') == 4


def test_another_tensor_axis_for_sampling():
  """The same devices in the same order, some of fsdp given to tensor."""
  config = ConfigDict({'mesh': dict(data=2, fsdp=4, tensor=1, num_slices=1)})
  config.mesh.logical_axis_rules = ConfigDict(rules.RULES)
  config.mesh.decode_tensor = 4
  training = mesh.from_config(config)
  sampling = mesh.from_config(config, weights='resident')
  assert dict(training.mesh.shape) == {'data': 2, 'fsdp': 4, 'tensor': 1}
  assert dict(sampling.mesh.shape) == {'data': 2, 'fsdp': 1, 'tensor': 4}
  assert (training.mesh.devices.flat == sampling.mesh.devices.flat).all()
  # Heads are split for decoding, prompts over fewer devices than in training.
  assert (training.num_shards('heads'), sampling.num_shards('heads')) == (1, 4)
  assert (training.num_shards('prompts'), sampling.num_shards('prompts')) == (8, 2)
  config.mesh.decode_tensor = 0
  same = mesh.from_config(config, weights='resident')
  assert same.mesh == training.mesh
  for wrong in (3, 8, -1):
    config.mesh.decode_tensor = wrong
    words = *setting('mesh.decode_tensor', wrong), 4, 1
    with pytest.raises(UserError, match=naming(*words)):
      mesh.from_config(config, weights='resident')


def test_one_device_splits_nothing():
  layout = mesh.one_device()
  assert layout.mesh.size == 1
  assert all(layout.num_shards(name) == 1 for name in rules.RULES)
