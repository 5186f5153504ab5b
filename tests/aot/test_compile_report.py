"""Report about programs compiled ahead of time, here for CPU devices."""

import dataclasses
import json
import runpy

import jax
import pytest

from grm_jax.aot import compile_report, cost_model, tables
from grm_jax.errors import UserError
from grm_jax.model import config as model_config
from grm_jax.sharding.chip_specs import CHIPS
from grm_jax.training import flops
from tests import test_main
from tests.messages import lines_with, names, naming, setting

SMALL = {
  'num_layers': 2,
  'micro_batch_prompts': 8,
  'prompt_size': 16,
  'num_generations': 2,
  'generation_size': 8,
  'mesh.fsdp': 4,
  'mesh.tensor': 2,
}


def config(**changes):
  found = runpy.run_path(str(test_main.ROOT / 'configs/aot.py'))['get_config'](
    'tiny'
  )
  found.update_from_flattened_dict(SMALL | changes)
  return found


@pytest.fixture(scope='module')
def update():
  return compile_report.compile_step(config(grad_accum_steps=3))


def test_an_update(update):
  assert [x['name'] for x in update['programs']] == ['gradients', 'update']
  assert [x['runs_per_step'] for x in update['programs']] == [3, 1]
  lengths = [16] * 8, [[8] * 2] * 8
  tiny_config = model_config.from_name('tiny')
  of_size = flops.train_step(
    type(tiny_config)(**{**vars(tiny_config), 'num_layers': 2}), *lengths
  )
  # Counts of one of 8 devices, in 3 batches.
  assert update['useful_flops'] == 3 * (of_size.total // 8)
  assert update['computed_flops'] > update['useful_flops']
  assert update['recompute_factor'] == pytest.approx(
    update['computed_flops'] / update['useful_flops'], abs=1e-3
  )


def test_memory_adds_up(update):
  gradients, apply = update['programs']
  # float32 parameters, two moments; a reference in bfloat16 that waits.
  assert update['parameters_bytes'] * 2 <= update['optimizer_bytes']
  assert gradients['resident_bytes'] == update['optimizer_bytes']
  assert apply['resident_bytes'] < update['parameters_bytes']
  for part in update['programs']:
    assert (
      part['peak_bytes'] >= part['resident_bytes'] + part['arguments_bytes']
    )
  assert update['peak_bytes'] == max(
    x['peak_bytes'] for x in update['programs']
  )
  assert update['fits'] is update['memory_bytes'] is None  # of a CPU


def test_an_update_of_an_adapter(update):
  """The base is a parameter in int8; the state is that of the adapter."""
  adapted = compile_report.compile_step(
    config(grad_accum_steps=3, **{'lora.rank': 4, 'lora.base_dtype': 'int8'})
  )
  assert [x['name'] for x in adapted['programs']] == ['gradients', 'update']
  # Kernels of 1 byte instead of 4, the table of 2.
  assert adapted['parameters_bytes'] < 0.5 * update['parameters_bytes']
  # No reference, and moments of the factors alone.
  assert adapted['optimizer_bytes'] < 0.25 * update['optimizer_bytes']
  # No gradients of kernels.
  assert adapted['useful_flops'] < 0.75 * update['useful_flops']
  gradients, apply = adapted['programs']
  assert gradients['arguments_bytes'] >= adapted['parameters_bytes']
  assert apply['resident_bytes'] < adapted['parameters_bytes']


def test_collectives_over_the_axes_of_the_mesh(update):
  kinds = {
    (row['kind'], tuple(row['axes']))
    for row in update['programs'][0]['collectives']
  }
  assert ('all-gather', ('fsdp',)) in kinds
  assert ('all-reduce', ('tensor',)) in kinds
  sent = sum(
    part['runs_per_step'] * row['sent_bytes']
    for part in update['programs']
    for row in part['collectives']
  )
  assert update['network_bytes'] == sent > 0


@pytest.mark.parametrize(
  'program', ['sft_step', 'reward_model_step', 'reference', 'prefill', 'decode']
)
def test_every_program(program):
  found = compile_report.compile_step(config(program=program))
  assert found['program'] == program
  assert found['computed_flops'] >= found['useful_flops'] > 0
  assert found['hbm_bytes'] > found['parameters_bytes']
  printed = tables.report(found)
  useful = f'{found["useful_flops"] / 1e12:.4g}'
  assert names(printed, 'all-reduce', useful)
  if program == 'decode':
    assert found['programs'][0]['hbm_by_bound'] >= 1
  json.dumps(found)


@pytest.mark.parametrize(
  'what, share',  # of the parameters: in bfloat16, or two moments
  [('reference', 0.5), ('optimizer', 2.0)],
)
def test_what_is_on_the_host_leaves_room(what, share):
  on_device, on_host = (
    compile_report.compile_step(config(**{f'{what}.offload_to_host': x}))
    for x in (False, True)
  )
  params = on_device['parameters_bytes']
  room = on_device['optimizer_bytes'] - on_host['optimizer_bytes']
  assert room == pytest.approx(share * params, rel=0.01)
  kernels = params - on_host['parameters_bytes']
  if what == 'reference':
    assert kernels == 0
  else:  # bfloat16 instead of float32, and less of the rest
    assert 0.2 * params < kernels < 0.5 * params


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'program': 'fit'}, (*setting('program', 'fit'), 'sft_step')),
    ({'grad_accum_steps': 0}, setting('grad_accum_steps', 0)),
    ({'micro_batch_prompts': 6}, ('prompts', 6)),
    ({'sweep': 'fsdp,expert'}, setting('sweep', 'fsdp,expert')),
    (
      {'sweep': 'fsdp', 'micro_batch_prompts': 6},
      ('config.sweep', 'prompts', 6),
    ),
    ({'reference.dtype': 'int8'}, setting('reference.dtype', 'int8')),
  ],
)
def test_mistakes(changes, words):
  with pytest.raises(UserError, match=naming(*words)):
    compile_report.run(config(**changes), '')


def test_a_sweep_ranks_meshes(tmp_path, capsys, monkeypatch):
  made = []

  def compile_step(own):
    found = {axis: own.mesh[axis] for axis in ('data', 'fsdp', 'tensor')}
    made.append((found['fsdp'], found['tensor']))
    if found['tensor'] == 8:
      raise UserError('kv_heads has size 2')
    seconds = {1: 3.0, 2: 1.0, 4: 2.0}[found['tensor']]
    return {
      'mesh': found,
      'peak_bytes': 2**30,
      'fits': found['tensor'] != 2,
      'calibrated_seconds': seconds,
      'calibrated_mfu': 0.25,
      'calibration_error': 0.125,
      'bound_seconds': 0.5,
      'bound': 'memory',
    }

  monkeypatch.setattr(compile_report, 'compile_step', compile_step)
  path = tmp_path / 'sweep.json'
  compile_report.run(config(sweep='fsdp,tensor', json=str(path)), '')
  assert sorted(made) == [(1, 8), (2, 4), (4, 2), (8, 1)]
  # Meshes that fit come first, the fastest of them before the others.
  found = [x['mesh']['tensor'] for x in json.loads(path.read_text())]
  assert found == [4, 1, 2]
  out = capsys.readouterr().out
  (best,) = lines_with(out, '1.')
  assert names(best, 'data=1', 'fsdp=2', 'tensor=4')
  assert names(best, '1.000 GiB', '2 s +-12%', 'memory', '0.5 s', '25.0%')


def test_times_by_hand():
  """v5e: 197 TFLOP/s, 819 GB/s."""
  chip = dataclasses.replace(CHIPS['v5e'], calibration=0.5)
  costs = {
    'computed_flops': 394 * 10**12,
    'hbm_bytes': 819 * 10**9,
    'network_seconds': 0.75,
    'core_seconds': 3.0,
    'exposed_seconds': 0.25,
  }
  training = cost_model._predict(costs, chip, is_decode=False)
  assert training == {
    'compute_seconds': 2.0,
    'memory_seconds': pytest.approx(1.0),
    'bound_seconds': 2.0,
    'bound': 'compute',
    'xla_seconds': 3.25,
    'calibrated_seconds': 1.625,
    'calibration_error': 0.28,
  }
  decode = cost_model._predict(costs, chip, is_decode=True)
  changed = {'calibrated_seconds': pytest.approx(3.9), 'calibration_error': 0.2}
  assert decode == training | changed


def test_times_of_a_step_by_hand():
  """394 TFLOP of a v5e take 2 s at peak."""
  chip = CHIPS['v5e']
  program = {
    'runs_per_step': 3,
    'bound_seconds': 1.0,
    'bound': 'compute',
    'xla_seconds': 1.5,
    'calibrated_seconds': 1.25,
    'calibration_error': 0.1,
  }
  update = program | {'runs_per_step': 1, 'bound': 'memory'}
  assert compile_report._step_time([program, update], 394 * 10**12, chip) == {
    'bound_seconds': 4.0,
    'bound_mfu': 0.5,
    'xla_seconds': 6.0,
    'xla_mfu': 0.333,
    'calibrated_seconds': 5.0,
    'calibrated_mfu': 0.4,
    'bound': 'compute',
    'calibration_error': 0.1,
  }


def test_devices_here():
  assert compile_report.compile_step(config(program='prompts'))[
    'devices'
  ] == len(jax.devices())
