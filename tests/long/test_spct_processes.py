"""The whole method by two processes is that by one."""

import json

import pytest

from tests import test_main
from tests.messages import names
from tests.processes import run_together
from tests.stages import spct_run

# Rows of every batch for each of eight devices.
SIZES = """
examples.grpo=16 sft.batch.prompts=8 rft.sampling.prompts=8
rft.train.batch.prompts=8 grpo.prompts=8 grpo.batch.prompts=8
grpo.rollout.prompts=8 meta_rm.batch.prompts=8 meta_rm.evaluation.prompts=8
evaluation.sampling.prompts=8 mesh.sampling_tensor=2
"""


def losses(made, stage):
  rows = map(json.loads, (made / stage / 'metrics.jsonl').open())
  return [row['loss'] for row in rows if 'loss' in row]


def judged(made, name):
  """What a GRM said of held-out examples; a meta RM's numbers are rounded."""
  rows = map(json.loads, (made / f'evaluation/{name}.samples.jsonl').open())
  return [
    (x['example']['id'], x['greedy']['text'], [y['text'] for y in x['samples']])
    for x in rows
  ]


def test_two_processes_of_four_devices_do_as_one_of_eight(
  tmp_path, monkeypatch
):
  """Each reads, tokenizes, judges and rewards its share; one writes."""
  environment = test_main.environment(tmp_path / 'cache')
  for name in environment:
    if name.startswith('JAX_'):
      monkeypatch.setenv(name, environment[name])
  monkeypatch.setenv('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
  run = ['-m', 'grm_jax.main', *spct_run.arguments(tmp_path)]
  run += [f'--config.{x}' for x in SIZES.split()]
  one, two = tmp_path / 'one', tmp_path / 'two'
  run_together([*run, f'--workdir={one}'], count=1, devices=8)
  first, second = run_together([*run, f'--workdir={two}'])
  # The second one speaks of nothing that the first has said.
  report = two / 'evaluation/report.html'
  assert names(first, report) and not names(second, report)
  summaries = [
    json.loads((x / 'evaluation/summary.json').read_text()) for x in (one, two)
  ]
  assert summaries[0] == summaries[1]
  for name in ('sft', 'rft', 'grpo'):
    assert judged(one, name) == judged(two, name), name
  for stage in ('sft', 'rft', 'grpo', 'meta_rm'):
    assert losses(two, stage) == pytest.approx(losses(one, stage), abs=1e-4)
  files = [
    sorted(x.relative_to(made) for x in made.rglob('*.json*'))
    for made in (one, two)
  ]
  assert files[0] == files[1]
