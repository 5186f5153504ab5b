"""Prefetching: the same batches, the right state, nothing left behind."""

import itertools
import json
import threading

import pytest

from grm_jax.data.batch_iterator import BatchIterator
from grm_jax.data.prefetch import Prefetch
from grm_jax.data.tokenized_example import BatchShape
from tests.data.made import ragged, same
from tests.messages import naming
from tests.processes import HANG


def batches():
  limits = BatchShape((32, 128), (64,), 2)
  return BatchIterator(
    ragged(11, 1), {'s': 1}, prompts=2, limits=limits, seed=1, window=3
  )


def threads():
  return [t for t in threading.enumerate() if t.name.startswith('batches')]


class Failing:
  """Two batches, then an error."""

  def __init__(self, error):
    self.error, self.done = error, 0

  def __next__(self):
    self.done += 1
    if self.done > 2:
      raise self.error
    return self.done

  def state(self):
    return {'done': self.done}


@pytest.mark.parametrize('depth', [1, 2, 7])
def test_the_state_is_that_of_what_was_handed_out(depth):
  plain = batches()
  with Prefetch(batches(), depth) as ahead:
    assert ahead.state() == plain.state()
    for number in range(14):
      same(next(ahead), next(plain))
      assert json.dumps(ahead.state()) == json.dumps(plain.state())
      assert ahead.waste() == plain.waste()
      assert ahead.passes() == plain.passes()
      if number % 3 == 1:
        resumed = batches()
        resumed.restore(json.loads(json.dumps(ahead.state())))
        with Prefetch(resumed, depth) as other:
          after = batches()
          after.restore(plain.state())
          for found in itertools.islice(other, 3):
            same(found, next(after))
  assert not threads()


def test_batches_are_built_ahead():
  source = Failing(KeyError('x'))
  with Prefetch(source, 2) as ahead:
    # Both are built although nobody asked, and the thread then waits.
    for future in ahead._ahead:
      future.result(timeout=HANG)
    assert source.done == 2
    assert ahead.state() == {'done': 0}
    assert next(ahead) == 1
    assert ahead.state() == {'done': 1}


@pytest.mark.parametrize('error', [OSError('disk'), KeyError('x')], ids=repr)
def test_an_error_comes_where_it_belongs(error):
  with Prefetch(Failing(error), 3) as ahead:
    assert [next(ahead), next(ahead)] == [1, 2]
    for _ in range(2):
      with pytest.raises(type(error)) as caught:
        next(ahead)
      assert caught.value is error
    assert ahead.state() == {'done': 2}
  assert not threads()


def test_an_end_is_an_end():
  with Prefetch(Failing(StopIteration()), 2) as ahead:
    assert list(ahead) == [1, 2]
    assert list(ahead) == []


def test_closing_twice_and_using_it_afterwards():
  ahead = Prefetch(batches())
  next(ahead)
  state = ahead.state()
  ahead.close()
  ahead.close()
  assert not threads()
  assert ahead.state() == state
  with pytest.raises(RuntimeError):
    next(ahead)


def test_an_error_of_the_consumer_closes_it():
  with pytest.raises(ZeroDivisionError), Prefetch(batches()) as ahead:
    for _ in ahead:
      raise ZeroDivisionError
  assert not threads()


def test_depth():
  with pytest.raises(ValueError, match=naming('depth', 0)):
    Prefetch(batches(), 0)
