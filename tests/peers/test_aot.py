"""The 27B compiles for TPU slices and fits: an update, reading, decode.

The scanned layer pair is compiled once, so depth costs nothing and all 46
layers are there. Decode unrolls its layers, so two of them stand for all.
"""

import json
import os

import pytest

from benchmarks import aot_table
from grm_jax.aot import topology as aot_topology
from tests.messages import lines_with, names
from tests.test_main import error_of, run


@pytest.mark.parametrize('program', ['prompts', 'generations'])
@pytest.mark.parametrize(
  'topology, tensor, hbm', [('v5p:4x4x4', 1, 95), ('v6e:8x8', 4, 31.25)]
)
def test_compiles_and_fits(tmp_path, topology, tensor, hbm, program):
  report = tmp_path / 'report.json'
  stdout, stderr = run(
    '--config=configs/aot.py',
    f'--config.topology={topology}',
    f'--config.program={program}',
    f'--config.mesh.tensor={tensor}',
    f'--config.json={report}',
  )
  assert 'rematerialization' not in stderr
  report = json.loads(report.read_text())
  print(stdout)
  assert report['attention'] == 'splash'
  assert report['devices'] == 64
  assert report['fits'] is True
  assert report['memory_bytes'] == hbm * 2**30
  # float32 parameters over 64 devices, every one split but for the norms.
  expected = 4 * 27_227_128_320 / 64
  assert report['parameters_bytes'] == pytest.approx(expected, rel=0.01)
  # Whole tiles of attention, and padding of the vocabulary: little is more.
  assert 1 <= report['recompute_factor'] < 1.25


def test_an_update_of_the_27b(tmp_path):
  """128 groups of 4 by 64 chips, 64 at a time, as launch/tpu.sh runs it."""
  (row,) = (
    x for x in aot_table.read_rows() if x[:3] == ('v5p:4x4x4', '27b', 'grpo')
  )
  assert 'sparse_core' in row.flags
  report = tmp_path / 'report.json'
  stdout, stderr = run(
    *aot_table.aot_arguments(row, 'grpo_update'),
    # It would make the compilation several times as long.
    '--config.compute.scoped_vmem_kib=0',
    f'--config.json={report}',
    env=os.environ | {'LIBTPU_INIT_ARGS': row.flags},
  )
  print(stdout)
  assert 'rematerialization' not in stderr
  report = json.loads(report.read_text())
  assert report['fits'] is True
  # Two moments in float32, a reference in bfloat16.
  assert report['optimizer_bytes'] == pytest.approx(
    2.5 * report['parameters_bytes'], rel=0.01
  )
  # No prompt twice, and little again in the backward pass.
  assert 1 <= report['recompute_factor'] < 1.1
  # The three times: the estimate is above the bound, and the program does not
  # become slower than it was (0.64).
  assert report['bound_seconds'] < report['calibrated_seconds']
  assert report['bound_seconds'] < report['xla_seconds']
  assert report['xla_mfu'] > 0.62
  gradients = report['programs'][0]
  # One attention call a layer, whose forward kernel is not run again.
  kernels = gradients['kernel_seconds'] / gradients['core_seconds']
  assert 0.03 < kernels < 0.08
  # The network is mostly hidden behind other work.
  assert gradients['exposed_seconds'] < 0.03 * gradients['core_seconds']
  sent = {
    (x['kind'], *x['axes']): x['sent_bytes']
    for x in report['programs'][0]['collectives']
  }
  # Kernels in bfloat16, gathered twice; gradients scattered once; what is left
  # of these over `data` is a part in 32.
  kernels = 2 * 27_227_128_320
  assert sent['all-gather', 'fsdp'] < 2 * kernels
  assert sent['reduce-scatter', 'fsdp'] < kernels
  assert sent['all-reduce', 'data'] < kernels / 16
  assert sent['all-reduce', 'data', 'fsdp'] < kernels / 1000


@pytest.mark.parametrize('int8', [False, True])
def test_a_decode_step_moves_little_but_weights_and_caches(tmp_path, int8):
  report = tmp_path / 'report.json'
  stdout, stderr = run(
    '--config=configs/aot.py',
    '--config.program=decode',
    '--config.topology=v5p:2x2x2',
    '--config.mesh.tensor=8',
    '--config.mesh.fsdp=1',
    '--config.micro_batch_prompts=8',
    '--config.num_generations=8',
    '--config.num_layers=2',
    f'--config.sampling.int8={int8}',
    f'--config.json={report}',
  )
  assert 'rematerialization' not in stderr
  report = json.loads(report.read_text())
  print(stdout)
  assert report['fits'] is True
  network_bytes = report['network_bytes']
  (report,) = report['programs']
  # Kernels of two layers: query and out, key and value, the MLP; the table.
  width, mlp, heads, kv_heads, size = 4608, 36_864, 32, 16, 128
  layer = width * (2 * (heads + kv_heads) * size + 3 * mlp)
  weights = (2 * layer + 256_000 * width) // 8 * (1 if int8 else 2)
  # Keys and values in bfloat16: 2,048 places of each of 8 prompts and 1,008 of
  # each of their 8 generations: what a last call of 16 draws is never kept.
  caches = 2 * 2 * 8 * (2048 + 8 * 1008) * kv_heads // 8 * size * 2
  # Norms and scales are the rest.
  assert report['bound_bytes'] == pytest.approx(weights + caches, rel=2e-3)
  assert report['bound_bytes'] >= weights + caches
  assert report['arguments_bytes'] == pytest.approx(weights + caches, rel=5e-3)
  # Besides: logits, and activations between the products, which do not
  # shrink with int8. A copy of one layer's own keys, 67 MB both ways, or of
  # a kernel of its MLP would be over.
  assert 1 <= report['hbm_by_bound'] <= (1.25 if int8 else 1.15)
  by_bound = report['hbm_bytes'] / report['bound_bytes']
  assert report['hbm_by_bound'] == pytest.approx(by_bound, abs=1e-3)
  # Two products a layer are summed over the mesh, 64 x D each, in float32 with
  # int8; the lookup is another sum, and drawing a token adds little. A sum over
  # 8 devices sends 7/8 of it twice.
  summed = 2 * 7 / 8 * 4 * 64 * width * 2
  assert summed <= network_bytes <= (2.3 if int8 else 1.4) * summed


def test_two_slices(tmp_path):
  """Gradients, already summed in each slice, go to the other one once."""
  report = tmp_path / 'report.json'
  run(
    '--config=configs/aot.py',
    '--config.program=sft_step',
    '--config.topology=v5p:2x2x2',
    '--config.mesh.num_slices=2',
    '--config.mesh.data=2',
    '--config.size=tiny',
    '--config.compute.attention=xla',
    '--config.micro_batch_prompts=16',
    '--config.num_generations=1',
    '--config.prompt_size=128',
    '--config.generation_size=128',
    f'--config.json={report}',
  )
  report = json.loads(report.read_text())
  assert (report['devices'], report['mesh']['data']) == (16, 2)
  rows = report['programs'][0]['collectives']
  sent = sum(x['sent_bytes'] for x in rows if 'data' in x['axes'])
  # A sum between two sends what each has, its eighth of the gradients: in
  # bfloat16 but for the lookup's, of a table that the head's are of, too.
  assert 0.5 < sent / report['parameters_bytes'] < 1.5
  seconds = sum(x['seconds'] for x in rows if 'data' in x['axes'])
  assert seconds == pytest.approx(sent / 6.25e9)


def test_a_chip_of_v4_is_one_device(tmp_path):
  report = tmp_path / 'report.json'
  run(
    '--config=configs/aot.py',
    '--config.program=prompts',
    '--config.topology=v4:2x2x2',
    '--config.size=gemma2_2b',
    '--config.num_layers=2',
    '--config.micro_batch_prompts=8',
    f'--config.json={report}',
  )
  report = json.loads(report.read_text())
  assert (report['devices'], report['memory_bytes']) == (8, 30.75 * 2**30)


def test_a_chip_of_tpu7x_is_two_devices(tmp_path):
  report = tmp_path / 'report.json'
  run(
    '--config=configs/aot.py',
    '--config.program=prompts',
    '--config.topology=tpu7x:2x2x1',
    '--config.size=gemma2_2b',
    '--config.num_layers=2',
    '--config.micro_batch_prompts=8',
    '--config.prompt_size=256',
    f'--config.json={report}',
  )
  report = json.loads(report.read_text())
  assert report['devices'] == 8
  assert report['memory_bytes'] == pytest.approx(0.95 * 96 * 2**30)
  assert 0 < report['bound_seconds'] < report['xla_seconds']


def test_a_state_on_the_host_passes_by_in_parts(tmp_path):
  report = tmp_path / 'report.json'
  run(
    '--config=configs/aot.py',
    '--config.program=sft_step',
    '--config.topology=v5e:2x2',
    '--config.size=gemma2_2b',
    '--config.micro_batch_prompts=4',
    '--config.prompt_size=256',
    '--config.num_generations=1',
    '--config.generation_size=128',
    '--config.optimizer.offload_to_host=True',
    f'--config.json={report}',
  )
  report = json.loads(report.read_text())
  params, (_, update) = report['parameters_bytes'], report['programs']
  # In float32, on four chips.
  table = 256_000 * 2304
  layers = 2_614_341_888 - table
  assert params == pytest.approx(table + layers / 2, rel=0.01)
  assert report['optimizer_bytes'] < params / 100
  # Two moments of all and the exact parameters of layers.
  host = 2 * table + 3 * layers
  assert update['on_host_bytes'] == pytest.approx(host, rel=0.01)
  # The parameters and all gradients, and some of what is on the host: the
  # table passes by in one part, with its moments.
  given = params + table + layers
  assert update['arguments_bytes'] == pytest.approx(given, rel=0.01)
  assert update['peak_bytes'] < given + 4.5 * table


def test_too_much_does_not_fit():
  """512 prompts with 4 generations on four v5e chips need over 16 GiB."""
  stdout, _ = run(
    '--config=configs/aot.py',
    '--config.topology=v5e:2x2',
    '--config.num_layers=4',
    '--config.micro_batch_prompts=512',
  )
  assert lines_with(stdout, 'fits', False)


def test_a_single_chip():
  assert len(aot_topology.devices('v5e:1x1')) == 1


def test_unknown_topologies():
  line = error_of('--config=configs/aot.py', '--config.topology=v9:2x2')
  assert names(line, 'v9:2x2', 'v5p')
  line = error_of('--config=configs/aot.py', '--config.topology=v5p:3x5x7x2')
  assert names(line, 'v5p:3x5x7x2', 'libtpu')
