"""Padding, mixing and bucketing of batches, bit-exact resume, local rows."""

import collections
import itertools
import json

import jax
import numpy as np
import pytest

from grm_jax.data import collate
from grm_jax.data.batch_iterator import BatchIterator, evaluation_batches
from grm_jax.data.tokenized_example import BatchShape
from grm_jax.errors import UserError
from grm_jax.model import batch as model_batch
from tests.data.fixtures import assert_identical, ragged, tokenized
from tests.messages import naming

SHAPE = BatchShape((16, 32, 64, 128), (16, 32, 64), 2)
EXAMPLES = [
  *ragged(23, 1, source='judging'),
  *ragged(9, 2, rows=3, source='general'),
]
RATES = {'judging': 0.8, 'general': 0.2}


def two_source_iterator(**changes):
  options = {
    'num_prompts': 4,
    'batch_shape': SHAPE,
    'seed': 7,
    'window': 3,
  }
  return BatchIterator(EXAMPLES, RATES, **(options | changes))


def take(batches, count):
  return list(itertools.islice(batches, count))


def test_padded_arrays():
  examples = [tokenized('1', 3, (2, 0)), tokenized('2', 1, (1,))]
  shape = BatchShape((2, 4, 8), (1, 3), 2)
  ((batch, info),) = evaluation_batches(
    examples, num_prompts=3, batch_shape=shape
  )
  np.testing.assert_array_equal(
    batch.prompts, [[1000, 1001, 1002, 0], [2000, 0, 0, 0], [0, 0, 0, 0]]
  )
  assert batch.prompt_lengths.tolist() == [3, 1, 1]
  np.testing.assert_array_equal(
    batch.generations,
    [
      [[1100, 1101, 0], [0, 0, 0]],
      [[2100, 0, 0], [0, 0, 0]],
      [[0, 0, 0], [0, 0, 0]],
    ],
  )
  assert batch.generation_lengths.tolist() == [[2, 0], [1, 0], [0, 0]]
  model_batch.check_batch(batch)
  assert info.example_ids == ('1', '2', None)
  assert info.sources == ('s', 's', None)
  assert info.generation_indices == ((0, 1), (0,), ())
  assert info.num_tokens == {'prompts': 4, 'generations': 3}
  assert info.num_positions == {'prompts': 12, 'generations': 18}


def test_batches_without_generations():
  examples = [tokenized('1', 3, (9, 9)), tokenized('2', 1, ())]
  batches = BatchIterator(
    examples,
    {'s': 1},
    num_prompts=2,
    batch_shape=BatchShape((4,), (1,), 0),
    seed=0,
  )
  batch, info = next(batches)
  assert batch.generations is None and batch.generation_lengths is None
  assert info.generation_indices == ((), ())
  assert batches.padding_fraction() == {'prompts': 0.5, 'generations': 0.0}


def test_an_empty_generation_is_padded_to_the_smallest_bucket():
  ((batch, _),) = evaluation_batches(
    [tokenized('1', 1, (0,))],
    num_prompts=1,
    batch_shape=BatchShape((1,), (4, 9), 1),
  )
  assert batch.generations.shape == (1, 1, 4)
  model_batch.check_batch(batch)


def test_a_window_is_bucketed_by_padded_length():
  """Two examples of each padded shape make one batch of each shape."""
  examples = [
    tokenized(str(i), prompt, (generation,))
    for i, (prompt, generation) in enumerate(
      [(2, 1), (7, 1), (3, 1), (8, 1), (7, 5), (3, 5), (8, 5), (2, 5)]
    )
  ]
  batches = BatchIterator(
    examples,
    {'s': 1},
    num_prompts=2,
    batch_shape=BatchShape((4, 8), (2, 6), 1),
    seed=0,
    window=4,
  )
  orders = []
  for _ in range(6):
    window = take(batches, 4)
    shapes = [(b.prompts.shape[1], b.generations.shape[2]) for b, _ in window]
    assert sorted(shapes) == [(4, 2), (4, 6), (8, 2), (8, 6)]
    assert sorted(i for _, info in window for i in info.example_ids) == list(
      '01234567'
    )
    orders.append(tuple(shapes))
  # The order of the batches does not depend on their shapes.
  assert len(set(orders)) > 2
  assert len({shapes[0] for shapes in orders}) > 1


def test_an_epoch_contains_every_example_once():
  examples = ragged(24, 3)
  batches = BatchIterator(
    examples, {'s': 1}, num_prompts=4, batch_shape=SHAPE, seed=0, window=3
  )
  seen = []
  for epoch in range(3):
    infos = [info for _, info in take(batches, 6)]
    seen.append([i for info in infos for i in info.example_ids])
    assert sorted(map(int, seen[-1])) == list(range(24))
    assert {e for info in infos for e in info.epochs} == {epoch}
    assert batches.epochs() == {'s': epoch + 1.0}
  assert len(set(map(tuple, seen))) == 3


def test_epochs_are_complete_if_windows_do_not_divide_them():
  batches = BatchIterator(
    ragged(10, 3), {'s': 1}, num_prompts=4, batch_shape=SHAPE, seed=0, window=4
  )
  infos = [info for _, info in take(batches, 20)]
  counts = collections.Counter(
    (i, e)
    for info in infos
    for i, e in zip(info.example_ids, info.epochs, strict=True)
  )
  assert counts == {(str(i), e): 1 for i in range(10) for e in range(8)}


def test_batches_hold_the_tokens_of_their_examples():
  by_key = {(r.source, r.id): r for r in EXAMPLES}
  for batch, info in take(two_source_iterator(), 30):
    model_batch.check_batch(batch)
    for p, name in enumerate(zip(info.sources, info.example_ids, strict=True)):
      example, length = by_key[name], batch.prompt_lengths[p]
      np.testing.assert_array_equal(batch.prompts[p, :length], example.prompt)
      assert not batch.prompts[p, length:].any()
      assert len(info.generation_indices[p]) == 2
      for r, i in enumerate(info.generation_indices[p]):
        n = batch.generation_lengths[p, r]
        np.testing.assert_array_equal(
          batch.generations[p, r, :n], example.generations[i]
        )
        assert not batch.generations[p, r, n:].any()
    longest = batch.prompt_lengths.max()
    assert batch.prompts.shape[1] == min(
      b for b in SHAPE.prompt_buckets if longest <= b
    )


def test_sources_are_mixed_at_their_rates():
  batches = two_source_iterator()
  taken = collections.Counter()
  for window in range(1, 21):
    for _, info in take(batches, 3):
      taken.update(info.sources)
    assert abs(taken['general'] - 12 * window / 5) < 1
    assert batches.epochs() == {
      'judging': taken['judging'] / 23,
      'general': taken['general'] / 9,
    }


def test_surplus_generations_take_turns_over_epochs():
  examples = [tokenized('1', 2, (1, 2, 3, 4, 5)), tokenized('2', 2, (1, 2))]
  batches = BatchIterator(
    examples,
    {'s': 1},
    num_prompts=2,
    batch_shape=BatchShape((2,), (5,), 2),
    seed=0,
    window=1,
  )
  used = []
  for _, info in take(batches, 5):
    indices = dict(zip(info.example_ids, info.generation_indices, strict=True))
    assert indices['2'] == (0, 1)
    assert len(indices['1']) == 2 and indices['1'][0] < indices['1'][1]
    used += indices['1']
  # 5 epochs of 2 generations use each of 5 twice.
  assert collections.Counter(used) == dict.fromkeys(range(5), 2)


def test_generation_choice_depends_on_seed_and_example():
  shape = BatchShape((2,), (5,), 2)

  def indices(name, seed):
    item = collate.make_item(tokenized(name, 2, (1,) * 5), shape, seed, 0)
    return item.generation_indices

  assert len({indices('1', seed) for seed in range(8)}) > 2
  assert len({indices(str(i), 0) for i in range(8)}) > 2


def test_resume_is_bit_exact_at_every_batch():
  """Windows of 12 draws and epochs of 23 and 9 cover all kinds of borders."""
  batches = two_source_iterator()
  states, expected = [], []
  while min(batches.epochs().values()) < 2:
    states.append(json.dumps(batches.state()))
    expected.append(next(batches))
  states.append(json.dumps(batches.state()))
  assert len(expected) > 12
  for i, text in enumerate(states[:-1]):
    resumed = two_source_iterator()
    resumed.restore(json.loads(text))
    assert resumed.state() == json.loads(text)
    for j in range(i, min(i + 4, len(expected))):
      assert_identical(next(resumed), expected[j])
      assert json.dumps(resumed.state()) == states[j + 1]
    assert i > len(
      expected
    ) - 4 or resumed.padding_fraction() == batches.padding_fraction(
      json.loads(states[i + 4])
    )


def test_restore_discards_the_current_window():
  original, advanced = two_source_iterator(), two_source_iterator()
  state = original.state()
  expected = take(original, 8)
  take(advanced, 4)
  advanced.restore(state)
  for actual, wanted in zip(take(advanced, 8), expected, strict=True):
    assert_identical(actual, wanted)
  assert state['batch'] == 0 and not any(state['num_taken'].values())


@pytest.mark.parametrize(
  'parts',
  [
    [[0, 1], [2, 3]],
    [[0], [1], [2], [3]],
    [[1, 3], [0, 2]],
    [[0, 1, 2, 3], [0, 1, 2, 3]],
  ],
  ids=str,
)
def test_processes_build_rows_of_the_same_batches(parts):
  whole = two_source_iterator()
  shares = [two_source_iterator(local_indices=np.array(rows)) for rows in parts]
  for number in range(30):
    if number == 10:  # one process saved, several resume
      for share in shares:
        share.restore(json.loads(json.dumps(whole.state())))
    batch, info = next(whole)
    for rows, share in zip(parts, shares, strict=True):
      part, part_info = next(share)
      assert part_info == info
      for x, y in zip(*map(jax.tree.leaves, (part, batch)), strict=True):
        np.testing.assert_array_equal(x, y[rows], strict=True)
    assert len({json.dumps(x.state()) for x in (whole, *shares)}) == 1


def test_bucketing_reduces_padding():
  examples = ragged(512, 5, rows=2)

  def padding(window, shape=SHAPE):
    batches = BatchIterator(
      examples,
      {'s': 1},
      num_prompts=8,
      batch_shape=shape,
      seed=0,
      window=window,
    )
    padded = real = 0
    for batch, info in take(batches, 64):
      padded += batch.prompts.size
      real += batch.prompt_lengths.sum()
      assert info.num_positions['generations'] == batch.generations.size
      assert info.num_tokens['generations'] == batch.generation_lengths.sum()
    fraction = batches.padding_fraction()
    assert fraction['prompts'] == pytest.approx(1 - real / padded)
    return fraction

  bucketed, by_batch = padding(16), padding(1)
  longest = padding(1, BatchShape((128,), (64,), 2))
  assert bucketed['prompts'] < 0.3 < 0.5 < by_batch['prompts']
  assert by_batch['prompts'] < longest['prompts']
  assert bucketed['generations'] + 0.1 < by_batch['generations']


def test_evaluation_batches_are_one_pass_in_order():
  examples = ragged(10, 4)
  batches = list(evaluation_batches(examples, num_prompts=4, batch_shape=SHAPE))
  ids = [i for _, info in batches for i in info.example_ids]
  assert ids == [*map(str, range(10)), None, None]
  for _, info in batches[:-1]:
    assert info.num_positions['prompts'] > 4
  last, info = batches[-1]
  assert last.prompt_lengths[2:].tolist() == [1, 1]
  assert last.generation_lengths[2:].tolist() == [[0, 0], [0, 0]]
  assert info.num_tokens['prompts'] == last.prompt_lengths[:2].sum()
  full = evaluation_batches(examples[:8], num_prompts=4, batch_shape=SHAPE)
  assert len(list(full)) == 2
  assert list(evaluation_batches([], num_prompts=4, batch_shape=SHAPE)) == []
  share = evaluation_batches(
    examples, num_prompts=4, batch_shape=SHAPE, local_indices=np.array([2, 3])
  )
  for (part, part_info), (batch, info) in zip(share, batches, strict=True):
    assert part_info == info
    np.testing.assert_array_equal(part.prompts, batch.prompts[2:])


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'num_prompts': 8}, ['config.batch.micro_batch_prompts', 4, 8]),
    ({'window': 2}, ['bucketing window', 3, 2]),
    (
      {'batch_shape': BatchShape((32, 128), (16, 32, 64), 2)},
      ['config.batch.prompt_buckets', '[16, 32, 64, 128]', '[32, 128]'],
    ),
    (
      {'batch_shape': BatchShape((16, 32, 64, 128), (64,), 2)},
      ['config.batch.generation_buckets', '[16, 32, 64]', '[64]'],
    ),
    (
      {'batch_shape': BatchShape((16, 32, 64, 128), (16, 32, 64), 3)},
      ['config.batch.generations_per_prompt', 2, 3],
    ),
    ({'seed': 8}, ['seed', 7, 8]),
  ],
)
def test_resume_rejects_other_settings(changes, words):
  with pytest.raises(UserError, match=naming(*words)):
    two_source_iterator(**changes).restore(two_source_iterator().state())


@pytest.mark.parametrize(
  'examples, rates, words',
  [
    (EXAMPLES[:-1], RATES, ['examples', 'general', 9, 8]),
    (
      [*EXAMPLES[:-1], tokenized('8', 3, (1, 1, 1), 'general')],
      RATES,
      ['examples', 'general', 9, 'fingerprint'],
    ),
    (EXAMPLES, {'judging': 1, 'general': 1}, ["'judging': 4", "'judging': 1"]),
    (EXAMPLES, {'judging': 1, 'general': 0}, ["{'judging': 1}"]),
  ],
)
def test_resume_rejects_other_data(examples, rates, words):
  other = BatchIterator(
    examples, rates, num_prompts=4, batch_shape=SHAPE, seed=7, window=3
  )
  with pytest.raises(UserError, match=naming(*words)):
    other.restore(two_source_iterator().state())


def test_resume_rejects_the_state_of_another_class():
  with pytest.raises(UserError, match=naming("'step'", "'batch'")):
    two_source_iterator().restore({'step': 3})


def test_invalid_sizes():
  words = naming('config.batch.micro_batch_prompts', 0)
  with pytest.raises(UserError, match=words):
    two_source_iterator(num_prompts=0)
  with pytest.raises(ValueError, match=naming('window', 0)):
    two_source_iterator(window=0)


@pytest.mark.parametrize(
  'rows, words',
  [
    ([2, 4], ['config.batch.micro_batch_prompts', 4]),
    ([1, 0], []),
    ([-1], []),
  ],
)
def test_invalid_local_indices(rows, words):
  with pytest.raises(ValueError, match=naming('local_indices', rows, *words)):
    two_source_iterator(local_indices=np.array(rows))


def test_examples_that_do_not_fit():
  examples = [tokenized('1', 2, (1,)), tokenized('2', 5, (1,))]
  shape = BatchShape((4,), (4,), 1)
  text = naming("'2'", "'s'", 'prompt', 5)
  with pytest.raises(ValueError, match=text):
    BatchIterator(examples, {'s': 1}, num_prompts=1, batch_shape=shape, seed=0)
  with pytest.raises(ValueError, match=text):
    evaluation_batches(examples, num_prompts=1, batch_shape=shape)
