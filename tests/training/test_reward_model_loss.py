"""Reward model losses against hand-computed numbers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from grm_jax.model.batch import Batch
from grm_jax.training import reward_model_loss, train_state, train_step
from grm_jax.training.reward_model_loss import RewardBatch
from tests.messages import naming
from tests.model import tiny

LN3 = np.log(3)  # sigmoid is 3/4
PAIRED = [[LN3, 0.0, 7.0], [-LN3, 7.0, 7.0]]
LABELS = [[1, 0, 0], [1, 0, 0]]
WEIGHTS = [[1, 2, 0], [3, 0, 0]]


def reward_batch(labels, weights):
  labels, weights = (np.array(x, np.float32) for x in (labels, weights))
  p, r = labels.shape
  prompts, lengths = np.ones((p, 4), np.int32), np.full(p, 4, np.int32)
  generations = np.ones((p, r, 3), np.int32)
  generation_lengths = np.full((p, r), 3, np.int32)
  batch = Batch(prompts, lengths, generations, generation_lengths)
  return RewardBatch(batch, labels, weights)


@pytest.fixture
def set_values(monkeypatch):
  """set_values(values) makes the model return these values for any batch."""

  def patch(values):
    values = jnp.array(values, jnp.float32)
    monkeypatch.setattr(reward_model_loss.logprobs, 'values', lambda *_: values)

  return patch


def means(metrics):
  return {name: float(a / b) for name, (a, b) in metrics.means.items()}


def test_binary_cross_entropy(set_values):
  set_values(PAIRED)
  total, count, metrics = reward_model_loss.bce_loss(
    None, {}, reward_batch(LABELS, WEIGHTS)
  )
  # -log 3/4, twice -log 1/2, three times -log 1/4; the rest has weight 0.
  expected = -np.log(3 / 4) - 2 * np.log(1 / 2) - 3 * np.log(1 / 4)
  assert float(total) == pytest.approx(expected, rel=1e-6)
  assert float(count) == 6
  assert means(metrics) == pytest.approx(
    {
      'accuracy': 3 / 6,  # a value of 0 predicts label 0
      'right_value': 0.0,  # of ln 3 and -ln 3
      'wrong_value': 0.0,
    },
    abs=1e-6,
  )
  assert not metrics.maxima


def test_means_of_right_and_wrong_values(set_values):
  set_values([[2.0, 4.0, -1.0, 50.0]])
  data = reward_batch([[1, 1, 0, 0]], [[1, 1, 5, 0]])
  *_, metrics = reward_model_loss.bce_loss(None, {}, data)
  assert means(metrics) == {
    'accuracy': 1.0,
    'right_value': 3.0,
    'wrong_value': -1.0,
  }


def test_bradley_terry(set_values):
  # The best is last in group 1; group 2 has one pair, group 3 is padding.
  set_values([[0.0, 5.0, LN3], [1.0, 1.0 + LN3, 9.0], [9.0, 9.0, 9.0]])
  labels = [[0, 0, 1], [1, 0, 0], [0, 0, 0]]
  weights = [[0.5, 0.5, 0], [0, 1, 0], [0, 0, 0]]
  total, count, metrics = reward_model_loss.bradley_terry_loss(
    None, {}, reward_batch(labels, weights)
  )
  large_loss = np.log1p(np.exp(5 - LN3))  # -log sigmoid(ln 3 - 5)
  expected = -0.5 * np.log(3 / 4) + 0.5 * large_loss - np.log(1 / 4)
  assert float(total) == pytest.approx(expected, rel=1e-6)
  assert float(count) == 2
  assert means(metrics) == pytest.approx(
    {
      'accuracy': 0.5 / 2,
      'right_value': (LN3 + 1) / 2,
      'wrong_value': (0 + 5 + 1 + LN3) / 3,
    }
  )


def test_weight_of_the_best_is_ignored(set_values):
  set_values([[1.0, 0.0]])
  results = [
    reward_model_loss.bradley_terry_loss(
      None, {}, reward_batch([[1, 0]], [[w, 1]])
    )[:2]
    for w in (0, 4)
  ]
  assert results[0] == results[1]


@pytest.mark.parametrize(
  'loss', [reward_model_loss.bce_loss, reward_model_loss.bradley_terry_loss]
)
def test_large_values_stay_finite(set_values, loss):
  set_values([[-1e4, 1e4]])
  total, *_ = loss(None, {}, reward_batch([[1, 0]], [[1, 1]]))
  assert 1e4 <= float(total) <= 2e4 + 1


@pytest.mark.parametrize(
  'change, words',
  [
    ({'labels': np.ones((2, 2), np.float32)}, ['labels', '(2, 2)', '(2, 3)']),
    ({'weights': np.ones((2, 3), np.int32)}, ['weights', 'int32', 'float32']),
    (
      {'batch': Batch(np.ones((2, 4), np.int32), np.ones(2, np.int32))},
      ['generations'],
    ),
  ],
)
def test_inconsistent_batches_are_rejected(change, words):
  inconsistent = dataclasses.replace(reward_batch(LABELS, WEIGHTS), **change)
  for loss in (
    reward_model_loss.bce_loss,
    reward_model_loss.bradley_terry_loss,
  ):
    with pytest.raises(ValueError, match=naming(*words)):
      loss(None, {}, inconsistent)


def test_micro_batches_equal_one_batch():
  """Two batches of unequal weight give the same update as their union."""
  model = tiny.gemma(scalar=True)
  batch = tiny.batch([5, 7, 3, 6], 8, [[3, 2], [1, 4], [2, 2], [4, 3]], 4)
  labels = jnp.array([[1, 0], [1, 0], [1, 0], [0, 0]], jnp.float32)
  weights = jnp.array([[3, 1], [3, 1], [3, 1], [1, 0]], jnp.float32)
  full = RewardBatch(batch, labels, weights)
  parts = [jax.tree.map(lambda x, i=i: x[i : i + 2], full) for i in (0, 2)]
  optimizer = optax.sgd(0.1)
  update = train_step.TrainStep(
    model, optimizer, functools.partial(reward_model_loss.bce_loss, model)
  )
  results = []
  for batches in ([full], parts):
    state = train_state.init_state(model, optimizer, tiny.params(model))
    results.append(update(state, batches))
  (state, metrics), (other_state, other_metrics) = results
  assert float(metrics['count']) == 13
  for name in ('loss', 'grad_norm', 'accuracy', 'right_value', 'wrong_value'):
    expected = pytest.approx(float(other_metrics[name]), rel=1e-4)
    assert float(metrics[name]) == expected
  for a, b in zip(
    jax.tree.leaves(state.params),
    jax.tree.leaves(other_state.params),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, atol=1e-5)
