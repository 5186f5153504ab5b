"""Packing: best fit, no truncation, and the same loss as unpacked rows."""

import functools

import jax
import numpy as np
import pytest

from grm_jax.data import batch_iterator, packing, tokenized_example
from grm_jax.data.tokenized_example import BatchShape, TokenizedExample
from grm_jax.training import train_step
from tests.data.fixtures import ragged, tokenized
from tests.messages import naming
from tests.model import tiny


def test_best_fit_decreasing():
  examples = [
    tokenized('1', 2, [1]),  # 3 tokens
    tokenized('2', 4, [2]),  # 6
    tokenized('3', 1, [1]),  # 2
    tokenized('4', 5, [3]),  # 8
    tokenized('5', 3, [1]),  # 4
  ]
  rows = packing.pack(examples, 10)
  # 8, then 6 and 4 in a second row, then 3 in a third, and 2 beside 8.
  assert [row.id for row in rows] == ['4 3', '2 5', '1']
  assert [row.packed_lengths for row in rows] == [
    ((5, 3), (1, 1)),
    ((4, 2), (3, 1)),
    ((2, 1),),
  ]
  # Tokens identify their example, see fixtures.tokenized.
  assert rows[0].prompt.tolist() == [
    *range(4000, 4005),
    *range(4100, 4103),
    3000,
    3100,
  ]
  assert all(row.generations == () for row in rows)


def test_every_generation_is_packed_with_its_prompt():
  (row,) = packing.pack([tokenized('1', 2, [1, 3])], 8)
  assert row.packed_lengths == ((2, 3), (2, 1))
  assert row.prompt.tolist() == [1000, 1001, 1200, 1201, 1202, 1000, 1001, 1100]


def sequences_of(rows):
  """Yields (prompt, generation) tokens of all sequences in packed rows."""
  for row in rows:
    start = 0
    for prompt, generation in row.packed_lengths:
      tokens = row.prompt[start : start + prompt + generation].tolist()
      yield tuple(tokens[:prompt]), tuple(tokens[prompt:])
      start += prompt + generation
    assert start == len(row.prompt)


def test_every_sequence_is_packed_once_and_rows_have_one_source():
  examples = ragged(150, 0) + ragged(60, 1, source='other')
  rows = packing.pack(examples, 256)
  unpacked = [
    (tuple(r.prompt.tolist()), tuple(g.tolist()))
    for r in examples
    for g in r.generations
  ]
  assert sorted(sequences_of(rows)) == sorted(unpacked)
  for source in ('s', 'other'):
    of_source = [row for row in rows if row.source == source]
    tokens = sum(len(row.prompt) for row in of_source)
    assert max(len(row.prompt) for row in of_source) <= 256
    # Best-fit-decreasing needs at most about 11/9 of the optimal number.
    assert len(of_source) <= 11 / 9 * -(-tokens // 256) + 1
  names = [name for row in rows for name in row.id.split()]
  assert len(names) == 2 * 210


def test_packing_is_deterministic():
  rows, again = (packing.pack(ragged(80, 2), 200) for _ in range(2))
  assert tokenized_example.fingerprint(rows) == tokenized_example.fingerprint(
    again
  )


def test_a_sequence_longer_than_a_row():
  examples = [
    tokenized('1', 6, [4, 2]),
    tokenized('2', 6, [1, 5]),
    tokenized('3', 1, []),
  ]
  with pytest.raises(ValueError, match=naming("'2'", 11, 10)):
    packing.pack(examples, 10)
  assert packing.pack([], 10) == []


def test_a_packed_row_holds_any_example_that_fits():
  shape = BatchShape((6, 8), (2, 5), 1)
  longest = tokenized('1', 8, [5])
  assert tokenized_example.partition_by_fit([longest], shape) == (
    [longest],
    [],
  )
  assert packing.packed_row_length(shape) == 13
  (row,) = packing.pack([longest], packing.packed_row_length(shape))
  assert len(row.prompt) == 13


def test_segment_ids_and_loss_mask():
  segments, targets = packing.segment_ids_and_loss_mask(
    ((2, 1), (1, 0), (1, 2)), 9
  )
  assert segments.tolist() == [0, 0, 0, 1, 2, 2, 2, 3, 3]
  assert np.flatnonzero(targets).tolist() == [2, 5, 6]
  assert (segments.dtype, targets.dtype) == (np.int32, bool)
  # A full row has no padding segment.
  assert packing.segment_ids_and_loss_mask(((1, 1),), 2)[0].tolist() == [0, 0]


def random_examples(count):
  rng = np.random.default_rng(6)

  def tokens(most):
    return rng.integers(4, 250, rng.integers(1, most)).astype(np.int32)

  return [
    TokenizedExample(str(i), tokens(14), (tokens(9), tokens(9)), 's')
    for i in range(count)
  ]


def mean_loss(params, model, examples, shape, prompts):
  """Returns (mean loss, target tokens); the last batch has padding prompts."""
  loss = jax.jit(functools.partial(train_step.supervised_loss, model))
  total = count = 0.0
  for batch, _ in batch_iterator.evaluation_batches(
    examples, num_prompts=prompts, batch_shape=shape
  ):
    numerator, denominator, _ = loss(params, batch)
    total, count = total + float(numerator), count + float(denominator)
  return total / count, count


def test_packed_batches_have_the_loss_of_unpacked_ones():
  """Sequences exceed the window of 6; padding rows do not add loss."""
  model = tiny.gemma()
  params, examples = tiny.params(model), random_examples(5)
  unpacked = mean_loss(params, model, examples, BatchShape((16,), (8,), 2), 2)
  rows = packing.pack(examples, 40)
  assert len(rows) % 2 and max(len(row.packed_lengths) for row in rows) > 2
  packed = mean_loss(params, model, rows, BatchShape((40,), (8,), 0), 2)
  assert (
    packed[1]
    == unpacked[1]
    == sum(len(g) for r in examples for g in r.generations)
  )
  assert packed[0] == pytest.approx(unpacked[0], abs=1e-5)


def test_prompt_tokens_do_not_add_loss():
  """A prompt without a generation in the same row changes nothing."""
  model = tiny.gemma()
  params = tiny.params(model)
  without_target = TokenizedExample(
    'a', np.arange(5, 15, dtype=np.int32), (np.zeros(0, np.int32),), 's'
  )
  with_target = random_examples(1)
  shape = BatchShape((40,), (8,), 0)
  alone = mean_loss(params, model, packing.pack(with_target, 40), shape, 1)
  both = mean_loss(
    params, model, packing.pack([without_target, *with_target], 40), shape, 1
  )
  assert both[1] == alone[1]
  assert both[0] == pytest.approx(alone[0], abs=1e-5)


def test_token_lengths_of_packed_batches():
  examples = random_examples(4)
  rows = packing.pack(examples, 40)
  (_, info), *_ = batch_iterator.evaluation_batches(
    rows, num_prompts=len(rows) + 1, batch_shape=BatchShape((40,), (8,), 0)
  )
  lengths = sorted(
    (len(r.prompt), (len(g),)) for r in examples for g in r.generations
  )
  assert sorted(info.token_lengths) == lengths
  assert info.example_ids[-1] is None
  assert info.num_tokens['prompts'] == sum(n + t for n, (t,) in lengths)
