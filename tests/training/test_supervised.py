"""The order of updates, rows, evaluations and checkpoints in the loop.

The loss is half the sum of squares of the parameters, so that an evaluation can
tell which parameters it gets.
"""

import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grm_jax.checkpoint.orbax_checkpoint import CheckpointManager
from grm_jax.data.tokenized_example import BatchShape
from grm_jax.training import supervised
from grm_jax.training.metric_writer import MetricWriter
from grm_jax.training.run import LoadedModel
from grm_jax.training.train_step import AuxMetrics, TrainStep
from tests import test_configs, test_main
from tests.data.fixtures import ragged
from tests.model import tiny
from tests.stages.stage_runs import meta_of, results, steps_in

SETTINGS = {
  'steps': 3,
  'evaluation.every': 2,
  'batch.micro_batch_prompts': 2,
  'optimizer.kind': 'adamw',
  'optimizer.warmup_steps': 0,
}


def half_square(params):
  return sum(jnp.sum(x**2) / 2 for x in jax.tree.leaves(params))


class Loop:
  """Runs the loop and records what it does.

  Attributes:
    events: 'update STEP', 'row STEP', 'save STEP' and 'evaluate'.
    losses: loss of the parameters at each evaluation.
    terminate_at: SIGTERM arrives during the update of this step.
  """

  def __init__(self, monkeypatch):
    self.events, self.losses, self.terminate_at = [], [], 0
    for owner, name, kind, step_of in (
      (TrainStep, '__call__', 'update', lambda state, *_: int(state.step) + 1),
      (MetricWriter, 'write', 'row', lambda step, _: step),
      (CheckpointManager, 'save', 'save', lambda step, *_: step),
    ):
      method = self.recorded(getattr(owner, name), kind, step_of)
      monkeypatch.setattr(owner, name, method)

  def recorded(self, method, kind, step_of):
    def call(instance, *args, **options):
      self.events.append(f'{kind} {step_of(*args)}')
      if self.events[-1] == f'update {self.terminate_at}':
        signal.raise_signal(signal.SIGTERM)
      return method(instance, *args, **options)

    return call

  def evaluate(self, params):
    self.events.append('evaluate')
    self.losses.append(float(half_square(params)))
    return {'loss': self.losses[-1]}, 'done'

  def run(self, workdir, **changes):
    """Starts or resumes a run; returns its events."""
    self.events.clear()
    config = test_configs.load(test_main.ROOT / 'configs/sft.py', 'tiny')
    config.update_from_flattened_dict(SETTINGS | changes)
    model = tiny.gemma(num_layers=2)
    supervised.train_supervised(
      config,
      str(workdir),
      LoadedModel(model, None),
      None if steps_in(workdir) else tiny.params(model),
      supervised.make_batches(
        config, ragged(8, 0), {'s': 1}, BatchShape((128,), (64,), 2), [0, 1]
      ),
      grad_accum_steps=config.batch.grad_accum_steps,
      loss=lambda params, _: (half_square(params), np.float32(1), AuxMetrics()),
      evaluate=self.evaluate if config.evaluation.every else None,
      derived_metrics=lambda row: {'x': row['loss'] / row['padding/prompts']},
    )
    return ', '.join(self.events)


@pytest.fixture
def loop(monkeypatch):
  return Loop(monkeypatch)


def test_a_row_is_written_during_the_next_step_but_before_a_save(
  loop, tmp_path
):
  assert loop.run(tmp_path, **{'evaluation.every': 0, 'save_every': 2}) == (
    'update 1, update 2, row 1, row 2, save 2, update 3, row 3, save 3'
  )
  for row in results(tmp_path):  # derived from the complete row
    assert row['x'] == pytest.approx(row['loss'] / row['padding/prompts'])


def test_sigterm_postpones_a_due_evaluation(loop, tmp_path):
  stopped, clean = tmp_path / 'stopped', tmp_path / 'clean'
  loop.terminate_at = 2
  assert loop.run(stopped) == 'update 1, update 2, row 1, row 2, save 2'
  assert meta_of(stopped)['eval_pending'] is True
  loop.terminate_at = 0
  assert loop.run(stopped).startswith('evaluate, row 2, update 3, row 3')
  assert loop.run(clean).startswith(
    'update 1, update 2, row 1, row 2, evaluate, row 2, update 3'
  )
  assert results(stopped) == results(clean)
  assert loop.losses[:2] == loop.losses[2:]
  # The loss in a row is the one before its update.
  assert loop.losses[0] == pytest.approx(results(clean)[3]['loss'], rel=1e-5)
