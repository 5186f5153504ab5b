"""Prefetch: same batches and states as the iterator, no leaked threads."""

import itertools
import json
import threading

import pytest

from grm_jax.data.batch_iterator import BatchIterator
from grm_jax.data.prefetch import Prefetch
from grm_jax.data.tokenized_example import BatchShape
from tests.data.fixtures import assert_identical, ragged
from tests.messages import naming
from tests.processes import HANG_TIMEOUT_S


def batches():
  shape = BatchShape((32, 128), (64,), 2)
  return BatchIterator(
    ragged(11, 1), {'s': 1}, num_prompts=2, batch_shape=shape, seed=1, window=3
  )


def threads():
  return [t for t in threading.enumerate() if t.name.startswith('batches')]


class Failing:
  """Stands for a BatchIterator: two batches, then an error."""

  def __init__(self, error):
    self.error, self.count = error, 0

  def __next__(self):
    self.count += 1
    if self.count > 2:
      raise self.error
    return self.count

  def state(self):
    return {'count': self.count}


@pytest.mark.parametrize('depth', [1, 2, 7])
def test_state_is_that_of_the_returned_batches(depth):
  expected = batches()
  with Prefetch(batches(), depth) as prefetch:
    assert prefetch.state() == expected.state()
    for number in range(14):
      assert_identical(next(prefetch), next(expected))
      assert json.dumps(prefetch.state()) == json.dumps(expected.state())
      assert prefetch.padding_fraction() == expected.padding_fraction()
      assert prefetch.epochs() == expected.epochs()
      if number % 3 == 1:  # resume, in the middle of windows and between
        resumed = batches()
        resumed.restore(json.loads(json.dumps(prefetch.state())))
        with Prefetch(resumed, depth) as other:
          after = batches()
          after.restore(expected.state())
          for batch in itertools.islice(other, 3):
            assert_identical(batch, next(after))
  assert not threads()


def test_builds_depth_batches_ahead():
  source = Failing(KeyError('x'))
  with Prefetch(source, 2) as prefetch:
    # Two batches are built without a call of next, then the thread waits.
    for future in prefetch._pending:
      future.result(timeout=HANG_TIMEOUT_S)
    assert source.count == 2
    assert prefetch.state() == {'count': 0}
    assert next(prefetch) == 1
    assert prefetch.state() == {'count': 1}


@pytest.mark.parametrize('error', [OSError('disk'), KeyError('x')], ids=repr)
def test_an_error_is_raised_at_its_batch_and_after(error):
  with Prefetch(Failing(error), 3) as prefetch:
    assert [next(prefetch), next(prefetch)] == [1, 2]
    for _ in range(2):
      with pytest.raises(type(error)) as caught:
        next(prefetch)
      assert caught.value is error
    assert prefetch.state() == {'count': 2}
  assert not threads()


def test_the_end_of_the_iterator():
  with Prefetch(Failing(StopIteration()), 2) as prefetch:
    assert list(prefetch) == [1, 2]
    assert list(prefetch) == []


def test_close_is_idempotent_and_final():
  prefetch = Prefetch(batches())
  next(prefetch)
  state = prefetch.state()
  prefetch.close()
  prefetch.close()
  assert not threads()
  assert prefetch.state() == state
  with pytest.raises(RuntimeError):
    next(prefetch)


def test_an_error_of_the_consumer_ends_the_thread():
  with pytest.raises(ZeroDivisionError), Prefetch(batches()) as prefetch:
    for _ in prefetch:
      raise ZeroDivisionError
  assert not threads()


def test_invalid_depth():
  with pytest.raises(ValueError, match=naming('depth', 0)):
    Prefetch(batches(), 0)
