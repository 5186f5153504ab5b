"""The whole method gives the same results with two processes as with one."""

import json

import pytest

from tests import test_main
from tests.messages import names
from tests.processes import run_processes
from tests.stages import spct_run

# A row of every batch for each of eight devices.
SIZES = """
examples.grpo=16 sft.batch.micro_batch_prompts=8
rft.sampling.concurrent_prompts=8 rft.train.batch.micro_batch_prompts=8
grpo.prompts_per_rollout=8
grpo.batch.micro_batch_prompts=8 grpo.rollout.concurrent_prompts=8
meta_rm.batch.micro_batch_prompts=8 meta_rm.evaluation.concurrent_prompts=8
evaluation.sampling.concurrent_prompts=8 mesh.decode_tensor=2
"""


def losses(workdir, stage):
  rows = map(json.loads, (workdir / stage / 'metrics.jsonl').open())
  return [row['loss'] for row in rows if 'loss' in row]


def generations(workdir, name):
  """Returns a GRM's generations for held-out examples.

  Scores of the meta RM are not compared; they differ by rounding.
  """
  rows = map(json.loads, (workdir / f'evaluation/{name}.samples.jsonl').open())
  return [
    (x['example']['id'], x['greedy']['text'], [y['text'] for y in x['samples']])
    for x in rows
  ]


def test_two_processes_of_four_devices_match_one_of_eight(
  tmp_path, monkeypatch
):
  """Each process handles its share of the rows; process 0 writes the files."""
  environment = test_main.environment()
  for name in environment:
    if name.startswith('JAX_'):
      monkeypatch.setenv(name, environment[name])
  monkeypatch.setenv('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
  run = ['-m', 'grm_jax.main', *spct_run.arguments(tmp_path)]
  run += [f'--config.{x}' for x in SIZES.split()]
  one, two = tmp_path / 'one', tmp_path / 'two'
  run_processes([*run, f'--workdir={one}'], count=1, devices=8)
  first, second = run_processes([*run, f'--workdir={two}'])
  # Only process 0 prints.
  report = two / 'evaluation/report.html'
  assert names(first, report) and not names(second, report)
  summaries = [
    json.loads((x / 'evaluation/summary.json').read_text()) for x in (one, two)
  ]
  assert summaries[0] == summaries[1]
  for name in ('sft', 'rft', 'grpo'):
    assert generations(one, name) == generations(two, name), name
  for stage in ('sft', 'rft', 'grpo', 'meta_rm'):
    assert losses(two, stage) == pytest.approx(losses(one, stage), abs=1e-4)
  files = [
    sorted(x.relative_to(workdir) for x in workdir.rglob('*.json*'))
    for workdir in (one, two)
  ]
  assert files[0] == files[1]
