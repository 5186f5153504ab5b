"""Fit of examples into a batch shape, buckets and fingerprints."""

import numpy as np
import pytest

from grm_jax.data import tokenized_example
from grm_jax.data.tokenized_example import BatchShape, TokenizedExample
from tests.messages import names, naming

SHAPE = BatchShape((4, 8), (2, 5), 2)


def make_example(prompt=3, generations=(1, 2), name='x', source='s'):
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
    (8, (99,), 0, None),  # R = 0 ignores generations
  ],
)
def test_misfit_reason(prompt, generations, rows, words):
  shape = BatchShape((4, 8), (2, 5), rows)
  reason = tokenized_example.misfit_reason(
    make_example(prompt, generations), shape
  )
  assert reason is None if words is None else names(reason, *words)


def test_partition_by_fit_keeps_the_order_and_names_the_rest():
  examples = [
    make_example(4, name='a'),
    make_example(9, name='b'),
    make_example(1, name='c'),
    make_example(2, (6,), name='d'),
  ]
  fitting, misfits = tokenized_example.partition_by_fit(examples, SHAPE)
  assert fitting == [examples[0], examples[2]]
  assert [id for id, _ in misfits] == ['b', 'd']
  assert names(misfits[0][1], 'prompt', 9)
  assert names(misfits[1][1], 'generation', 6)


@pytest.mark.parametrize(
  'prompt, words',
  [
    (np.zeros(3), ['x', 's', 'float64', '(3,)']),
    (np.zeros(3, np.int64), ['int64']),
    (np.zeros((1, 3), np.int32), ['int32', '(1, 3)']),
  ],
)
def test_tokens_must_be_int32_of_rank_1(prompt, words):
  good = np.zeros(3, np.int32)
  with pytest.raises(ValueError, match=naming(*words)):
    TokenizedExample('x', prompt, (good,), 's')
  with pytest.raises(ValueError, match=naming(*words)):
    TokenizedExample('x', good, (good, prompt), 's')


def test_the_fingerprint_depends_on_everything():
  def other_token():
    prompt = np.array([1, 2, 4], np.int32)
    return TokenizedExample('x', prompt, make_example().generations, 's')

  lists = [
    [],
    [make_example()],
    [make_example(), make_example()],
    [make_example(name='y')],
    [make_example(source='t')],
    [make_example(name='xs', source='')],
    [other_token()],
    # The same tokens in a row, separated elsewhere.
    [make_example(1, (1, 1))],
    [make_example(1, (1,))],
    [make_example(1, (1, 0, 1))],
    [make_example(name='a'), make_example(name='b')],
    [make_example(name='b'), make_example(name='a')],
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
