"""Rows of configs/tpu.txt as programs, and the table of their reports."""

import json

import pytest

from benchmarks import aot_table, harness
from benchmarks.aot_table import Row

# config_flags loads a config's file so.
pytestmark = pytest.mark.filterwarnings('ignore:the load_module')

GIB = 2**30


def test_rows_of_the_file(tmp_path, monkeypatch):
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'configs' / 'tpu.txt').write_text(
    '# A comment.\nfast = --xla_a=1 --xla_b=2\n'
    'v6e:2x4 | 9b | grpo | --config.x=1 --config.y=2 | fast --xla_c=3\n'
    'v5e:4x4 | 2b | sft | --config.x=1 |\n'
  )
  monkeypatch.setattr(harness, 'ROOT', tmp_path)
  assert aot_table.read_rows() == [
    Row(
      'v6e:2x4',
      '9b',
      'grpo',
      ['--config.x=1', '--config.y=2'],
      '--xla_a=1 --xla_b=2 --xla_c=3',
    ),
    Row('v5e:4x4', '2b', 'sft', ['--config.x=1'], ''),
  ]


@pytest.mark.parametrize(
  'stage, overrides, expected',
  [
    (
      'grpo',
      ['mesh.fsdp=4', 'mesh.decode_tensor=2', 'batch.micro_batch_prompts=32'],
      ['micro_batch_prompts=32', 'grad_accum_steps=4', 'mesh.fsdp=4'],
    ),
    (
      'sft',
      ['batch.micro_batch_prompts=64', 'compute.remat=dots'],
      [
        'program=sft_step',
        'micro_batch_prompts=64',
        'grad_accum_steps=8',
        'num_generations=1',
        'optimizer.learning_rate=5e-06',
        'optimizer.schedule=cosine',
        'optimizer.warmup_steps=40',
        'compute.remat=dots',
      ],
    ),
    (
      # 512 texts, 4 of a prompt.
      'reward_model',
      ['batch.prompt_buckets=(512,)', 'optimizer.offload_to_host=True'],
      [
        'program=reward_model_step',
        'micro_batch_prompts=32',
        'grad_accum_steps=4',
        'prompt_size=512',
        'optimizer.learning_rate=1e-05',
        'optimizer.offload_to_host=True',
        'optimizer.schedule=cosine',
        'optimizer.warmup_steps=40',
      ],
    ),
  ],
)
def test_program_of_a_row(stage, overrides, expected):
  overrides = [f'--config.{x}' for x in overrides]
  arguments = aot_table.aot_arguments(
    Row('v6e:2x4', '9b', stage, overrides, '')
  )
  assert sorted(arguments) == sorted(
    [
      '--config=configs/aot.py',
      '--config.topology=v6e:2x4',
      '--config.size=gemma2_9b',
      *(f'--config.{x}' for x in expected),
    ]
  )


def test_words_that_no_row_has(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr('sys.argv', ['aot_table', str(tmp_path), 'v6e:3x3'])
  with pytest.raises(SystemExit):
    aot_table.main()
  assert 'v6e:3x3' in capsys.readouterr().err


def test_table(tmp_path, monkeypatch, capsys):
  """Reports are kept: with all of them there is nothing to compile."""
  report = {
    'program': 'grpo_update',
    'topology': 'v6e:2x4',
    'size': 'gemma2_9b',
    'mesh': {'data': 1, 'fsdp': 8, 'tensor': 1},
    'micro_batch_prompts': 8,
    'grad_accum_steps': 16,
    'bound_seconds': 2.0,
    'xla_seconds': 5.0,
    'xla_mfu': 0.4,
    'calibrated_seconds': 4.75,
    'calibration_error': 0.2,
    'peak_bytes': 31 * GIB,
    'memory_bytes': 32 * GIB,
    'programs': [
      {
        'runs_per_step': 16,
        'exposed_seconds': 0.01,
        'kernel_seconds': 0.02,
        'peak_bytes': 30 * GIB,
      },
      {'peak_bytes': 31 * GIB},
    ],
  }
  (tmp_path / 'v6e_2x4_9b_grpo.json').write_text(json.dumps(report))
  arguments = ['aot_table', str(tmp_path), 'v6e:2x4', '9b', 'grpo']
  monkeypatch.setattr('sys.argv', arguments)
  aot_table.main()
  assert capsys.readouterr().out.splitlines()[2:] == [
    '| 9B, v6e:2x4 | grpo_update | 1 x 8 x 1 | 16 x 8 | 2 s | '
    '5 s (0.16, 0.32) | 40% | 4.75 s +-20% | 31.0 of 32 GiB |'
  ]
