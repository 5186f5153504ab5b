"""Packed rows: every text once, none cut, and the loss of the texts apart."""

import functools

import jax
import numpy as np
import pytest

from grm_jax.data import batch_iterator, packing, tokenized_example
from grm_jax.data.tokenized_example import BatchShape, TokenizedExample
from grm_jax.training import train_step
from tests.data.made import ragged, record
from tests.messages import naming
from tests.model import tiny


def test_the_longest_first_and_each_where_it_leaves_least():
  given = [
    record('1', 2, [1]),  # 3 tokens
    record('2', 4, [2]),  # 6
    record('3', 1, [1]),  # 2
    record('4', 5, [3]),  # 8
    record('5', 3, [1]),  # 4
  ]
  rows = packing.pack(given, 10)
  # 8, then 6 and 4 in a second row, then 3 in a third, and 2 beside 8.
  assert [row.id for row in rows] == ['4 3', '2 5', '1']
  assert [row.parts for row in rows] == [
    ((5, 3), (1, 1)),
    ((4, 2), (3, 1)),
    ((2, 1),),
  ]
  # Tokens tell whose they are, see made.record.
  assert rows[0].prompt.tolist() == [
    *range(4000, 4005),
    *range(4100, 4103),
    3000,
    3100,
  ]
  assert all(row.generations == () for row in rows)


def test_every_generation_is_a_text_with_its_prompt():
  (row,) = packing.pack([record('1', 2, [1, 3])], 8)
  assert row.parts == ((2, 3), (2, 1))
  assert row.prompt.tolist() == [1000, 1001, 1200, 1201, 1202, 1000, 1001, 1100]


def texts_of(rows):
  """(prompt, generation) tokens of all texts in packed rows."""
  for row in rows:
    at = 0
    for prompt, own in row.parts:
      whole = row.prompt[at : at + prompt + own].tolist()
      yield tuple(whole[:prompt]), tuple(whole[prompt:])
      at += prompt + own
    assert at == len(row.prompt)


def test_every_text_is_in_one_row_and_rows_are_of_one_source():
  given = ragged(150, 0) + ragged(60, 1, source='other')
  rows = packing.pack(given, 256)
  apart = [
    (tuple(r.prompt.tolist()), tuple(g.tolist()))
    for r in given
    for g in r.generations
  ]
  assert sorted(texts_of(rows)) == sorted(apart)
  for source in ('s', 'other'):
    own = [row for row in rows if row.source == source]
    tokens = sum(len(row.prompt) for row in own)
    assert max(len(row.prompt) for row in own) <= 256
    # Best fit, decreasing, is never over 11/9 of the best number by much.
    assert len(own) <= 11 / 9 * -(-tokens // 256) + 1
  names = [name for row in rows for name in row.id.split()]
  assert len(names) == 2 * 210


def test_the_order_does_not_depend_on_chance():
  rows, again = (packing.pack(ragged(80, 2), 200) for _ in range(2))
  assert tokenized_example.fingerprint(rows) == tokenized_example.fingerprint(
    again
  )


def test_texts_too_long_for_a_row():
  given = [record('1', 6, [4, 2]), record('2', 6, [1, 5]), record('3', 1, [])]
  with pytest.raises(ValueError, match=naming("'2'", 11, 10)):
    packing.pack(given, 10)
  assert packing.pack([], 10) == []


def test_a_row_has_room_for_all_that_fits_apart():
  limits = tokenized_example.limits((8, 6), (5, 2), 1)
  longest = record('1', 8, [5])
  assert tokenized_example.usable([longest], limits) == ([longest], [])
  assert packing.room(limits) == 13
  (row,) = packing.pack([longest], packing.room(limits))
  assert len(row.prompt) == 13


def test_places():
  segments, targets = packing.places(((2, 1), (1, 0), (1, 2)), 9)
  assert segments.tolist() == [0, 0, 0, 1, 2, 2, 2, 3, 3]
  assert np.flatnonzero(targets).tolist() == [2, 5, 6]
  assert (segments.dtype, targets.dtype) == (np.int32, bool)
  # A full row has no segment of padding.
  assert packing.places(((1, 1),), 2)[0].tolist() == [0, 0]


def random_records(count):
  rng = np.random.default_rng(6)

  def tokens(most):
    return rng.integers(4, 250, rng.integers(1, most)).astype(np.int32)

  return [
    TokenizedExample(str(i), tokens(14), (tokens(9), tokens(9)), 's')
    for i in range(count)
  ]


def mean_loss(params, model, given, limits, prompts):
  """By all batches of `once`, the last of which has dummies."""
  loss = jax.jit(functools.partial(train_step.supervised_loss, model))
  total = count = 0.0
  for batch, _ in batch_iterator.once(given, prompts=prompts, limits=limits):
    numerator, denominator, _ = loss(params, batch)
    total, count = total + float(numerator), count + float(denominator)
  return total / count, count


def test_packed_batches_have_the_loss_of_the_records():
  """Texts are longer than the window of 6; dummy rows carry no loss."""
  model = tiny.gemma()
  params, given = tiny.params(model), random_records(5)
  apart = mean_loss(params, model, given, BatchShape((16,), (8,), 2), 2)
  rows = packing.pack(given, 40)
  assert len(rows) % 2 and max(len(row.parts) for row in rows) > 2
  packed = mean_loss(params, model, rows, BatchShape((40,), (8,), 0), 2)
  assert (
    packed[1] == apart[1] == sum(len(g) for r in given for g in r.generations)
  )
  assert packed[0] == pytest.approx(apart[0], abs=1e-5)


def test_prompts_carry_no_loss():
  """Other prompts of no generation change nothing; other texts do."""
  model = tiny.gemma()
  params = tiny.params(model)
  silent = TokenizedExample(
    'a', np.arange(5, 15, dtype=np.int32), (np.zeros(0, np.int32),), 's'
  )
  spoken = random_records(1)
  limits = BatchShape((40,), (8,), 0)
  alone = mean_loss(params, model, packing.pack(spoken, 40), limits, 1)
  both = mean_loss(
    params, model, packing.pack([silent, *spoken], 40), limits, 1
  )
  assert both[1] == alone[1]
  assert both[0] == pytest.approx(alone[0], abs=1e-5)


def test_lengths_of_packed_batches_are_those_of_their_texts():
  given = random_records(4)
  rows = packing.pack(given, 40)
  (_, meta), *_ = batch_iterator.once(
    rows, prompts=len(rows) + 1, limits=BatchShape((40,), (8,), 0)
  )
  lengths = sorted(
    (len(r.prompt), (len(g),)) for r in given for g in r.generations
  )
  assert sorted(meta.lengths) == lengths
  assert meta.ids[-1] is None
  assert meta.tokens['prompts'] == sum(n + own for n, (own,) in lengths)
