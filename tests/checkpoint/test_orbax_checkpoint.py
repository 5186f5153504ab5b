"""Checkpoints are atomic, restore on any mesh, and never use damaged data."""

import contextlib
import gc
import json
import logging
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from grm_jax.checkpoint import (
  integrity,
  orbax_checkpoint,
  orbax_errors,
  orbax_reader,
)
from grm_jax.checkpoint.orbax_checkpoint import CheckpointManager
from grm_jax.errors import UserError
from grm_jax.sharding import distributed
from tests import full_disk, unreadable
from tests.messages import lines_with, names, naming
from tests.processes import HANG_TIMEOUT_S, run_processes

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
# Orbax abandons the reads that follow a failed one. Python warns when it
# collects them, in whichever test that happens.
pytestmark = pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnraisableExceptionWarning'
)


def mesh_of(*shape):
  devices = np.array(jax.devices()[: np.prod(shape)]).reshape(shape)
  return Mesh(devices, ('a', 'b'), (AxisType.Auto,) * 2)


def make_params(mesh=None, seed=0):
  """Returns a tree with every kind of leaf; `w` and `count` are sharded."""
  mesh = mesh or mesh_of(4, 2)
  split = NamedSharding(mesh, PartitionSpec('a', 'b'))
  whole = NamedSharding(mesh, PartitionSpec())
  rng = np.random.default_rng(seed)
  bits = rng.integers(0, 2**16, (64, 256), dtype=np.uint16)
  return {
    'block': {
      'w': jax.device_put(bits.view(jnp.bfloat16), split),
      'empty': jax.device_put(np.zeros((0, 3), np.float32), whole),
      'scale': jax.device_put(rng.normal(size=8).astype(np.float32), whole),
    },
    'count': jax.device_put(rng.integers(0, 99, (8, 1024), np.int32), split),
    'flags': jax.device_put(np.array([True, False]), whole),
    'step': jax.device_put(np.int32(5), whole),
  }


def abstract(tree, mesh=None):
  def leaf(x):
    spec = x.sharding.spec
    sharding = NamedSharding(mesh, spec) if mesh else x.sharding
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  return jax.tree.map(leaf, tree)


def same_bits(left, right):
  return jax.tree.structure(left) == jax.tree.structure(right) and all(
    a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
  )


@pytest.fixture
def saved(tmp_path):
  """A directory with steps 1 and 2, and the params of step 2."""
  params = make_params()
  with CheckpointManager(tmp_path) as writer:
    writer.save(1, make_params(seed=1), meta={'step': 1})
    writer.save(2, params, model={'layers': 2}, meta={'step': 2})
  return tmp_path, params


@pytest.mark.parametrize('shape', [(8, 1), (2, 2), (1, 1), (2, 4)])
def test_restore_on_other_meshes(saved, shape):
  directory, params = saved
  abstract_params = abstract(params, mesh_of(*shape))
  restored = orbax_checkpoint.restore_params(directory, abstract_params)
  assert same_bits(restored, params)
  for leaf, array in zip(
    jax.tree.leaves(abstract_params), jax.tree.leaves(restored), strict=True
  ):
    assert array.sharding == leaf.sharding


def test_full_state_round_trip(tmp_path):
  params = make_params()
  floats = {'w': params['block']['w'], 'scale': params['block']['scale']}
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(1e-3), optax.ema(0.9)
  )
  mesh = mesh_of(4, 2)
  opt_state = jax.tree.map(
    lambda x: jax.device_put(x, NamedSharding(mesh, PartitionSpec())),
    optimizer.init(floats),
  )
  opt_state = jax.tree.map(lambda x: x + 1, opt_state)
  with CheckpointManager(tmp_path) as writer:
    writer.save(7, params, opt_state)
  restored = orbax_checkpoint.restore(
    tmp_path, abstract(params), abstract(opt_state)
  )
  assert same_bits(restored, (params, opt_state))
  assert same_bits(
    orbax_checkpoint.restore_params(tmp_path, abstract(params)), params
  )
  with CheckpointManager(tmp_path) as writer:
    writer.save(8, params, optax.EmptyState())
  _, empty_state = orbax_checkpoint.restore(
    tmp_path, abstract(params), optax.EmptyState()
  )
  assert empty_state == optax.EmptyState()


def test_restore_in_batches(saved, monkeypatch):
  directory, params = saved
  monkeypatch.setattr(integrity, '_RESTORE_BATCH_BYTES', 3000)
  calls = []
  read = orbax_reader._read_arrays
  monkeypatch.setattr(
    orbax_reader, '_read_arrays', lambda *args: calls.append(1) or read(*args)
  )
  restored = orbax_checkpoint.restore_params(directory, abstract(params))
  assert same_bits(restored, params)
  assert len(calls) > 2


def test_json_items(saved):
  directory, _ = saved
  assert orbax_checkpoint.read_json(directory, 'model') == {'layers': 2}
  assert orbax_checkpoint.read_json(directory, 'meta') == {'step': 2}
  assert orbax_checkpoint.read_json(directory, 'meta', step=1) == {'step': 1}
  parts = 1, directory, 'index', 'meta', 'model'
  with pytest.raises(ValueError, match=naming(*parts)):
    orbax_checkpoint.read_json(directory, 'model', step=1)


def test_cast_between_floats_only(saved):
  directory, params = saved
  abstract_params = abstract(params)
  scale = abstract_params['block']['scale']
  abstract_params['block']['scale'] = scale.update(dtype=jnp.bfloat16)
  restored = orbax_checkpoint.restore_params(directory, abstract_params)
  expected = np.asarray(params['block']['scale']).astype(jnp.bfloat16)
  np.testing.assert_array_equal(restored['block']['scale'], expected)
  assert restored['block']['scale'].dtype == jnp.bfloat16
  abstract_params['count'] = abstract_params['count'].update(dtype=jnp.float32)
  with pytest.raises(UserError, match=naming('count', 'int32', 'float32')):
    orbax_checkpoint.restore_params(directory, abstract_params)


@pytest.mark.parametrize(
  'change, words',
  [
    (lambda p: p.pop('flags'), ['flags', '(2,)']),
    (
      lambda p: p['block'].update(new=p['flags']),
      ['block/new', '(2,)'],
    ),
    (
      lambda p: p['block'].update(w=p['count']),
      ['block/w', '(64, 256)', '(8, 1024)'],
    ),
    (
      lambda p: p.update(flags=jax.ShapeDtypeStruct((2,), bool)),
      ['flags', 'sharding'],
    ),
  ],
)
def test_mismatch_names_leaf_directory_and_step(saved, change, words):
  directory, params = saved
  abstract_params = abstract(params)
  change(abstract_params)
  with pytest.raises(UserError, match=naming('params', 2, directory, *words)):
    orbax_checkpoint.restore_params(directory, abstract_params)


def test_missing_step_item_and_directory(saved, tmp_path):
  directory, params = saved
  abstract_params = abstract(params)
  with pytest.raises(UserError, match=naming(9, directory, 1, 2)):
    orbax_checkpoint.restore_params(directory, abstract_params, step=9)
  with pytest.raises(UserError, match=naming('opt_state', 2, directory)):
    orbax_checkpoint.restore(directory, abstract_params, {})
  nowhere = tmp_path / 'nowhere'
  assert orbax_checkpoint.steps(nowhere) == []
  with pytest.raises(UserError, match=naming(nowhere)):
    orbax_checkpoint.restore_params(nowhere, abstract_params)


def test_max_to_keep_and_steps(tmp_path):
  params = {'w': jnp.arange(4.0)}
  with CheckpointManager(tmp_path, max_to_keep=2) as writer:
    assert writer.steps() == []
    for step in (3, 5, 10):
      writer.save(step, params)
    assert writer.steps() == [5, 10]
  assert orbax_checkpoint.steps(tmp_path) == [5, 10]


def test_save_rejects_existing_and_older_steps(saved):
  directory, params = saved
  before = (directory / '2' / 'index' / 'metadata').read_text()
  with CheckpointManager(directory) as writer:
    with pytest.raises(UserError, match=naming(directory / '2', 2)):
      writer.save(2, make_params(seed=3))
    writer.save(4, params)
    with pytest.raises(UserError, match=naming(directory / '4', 4)):
      writer.save(4, params)
    with pytest.raises(UserError, match=naming(directory, 3, 4)):
      writer.save(3, params)
  assert (directory / '2' / 'index' / 'metadata').read_text() == before


def test_save_rejects_unsupported_trees(tmp_path):
  ok = {'w': jnp.zeros(2)}
  with CheckpointManager(tmp_path) as writer:
    for params, words in (
      ({'w': np.zeros(2)}, ['w', 'ndarray']),
      ({'w': {'k': jax.random.key(0)}}, ['w/k']),
      ({'a.b': jnp.zeros(2)}, ['a.b']),
      (jnp.zeros(2), ["''"]),
    ):
      with pytest.raises(ValueError, match=naming('params', *words)):
        writer.save(1, params)
    with pytest.raises(ValueError, match=naming('meta')):
      writer.save(1, ok, meta={'step': jnp.zeros(())})
    with pytest.raises(ValueError, match=naming(-1)):
      writer.save(-1, ok)
    assert writer.steps() == []
  with pytest.raises(ValueError, match=naming('max_to_keep', 0)):
    CheckpointManager(tmp_path, max_to_keep=0)


@pytest.mark.parametrize('host_gb', [None, 1])
def test_arrays_may_be_donated_after_save(tmp_path, host_gb):
  split = NamedSharding(mesh_of(8, 1), PartitionSpec('a'))
  params = {
    f'w{i}': jax.device_put(np.full((2048, 512), i, np.float32), split)
    for i in range(4)
  }
  abstract_params, first = abstract(params), jax.tree.map(np.asarray, params)
  first = jax.tree.map(np.copy, first)
  add = jax.jit(lambda p: jax.tree.map(lambda x: x + 1, p), donate_argnums=0)
  with CheckpointManager(tmp_path, host_gb=host_gb) as writer:
    writer.save(1, params)
    assert host_gb is None or (tmp_path / '1' / 'commit_success.txt').exists()
    for _ in range(3):
      params = add(params)
  assert same_bits(
    orbax_checkpoint.restore_params(tmp_path, abstract_params), first
  )


def files_of(step):
  return sorted(path for path in step.rglob('*') if path.is_file())


def flipped(data, at):
  return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


def read_error(directory, params, abstract_params):
  """Reads everything; returns the error, or None if it equals the saved."""
  try:
    restored = orbax_checkpoint.restore_params(directory, abstract_params)
    model = orbax_checkpoint.read_json(directory, 'model')
    meta = orbax_checkpoint.read_json(directory, 'meta')
  except ValueError as error:
    return str(error)
  finally:
    gc.collect()  # abandoned reads of Orbax warn now, in this test
  assert same_bits(restored, params), 'damage was not detected'
  assert (model, meta) == ({'layers': 2}, {'step': 2})
  return None


def test_every_flipped_byte_of_array_data_is_detected(saved):
  directory, params = saved
  abstract_params = abstract(params)
  shard = np.asarray(params['block']['w'].addressable_shards[3].data).tobytes()
  rest = np.asarray(params['count'].addressable_shards[6].data).tobytes()
  rng = np.random.default_rng(0)
  num_matches = 0
  for path in files_of(directory / '2' / 'params'):
    data = path.read_bytes()
    for name, part in (('block/w', shard), ('count', rest)):
      start = data.find(part)
      if start < 0:
        continue
      num_matches += 1
      for at in [0, *rng.integers(0, len(part), 12), len(part) - 1]:
        path.write_bytes(flipped(data, start + int(at)))
        error = read_error(directory, params, abstract_params)
        assert names(error, 2, directory, 'params', name)
      path.write_bytes(data)
  assert num_matches >= 2
  assert read_error(directory, params, abstract_params) is None


def test_no_damage_to_any_file_is_used_silently(saved):
  """Flips, truncates and removes files: a clear error, or no effect."""
  directory, params = saved
  abstract_params = abstract(params, mesh_of(1, 1))
  rng = np.random.default_rng(1)
  damaged_items = set()
  for path in files_of(directory / '2'):
    data = path.read_bytes()
    variants = [data[: len(data) // 2], b'', None]
    variants += [flipped(data, int(at)) for at in rng.integers(0, len(data), 4)]
    for variant in variants:
      path.unlink() if variant is None else path.write_bytes(variant)
      error = read_error(directory, params, abstract_params)
      if error:
        item = path.relative_to(directory / '2').parts[0]
        assert names(error, 2, directory, item)
        assert names(error, 1)  # the other step
        damaged_items.add(item)
      path.write_bytes(data)
  assert damaged_items == {
    'params',
    'index',
    'model',
    'meta',
    'commit_success.txt',
  }
  assert read_error(directory, params, abstract_params) is None


def test_changed_json_that_still_parses_is_detected(saved):
  directory, _ = saved
  path = directory / '2' / 'meta' / 'metadata'
  path.write_text(path.read_text().replace('"step": 2', '"step": 3'))
  with pytest.raises(UserError, match=naming(2, directory, 'meta')):
    orbax_checkpoint.read_json(directory, 'meta')


@pytest.mark.parametrize('item', ['params', 'index', 'meta'])
def test_missing_item_of_the_latest_step_raises(saved, item):
  directory, params = saved
  shutil.rmtree(directory / '2' / item)
  with pytest.raises(UserError, match=naming(2, directory, item)):
    orbax_checkpoint.restore_params(directory, abstract(params))
    orbax_checkpoint.read_json(directory, 'meta')
  older = orbax_checkpoint.restore_params(directory, abstract(params), step=1)
  assert same_bits(older, make_params(seed=1))


@pytest.mark.parametrize('version', [None, 0, integrity.FORMAT_VERSION + 1])
def test_other_format_versions_are_rejected(saved, version):
  directory, params = saved
  path = directory / '2' / 'index' / 'metadata'
  index = json.loads(path.read_text())['value']
  index['format_version'] = version
  if version is None:
    del index['format_version']
  path.write_text(json.dumps(integrity.with_checksum('index', index)))
  expected = naming(directory / '2', version, integrity.FORMAT_VERSION)
  for read in (
    lambda: orbax_checkpoint.restore_params(directory, abstract(params)),
    lambda: orbax_checkpoint.read_json(directory, 'meta'),
  ):
    with pytest.raises(UserError, match=expected) as caught:
      read()
    assert '\n' not in str(caught.value)


def test_exchanged_arrays_are_detected(tmp_path):
  """Complete files of another step."""
  params = make_params()
  with CheckpointManager(tmp_path) as writer:
    writer.save(1, make_params(seed=1))
    writer.save(2, params)
  shutil.rmtree(tmp_path / '2' / 'params')
  shutil.copytree(tmp_path / '1' / 'params', tmp_path / '2' / 'params')
  with pytest.raises(
    UserError, match=naming(2, tmp_path, 'params') + '.*block/'
  ):
    orbax_checkpoint.restore_params(tmp_path, abstract(params))


def reads_of(directory, abstract_params):
  """Returns every way to read the newest step."""
  return (
    lambda: orbax_checkpoint.restore_params(directory, abstract_params),
    lambda: orbax_checkpoint.restore(directory, abstract_params, {}),
    lambda: orbax_checkpoint.read_json(directory, 'meta'),
    lambda: orbax_checkpoint.read_json(directory, 'index'),
    lambda: orbax_checkpoint.identity(directory),
  )


def test_a_step_in_the_folder_of_another_step_is_rejected(saved):
  directory, params = saved
  abstract_params = abstract(params)
  (directory / '2').rename(directory / '7')
  for read in reads_of(directory, abstract_params):
    with pytest.raises(UserError, match=naming(directory / '7', 2)):
      read()
  (directory / '7').rename(directory / 'x')
  (directory / '1').rename(directory / '2')
  (directory / 'x').rename(directory / '1')
  for read in reads_of(directory, abstract_params):
    with pytest.raises(UserError, match=naming(directory / '2', 1)):
      read()
  with pytest.raises(UserError, match=naming(directory / '1', 2)):
    orbax_checkpoint.restore_params(directory, abstract_params, step=1)


@pytest.mark.parametrize('item', ['model', 'meta'])
def test_a_json_item_of_another_step_is_detected(tmp_path, item):
  with CheckpointManager(tmp_path) as writer:
    for step in (1, 2):
      values = {'model': {'layers': step}, 'meta': {'step': step}}
      writer.save(step, {'w': jnp.arange(4.0)}, **values)
  shutil.rmtree(tmp_path / '2' / item)
  shutil.copytree(tmp_path / '1' / item, tmp_path / '2' / item)
  with pytest.raises(UserError, match=naming(2, tmp_path, item)):
    orbax_checkpoint.read_json(tmp_path, item)


@pytest.mark.parametrize(
  'unreadable_path',
  [
    '',
    '2',
    '2/index',
    '2/index/metadata',
    '2/params',
    '2/params/manifest.ocdbt',
    '2/params/d',
    '2/params/_METADATA',
  ],
)
def test_what_may_not_be_read_is_not_called_damaged(unreadable_path):
  params = make_params(mesh_of(1, 1))
  with unreadable.folder() as directory:
    with CheckpointManager(directory) as writer:
      writer.save(2, params, meta={'step': 2})
    path = os.path.join(directory, unreadable_path)
    with (
      unreadable.made(path),
      pytest.raises(UserError, match='Permission denied') as caught,
    ):
      orbax_checkpoint.restore_params(directory, abstract(params))
    assert directory in str(caught.value)
    assert 'delete' not in str(caught.value)
    assert '\n' not in str(caught.value)
    restored = orbax_checkpoint.restore_params(directory, abstract(params))
    assert same_bits(restored, params)


@pytest.mark.parametrize('item', ['index/metadata', 'params/manifest.ocdbt'])
def test_a_folder_in_place_of_a_file_is_not_called_damaged(saved, item):
  directory, params = saved
  path = directory / '2' / item
  path.unlink()
  path.mkdir()
  with pytest.raises(UserError, match=naming(path.parents[0])) as caught:
    orbax_checkpoint.restore_params(directory, abstract(params))
  assert 'delete' not in str(caught.value)


def test_a_file_in_place_of_a_directory_is_one_line(tmp_path):
  file = tmp_path / 'file'
  file.write_text('')
  for read in (
    *reads_of(file, {}),
    lambda: orbax_checkpoint.steps(file),
    lambda: CheckpointManager(file),
  ):
    with pytest.raises(UserError, match=naming(file)):
      read()


def test_only_unfinished_saves_may_be_deleted(saved, caplog):
  """A renamed step is ignored, but it may be the only copy of a model."""
  directory, params = saved
  shutil.copytree(directory / '2', directory / '0007')
  with caplog.at_level(logging.WARNING, 'absl'):
    orbax_checkpoint.restore_params(directory, abstract(params))
  assert lines_with(caplog.text, directory / '0007')
  assert 'delete' not in caplog.text


CHILD = """
import sys
import jax.numpy as jnp
from grm_jax.checkpoint.orbax_checkpoint import CheckpointManager
with CheckpointManager(sys.argv[1], max_to_keep=2) as writer:
  for step in range(int(sys.argv[2]), 1000):
    w = jnp.full((1 << 20,), step, jnp.float32)
    params = {f'w{i}': w + 0 for i in range(4)}
    writer.save(step, params, meta={'step': step})
    print(step, flush=True)
"""


def child_environment(devices):
  flag = f'--xla_force_host_platform_device_count={devices}'
  return {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': flag,
    'PYTHONPATH': str(ROOT),
  }


def kill_in_a_save(directory, first, delay):
  """Kills a child process `delay` seconds after its third save begins."""
  child = subprocess.Popen(
    [sys.executable, '-c', CHILD, str(directory), str(first)],
    env=child_environment(1),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  tmp = directory / f'{first + 2}.orbax-checkpoint-tmp'
  limit = time.monotonic() + HANG_TIMEOUT_S
  try:
    while not tmp.exists() and not (directory / str(first + 2)).exists():
      assert child.poll() is None and time.monotonic() < limit
    time.sleep(delay)
  finally:
    child.send_signal(signal.SIGKILL)
    child.wait()


def test_kill_during_a_save_leaves_earlier_steps(tmp_path, caplog):
  single = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  leaf = jax.ShapeDtypeStruct((1 << 20,), np.float32, sharding=single)
  abstract_params = {f'w{i}': leaf for i in range(4)}
  leftovers = 0
  for delay in (0, 0.003, 0.01, 0.03):
    first = max(orbax_checkpoint.steps(tmp_path), default=0) + 1
    kill_in_a_save(tmp_path, first, delay)
    steps = orbax_checkpoint.steps(tmp_path)
    assert steps and steps[-1] >= first + 1
    for step in steps[-2:]:
      restored = orbax_checkpoint.restore_params(
        tmp_path, abstract_params, step
      )
      assert {float(x) for w in restored.values() for x in w[::9999]} == {step}
      assert orbax_checkpoint.read_json(tmp_path, 'meta', step) == {
        'step': step
      }
    unfinished = [p for p in tmp_path.iterdir() if 'tmp' in p.name]
    leftovers += len(unfinished)
    with caplog.at_level(logging.WARNING, 'absl'):
      caplog.clear()
      orbax_checkpoint.restore_params(tmp_path, abstract_params)
    for path in unfinished:
      assert lines_with(caplog.text, path)
  assert leftovers, 'no kill interrupted a save; choose other delays'


def test_leftover_of_the_step_being_saved(saved, caplog):
  directory, params = saved
  shutil.copytree(directory / '2', directory / '5.orbax-checkpoint-tmp')
  (directory / '5.orbax-checkpoint-tmp' / 'commit_success.txt').unlink()
  with (
    caplog.at_level(logging.WARNING, 'absl'),
    CheckpointManager(directory) as writer,
  ):
    assert lines_with(caplog.text, directory / '5.orbax-checkpoint-tmp')
    assert writer.steps() == [1, 2]
    writer.save(5, make_params(seed=5))
  restored = orbax_checkpoint.restore_params(directory, abstract(params))
  assert same_bits(restored, make_params(seed=5))
  assert orbax_checkpoint.steps(directory) == [1, 2, 5]


def test_full_disk_is_reported(saved, caplog):
  directory, params = saved
  writer = CheckpointManager(directory)
  with full_disk.limit_file_size(1000):
    writer.save(3, {'w': jnp.zeros((100, 100))})
    with pytest.raises(
      UserError, match=naming(directory, full_disk.ERROR_TEXT)
    ):
      writer.wait()
  # Wait for its threads, which may still write where the next writer cleans.
  with contextlib.suppress(ValueError):
    writer.close()
  assert 'Traceback' not in caplog.text
  assert orbax_checkpoint.steps(directory) == [1, 2]
  with CheckpointManager(directory) as writer:
    writer.save(3, params)
  assert orbax_checkpoint.steps(directory) == [1, 2, 3]


def test_failed_save_is_reported(saved, monkeypatch):
  directory, params = saved
  writer = CheckpointManager(directory)

  async def fail(*unused):
    raise OSError('disk full')

  json_handler = orbax_checkpoint.ocp.handlers.JsonCheckpointHandler
  with monkeypatch.context() as patch:
    patch.setattr(json_handler, '_save_fn', fail)
    writer.save(3, params)
    with pytest.raises(ValueError, match=naming(directory, 'disk full')):
      writer.wait()
    # Wait for its threads, which may still write where the next writer cleans.
    with contextlib.suppress(ValueError):
      writer.close()
  assert orbax_checkpoint.steps(directory) == [1, 2]
  with CheckpointManager(directory) as writer:
    writer.save(3, params)
  assert orbax_checkpoint.steps(directory) == [1, 2, 3]


def test_orbax_info_lines_are_silenced(tmp_path, caplog):
  with caplog.at_level(logging.INFO):
    with CheckpointManager(tmp_path) as writer:
      writer.save(1, {'w': jnp.zeros(4)})
    logging.getLogger('absl').info('other line')
  orbax_records = [r for r in caplog.records if '/orbax/' in r.pathname]
  assert orbax_records == []
  assert 'other line' in caplog.text


def test_two_processes(tmp_path):
  outputs = run_processes(
    ['-m', 'tests.checkpoint.checkpoints_two_processes', tmp_path / 'run']
  )
  checksums = set()
  for process, output in enumerate(outputs):
    last = output.strip().splitlines()[-1]
    assert last.startswith(f'process {process} checksum')
    checksums.add(int(last.split()[-1]))
  index = json.loads((tmp_path / 'run/3/index/metadata').read_text())['value']
  assert checksums == {index['arrays']['params']['w']['checksum']}
  # One process reads what two wrote.
  split = NamedSharding(mesh_of(4, 1), PartitionSpec('a'))
  abstract_params = {
    'w': jax.ShapeDtypeStruct((64, 16), np.float32, sharding=split),
    'count': jax.ShapeDtypeStruct(
      (), np.int32, sharding=NamedSharding(mesh_of(4, 1), PartitionSpec())
    ),
  }
  restored = orbax_checkpoint.restore_params(tmp_path / 'run', abstract_params)
  expected = np.arange(64 * 16, dtype=np.float32).reshape(64, 16)
  np.testing.assert_array_equal(restored['w'], expected)


def test_a_lost_process_is_no_full_disk(tmp_path):
  texts = [
    'UNKNOWN: Gloo AllGather failed: [external/gloo/gloo/transport/tcp/pair.cc'
    ':538] Read error [127.0.0.1]:45477: Connection reset by peer',
    'DEADLINE_EXCEEDED: Barrier save timed out after 600 s',
    'UNAVAILABLE: the coordination service agent was shut down',
  ]
  for text in texts:
    with (
      pytest.raises(ValueError, match=re.escape(text)) as error,
      orbax_errors.wrap_save_errors(tmp_path),
    ):
      raise ValueError(text)
    assert not isinstance(error.value, UserError)
    assert distributed.is_lost_peer(error.value)
  full = ValueError("RESOURCE_EXHAUSTED: write failed [os_error_code='28': x]")
  assert not distributed.is_lost_peer(full)
  with (
    pytest.raises(UserError, match=naming(tmp_path)),
    orbax_errors.wrap_save_errors(tmp_path),
  ):
    raise full
