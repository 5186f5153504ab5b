"""Records: what fits a batch, what is left out and why, and fingerprints."""

import numpy as np
import pytest

from grm_jax.data import records
from grm_jax.data.records import Limits, Record
from grm_jax.errors import UserError
from tests.messages import names, naming

LIMITS = Limits(buckets=(4, 8), sizes=(2, 5), rows=2)


def record(prompt=3, generations=(1, 2), name='x', source='s'):
  arrays = [np.arange(1, n + 1, dtype=np.int32) for n in (prompt, *generations)]
  return Record(name, arrays[0], tuple(arrays[1:]), source)


@pytest.mark.parametrize(
  'prompt, generations, rows, words',
  [
    (8, (5, 0), 2, None),
    (1, (0,), 2, None),
    (4, (1, 1, 1, 5), 2, None),
    (9, (1,), 2, ['prompt', 9, 'config.batch.buckets', 8]),
    (9, (), 0, ['prompt', 9, 'config.batch.buckets', 8]),
    (0, (1,), 2, ['prompt']),
    (
      8,
      (1, 6, 2),
      1,
      ['generation', 6, 'config.batch.size', 5],
    ),
    (8, (), 2, ['generations', 'config.batch.rows', 2]),
    (8, (), 0, None),
    (8, (99,), 0, None),  # Without rows its generations are not looked at.
  ],
)
def test_fits(prompt, generations, rows, words):
  limits = Limits((4, 8), (2, 5), rows)
  reason = records.fits(record(prompt, generations), limits)
  assert reason is None if words is None else names(reason, *words)


def test_usable_keeps_the_order_and_names_the_rest():
  given = [
    record(4, name='a'),
    record(9, name='b'),
    record(1, name='c'),
    record(2, (6,), name='d'),
  ]
  kept, left_out = records.usable(given, LIMITS)
  assert kept == [given[0], given[2]]
  assert [name for name, _ in left_out] == ['b', 'd']
  assert names(left_out[0][1], 'prompt', 9)
  assert names(left_out[1][1], 'generation', 6)


@pytest.mark.parametrize(
  'prompt, words',
  [
    (np.zeros(3), ['x', 's', 'float64', '(3,)']),
    (np.zeros(3, np.int64), ['int64']),
    (np.zeros((1, 3), np.int32), ['int32', '(1, 3)']),
  ],
)
def test_tokens_are_int32_of_rank_1(prompt, words):
  good = np.zeros(3, np.int32)
  with pytest.raises(ValueError, match=naming(*words)):
    Record('x', prompt, (good,), 's')
  with pytest.raises(ValueError, match=naming(*words)):
    Record('x', good, (good, prompt), 's')


def test_limits():
  assert records.limits((8, 4, 8), 5, 0) == Limits((4, 8), (5,), 0)
  assert records.limits(8, [2, 5], 3) == Limits((8,), (2, 5), 3)
  for arguments, words in [
    (((), 5, 1), ['config.batch.buckets', '()']),
    (((4, 0), 5, 1), ['config.batch.buckets', '(4, 0)']),
    ((4, 0, 1), ['config.batch.size', 0]),
    ((4, 5, -1), ['config.batch.rows', -1]),
  ]:
    with pytest.raises(UserError, match=naming(*words)):
      records.limits(*arguments)


def test_any_change_changes_the_fingerprint():
  def other_token():
    prompt = np.array([1, 2, 4], np.int32)
    return Record('x', prompt, record().generations, 's')

  lists = [
    [],
    [record()],
    [record(), record()],
    [record(name='y')],
    [record(source='t')],
    [record(name='xs', source='')],
    [other_token()],
    # The same ids behind each other, parted elsewhere.
    [record(1, (1, 1))],
    [record(1, (1,))],
    [record(1, (1, 0, 1))],
    [record(name='a'), record(name='b')],
    [record(name='b'), record(name='a')],
  ]
  prints = [records.fingerprint(x) for x in lists]
  assert len(set(prints)) == len(lists)
  assert [records.fingerprint(x) for x in lists] == prints
  strided = np.arange(1, 7, dtype=np.int32)[::2]
  assert records.fingerprint(
    [Record('x', strided, (), 's')]
  ) == records.fingerprint([Record('x', strided.copy(), (), 's')])
