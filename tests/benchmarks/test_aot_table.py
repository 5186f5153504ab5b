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
  'stage, program, overrides, expected',
  [
    (
      'grpo',
      'grpo_update',
      ['mesh.fsdp=4', 'mesh.decode_tensor=2', 'batch.micro_batch_prompts=32'],
      ['micro_batch_prompts=32', 'grad_accum_steps=4', 'mesh.fsdp=4'],
    ),
    (
      'grpo',
      'decode',
      ['mesh.decode_tensor=4', 'rollout.int8=True', 'lora.rank=4'],
      [
        'program=decode',
        'micro_batch_prompts=64',
        'sampling.int8=True',
        'mesh.decode_tensor=4',
      ],
    ),
    (
      # One prompt for each of two parts of the slice.
      'score',
      'prefill',
      ['mesh.decode_tensor=4', 'sampling.prompt_buckets=(512,)'],
      [
        'program=prefill',
        'micro_batch_prompts=2',
        'prompt_size=512',
        'mesh.decode_tensor=4',
      ],
    ),
    (
      'rft',
      'sft_step',
      ['train.lora.rank=4', 'train.batch.grad_accum_steps=2'],
      [
        'program=sft_step',
        'lora.rank=4',
        'grad_accum_steps=2',
        'num_generations=2',
        'optimizer.learning_rate=5e-06',
        'optimizer.schedule=cosine',
        'optimizer.warmup_steps=40',
      ],
    ),
    (
      'sft',
      'sft_step',
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
      'reward_model_step',
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
def test_program_of_a_row(stage, program, overrides, expected):
  overrides = [f'--config.{x}' for x in overrides]
  arguments = aot_table.aot_arguments(
    Row('v6e:2x4', '9b-lora', stage, overrides, ''), program
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


def report(program, **values):
  """Returns what the tables read of a report by configs/aot.py."""
  return {
    'program': program,
    'mesh': {'data': 1, 'fsdp': 8, 'tensor': 1},
    'micro_batch_prompts': 8,
    'grad_accum_steps': 16,
    'num_generations': 4,
    'generation_size': 1024,
    'bound_seconds': 2.0,
    'xla_seconds': 5.0,
    'xla_mfu': 0.4,
    'calibrated_seconds': 4.75,
    'calibration_error': 0.2,
    'peak_bytes': 31 * GIB,
    'memory_bytes': 32 * GIB,
    'parameters_bytes': GIB,
    'optimizer_bytes': 2 * GIB,
    'programs': [
      {'runs_per_step': 16, 'exposed_seconds': 0.01, 'kernel_seconds': 0.02},
      {'unestimated_fusions': 3},
    ],
  } | values


def test_tables(tmp_path, monkeypatch, capsys):
  """Reports are kept: with all of them there is nothing to compile."""
  row = Row('v6e:2x4', '9b', 'grpo', [], '')
  monkeypatch.setattr(aot_table, 'read_rows', lambda: [row])
  reports = [
    report('grpo_update'),
    report('reference', calibrated_seconds=3.0),
    report('prefill', calibrated_seconds=0.5),
    report('decode', calibrated_seconds=0.025, peak_bytes=4 * GIB),
  ]
  for x in reports:
    row.report(tmp_path, x['program']).write_text(json.dumps(x))
  arguments = ['aot_table', str(tmp_path), 'v6e:2x4', '9b', 'grpo']
  monkeypatch.setattr('sys.argv', arguments)
  aot_table.main()
  lines = capsys.readouterr().out.splitlines()
  assert lines[2] == (
    '| 9B, v6e:2x4 | grpo, grpo_update | 1 x 8 x 1 | 16 x 8 | 2 s | '
    '5 s (0.16, 0.32) | 40% | 4.75 s +-20%, without 3 fusions | '
    '31.0 of 32 GiB |'
  )
  # 128 prompts of 4 generations are 16 prefills of 8 prompts, and 16 times
  # 1024 tokens of 32 rows: 4.75 + 3 + 8 + 409.6 s.
  assert lines[-1] == (
    '| 9B, v6e:2x4 | 4.75 | 3 | 8 | 410 | 425 s | 236 h +-20% | '
    '31.0 of 32 GiB | 7.0 of 32 GiB |'
  )


def test_names_of_rows_with_adapters():
  overrides = [
    '--config.train.lora.rank=4',
    '--config.train.lora.base_dtype=int8',
  ]
  row = Row('v6e:1x1', '9b-lora', 'rft', overrides, '')
  line = aot_table.line(row, report('sft_step'))
  assert line.startswith('| 9B, v6e:1x1, LoRA on int8 | rft, sft_step |')
