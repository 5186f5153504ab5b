"""Records: what fits a batch, what is left out and why, and fingerprints."""

import numpy as np
import pytest

from grm_jax.data import tokenized_example
from grm_jax.data.tokenized_example import BatchShape, TokenizedExample
from grm_jax.errors import UserError
from tests.messages import names, naming

LIMITS = BatchShape(buckets=(4, 8), sizes=(2, 5), rows=2)


def record(prompt=3, generations=(1, 2), name='x', source='s'):
  arrays = [np.arange(1, n + 1, dtype=np.int32) for n in (prompt, *generations)]
  return TokenizedExample(name, arrays[0], tuple(arrays[1:]), source)


@pytest.mark.parametrize(
  'prompt, generations, rows, words',
  [
    (8, (5, 0), 2, None),
    (1, (0,), 2, None),
    (4, (1, 1, 1, 5), 2, None),
    (9, (1,), 2, ['prompt', 9, 'config.batch.prompt_buckets', 8]),
    (9, (), 0, ['prompt', 9, 'config.batch.prompt_buckets', 8]),
    (0, (1,), 2, ['prompt']),
    (
      8,
      (1, 6, 2),
      1,
      ['generation', 6, 'config.batch.generation_buckets', 5],
    ),
    (8, (), 2, ['generations', 'config.batch.generations_per_prompt', 2]),
    (8, (), 0, None),
    (8, (99,), 0, None),  # Without rows its generations are not looked at.
  ],
)
def test_fits(prompt, generations, rows, words):
  limits = BatchShape((4, 8), (2, 5), rows)
  reason = tokenized_example.fits(record(prompt, generations), limits)
  assert reason is None if words is None else names(reason, *words)


def test_usable_keeps_the_order_and_names_the_rest():
  given = [
    record(4, name='a'),
    record(9, name='b'),
    record(1, name='c'),
    record(2, (6,), name='d'),
  ]
  kept, left_out = tokenized_example.usable(given, LIMITS)
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
    TokenizedExample('x', prompt, (good,), 's')
  with pytest.raises(ValueError, match=naming(*words)):
    TokenizedExample('x', good, (good, prompt), 's')


def test_limits():
  assert tokenized_example.limits((8, 4, 8), 5, 0) == BatchShape(
    (4, 8), (5,), 0
  )
  assert tokenized_example.limits(8, [2, 5], 3) == BatchShape((8,), (2, 5), 3)
  for arguments, words in [
    (((), 5, 1), ['config.batch.prompt_buckets', '()']),
    (((4, 0), 5, 1), ['config.batch.prompt_buckets', '(4, 0)']),
    ((4, 0, 1), ['config.batch.generation_buckets', 0]),
    ((4, 5, -1), ['config.batch.generations_per_prompt', -1]),
  ]:
    with pytest.raises(UserError, match=naming(*words)):
      tokenized_example.limits(*arguments)


def test_any_change_changes_the_fingerprint():
  def other_token():
    prompt = np.array([1, 2, 4], np.int32)
    return TokenizedExample('x', prompt, record().generations, 's')

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
  prints = [tokenized_example.fingerprint(x) for x in lists]
  assert len(set(prints)) == len(lists)
  assert [tokenized_example.fingerprint(x) for x in lists] == prints
  strided = np.arange(1, 7, dtype=np.int32)[::2]
  assert tokenized_example.fingerprint(
    [TokenizedExample('x', strided, (), 's')]
  ) == tokenized_example.fingerprint(
    [TokenizedExample('x', strided.copy(), (), 's')]
  )
