"""Losses of the scalar head against numbers worked out by hand."""

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


def batch(labels, weights):
  labels, weights = (np.array(x, np.float32) for x in (labels, weights))
  p, r = labels.shape
  prompts, lengths = np.ones((p, 4), np.int32), np.full(p, 4, np.int32)
  own = np.ones((p, r, 3), np.int32), np.full((p, r), 3, np.int32)
  return RewardBatch(Batch(prompts, lengths, *own), labels, weights)


@pytest.fixture
def valued(monkeypatch):
  """valued(values): the model that says these, whatever it reads."""

  def use(values):
    values = jnp.array(values, jnp.float32)
    monkeypatch.setattr(reward_model_loss.head, 'values', lambda *_: values)

  return use


def means(extras):
  return {name: float(a / b) for name, (a, b) in extras.means.items()}


def test_cross_entropy_by_hand(valued):
  valued(PAIRED)
  total, count, extras = reward_model_loss.bce_loss(
    None, {}, batch(LABELS, WEIGHTS)
  )
  # -log 3/4, twice -log 1/2, three times -log 1/4; the others weigh 0.
  expected = -np.log(3 / 4) - 2 * np.log(1 / 2) - 3 * np.log(1 / 4)
  assert float(total) == pytest.approx(expected, rel=1e-6)
  assert float(count) == 6
  assert means(extras) == pytest.approx(
    {
      'accuracy': 3 / 6,  # 0 is not above 0, which is right for label 0
      'right_value': 0.0,  # of ln 3 and -ln 3
      'wrong_value': 0.0,
    },
    abs=1e-6,
  )
  assert not extras.maxima


def test_means_of_right_and_wrong_values(valued):
  valued([[2.0, 4.0, -1.0, 50.0]])
  given = batch([[1, 1, 0, 0]], [[1, 1, 5, 0]])
  *_, extras = reward_model_loss.bce_loss(None, {}, given)
  assert means(extras) == {
    'accuracy': 1.0,
    'right_value': 3.0,
    'wrong_value': -1.0,
  }


def test_bradley_terry_by_hand(valued):
  # The best of the first is last; the second has one other, the third none.
  valued([[0.0, 5.0, LN3], [1.0, 1.0 + LN3, 9.0], [9.0, 9.0, 9.0]])
  labels = [[0, 0, 1], [1, 0, 0], [0, 0, 0]]
  weights = [[0.5, 0.5, 0], [0, 1, 0], [0, 0, 0]]
  total, count, extras = reward_model_loss.bradley_terry_loss(
    None, {}, batch(labels, weights)
  )
  lost = np.log1p(np.exp(5 - LN3))  # -log sigmoid(ln 3 - 5)
  expected = -0.5 * np.log(3 / 4) + 0.5 * lost - np.log(1 / 4)
  assert float(total) == pytest.approx(expected, rel=1e-6)
  assert float(count) == 2
  assert means(extras) == pytest.approx(
    {
      'accuracy': 0.5 / 2,
      'right_value': (LN3 + 1) / 2,
      'wrong_value': (0 + 5 + 1 + LN3) / 3,
    }
  )


def test_the_weight_of_the_best_is_not_looked_at(valued):
  valued([[1.0, 0.0]])
  found = [
    reward_model_loss.bradley_terry_loss(None, {}, batch([[1, 0]], [[w, 1]]))[
      :2
    ]
    for w in (0, 4)
  ]
  assert found[0] == found[1]


@pytest.mark.parametrize(
  'loss', [reward_model_loss.bce_loss, reward_model_loss.bradley_terry_loss]
)
def test_far_values_stay_finite(valued, loss):
  valued([[-1e4, 1e4]])
  total, *_ = loss(None, {}, batch([[1, 0]], [[1, 1]]))
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
def test_what_contradicts_itself(change, words):
  wrong = dataclasses.replace(batch(LABELS, WEIGHTS), **change)
  for loss in (
    reward_model_loss.bce_loss,
    reward_model_loss.bradley_terry_loss,
  ):
    with pytest.raises(ValueError, match=naming(*words)):
      loss(None, {}, wrong)


def test_a_split_batch_is_one_update():
  """Two batches of unequal weight give the update of both together."""
  model = tiny.gemma(scalar=True)
  one = tiny.batch([5, 7, 3, 6], 8, [[3, 2], [1, 4], [2, 2], [4, 3]], 4)
  labels = jnp.array([[1, 0], [1, 0], [1, 0], [0, 0]], jnp.float32)
  weights = jnp.array([[3, 1], [3, 1], [3, 1], [1, 0]], jnp.float32)
  whole = RewardBatch(one, labels, weights)
  parts = [jax.tree.map(lambda x, i=i: x[i : i + 2], whole) for i in (0, 2)]
  optimizer = optax.sgd(0.1)
  update = train_step.TrainStep(
    model, optimizer, functools.partial(reward_model_loss.bce_loss, model)
  )
  found = []
  for batches in ([whole], parts):
    begin = train_state.init_state(model, optimizer, tiny.params(model))
    found.append(update(begin, batches))
  (one, numbers), (two, others) = found
  assert float(numbers['count']) == 13
  for name in ('loss', 'grad_norm', 'accuracy', 'right_value', 'wrong_value'):
    assert float(numbers[name]) == pytest.approx(float(others[name]), rel=1e-4)
  for a, b in zip(
    jax.tree.leaves(one.params), jax.tree.leaves(two.params), strict=True
  ):
    np.testing.assert_allclose(a, b, atol=1e-5)
