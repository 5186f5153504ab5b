"""Batches: padded by hand, exact after a resume, shared over processes."""

import collections
import itertools
import json

import jax
import numpy as np
import pytest

from grm_jax.data import collate
from grm_jax.data.batch_iterator import BatchIterator, once
from grm_jax.data.tokenized_example import BatchShape
from grm_jax.errors import UserError
from grm_jax.model import batch as batches_of_model
from tests.data.made import ragged, record, same
from tests.messages import naming

LIMITS = BatchShape((16, 32, 64, 128), (16, 32, 64), 2)
TWO = [
  *ragged(23, 1, source='judging'),
  *ragged(9, 2, rows=3, source='general'),
]
RATES = {'judging': 0.8, 'general': 0.2}


def two_sources(**changes):
  options = {'prompts': 4, 'limits': LIMITS, 'seed': 7, 'window': 3} | changes
  return BatchIterator(TWO, RATES, **options)


def take(batches, count):
  return list(itertools.islice(batches, count))


def test_arrays_by_hand():
  given = [record('1', 3, (2, 0)), record('2', 1, (1,))]
  limits = BatchShape((2, 4, 8), (1, 3), 2)
  ((batch, meta),) = once(given, prompts=3, limits=limits)
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
  batches_of_model.check(batch)
  assert meta.ids == ('1', '2', None)
  assert meta.sources == ('s', 's', None)
  assert meta.chosen == ((0, 1), (0,), ())
  assert meta.tokens == {'prompts': 4, 'generations': 3}
  assert meta.places == {'prompts': 12, 'generations': 18}


def test_prompts_alone():
  given = [record('1', 3, (9, 9)), record('2', 1, ())]
  batches = BatchIterator(
    given, {'s': 1}, prompts=2, limits=BatchShape((4,), (1,), 0), seed=0
  )
  batch, meta = next(batches)
  assert batch.generations is None and batch.generation_lengths is None
  assert meta.chosen == ((), ())
  assert batches.waste() == {'prompts': 0.5, 'generations': 0.0}


def test_an_empty_generation_still_has_a_place():
  ((batch, _),) = once(
    [record('1', 1, (0,))], prompts=1, limits=BatchShape((1,), (4, 9), 1)
  )
  assert batch.generations.shape == (1, 1, 4)
  batches_of_model.check(batch)


def test_a_window_is_cut_by_padded_length():
  """Four short and four long records: no batch has both."""
  given = [
    record(str(i), prompt, (generation,))
    for i, (prompt, generation) in enumerate(
      [(2, 1), (7, 1), (3, 1), (8, 1), (7, 5), (3, 5), (8, 5), (2, 5)]
    )
  ]
  batches = BatchIterator(
    given,
    {'s': 1},
    prompts=2,
    limits=BatchShape((4, 8), (2, 6), 1),
    seed=0,
    window=4,
  )
  orders = []
  for _ in range(6):
    window = take(batches, 4)
    shapes = [(b.prompts.shape[1], b.generations.shape[2]) for b, _ in window]
    assert sorted(shapes) == [(4, 2), (4, 6), (8, 2), (8, 6)]
    assert sorted(i for _, m in window for i in m.ids) == list('01234567')
    orders.append(tuple(shapes))
  # Their order tells nothing of their length.
  assert len(set(orders)) > 2
  assert len({shapes[0] for shapes in orders}) > 1


def test_every_epoch_is_complete():
  given = ragged(24, 3)
  batches = BatchIterator(
    given, {'s': 1}, prompts=4, limits=LIMITS, seed=0, window=3
  )
  seen = []
  for epoch in range(3):
    metas = [meta for _, meta in take(batches, 6)]
    seen.append([i for meta in metas for i in meta.ids])
    assert sorted(map(int, seen[-1])) == list(range(24))
    assert {e for meta in metas for e in meta.epochs} == {epoch}
    assert batches.passes() == {'s': epoch + 1.0}
  assert len(set(map(tuple, seen))) == 3


def test_epochs_run_on_where_windows_do_not_divide_them():
  batches = BatchIterator(
    ragged(10, 3), {'s': 1}, prompts=4, limits=LIMITS, seed=0, window=4
  )
  metas = [meta for _, meta in take(batches, 20)]
  drawn = collections.Counter(
    (i, e) for m in metas for i, e in zip(m.ids, m.epochs, strict=True)
  )
  assert drawn == {(str(i), e): 1 for i in range(10) for e in range(8)}


def test_the_tokens_are_those_of_the_record():
  by_name = {(r.source, r.id): r for r in TWO}
  for batch, meta in take(two_sources(), 30):
    batches_of_model.check(batch)
    for p, name in enumerate(zip(meta.sources, meta.ids, strict=True)):
      own, length = by_name[name], batch.prompt_lengths[p]
      np.testing.assert_array_equal(batch.prompts[p, :length], own.prompt)
      assert not batch.prompts[p, length:].any()
      assert len(meta.chosen[p]) == 2
      for r, i in enumerate(meta.chosen[p]):
        n = batch.generation_lengths[p, r]
        np.testing.assert_array_equal(
          batch.generations[p, r, :n], own.generations[i]
        )
        assert not batch.generations[p, r, n:].any()
    longest = batch.prompt_lengths.max()
    assert batch.prompts.shape[1] == min(
      b for b in LIMITS.buckets if longest <= b
    )


def test_sources_come_by_rate():
  batches = two_sources()
  taken = collections.Counter()
  for window in range(1, 21):
    for _, meta in take(batches, 3):
      taken.update(meta.sources)
    assert abs(taken['general'] - 12 * window / 5) < 1
    assert batches.passes() == {
      'judging': taken['judging'] / 23,
      'general': taken['general'] / 9,
    }


def test_more_generations_than_rows_are_used_in_turn():
  given = [record('1', 2, (1, 2, 3, 4, 5)), record('2', 2, (1, 2))]
  batches = BatchIterator(
    given,
    {'s': 1},
    prompts=2,
    limits=BatchShape((2,), (5,), 2),
    seed=0,
    window=1,
  )
  used = []
  for _, meta in take(batches, 5):
    chosen = dict(zip(meta.ids, meta.chosen, strict=True))
    assert chosen['2'] == (0, 1)
    assert len(chosen['1']) == 2 and chosen['1'][0] < chosen['1'][1]
    used += chosen['1']
  # In 5 epochs of 2 each of the 5 twice.
  assert collections.Counter(used) == dict.fromkeys(range(5), 2)


def test_which_generations_depends_on_seed_and_record():
  limits = BatchShape((2,), (5,), 2)

  def chosen(name, seed):
    return collate.item(record(name, 2, (1,) * 5), limits, seed, 0).chosen

  assert len({chosen('1', seed) for seed in range(8)}) > 2
  assert len({chosen(str(i), 0) for i in range(8)}) > 2


def test_resume_at_every_batch_of_two_epochs():
  """Windows of 12 draws against epochs of 23 and 9: all borders are met."""
  batches = two_sources()
  states, expected = [], []
  while min(batches.passes().values()) < 2:
    states.append(json.dumps(batches.state()))
    expected.append(next(batches))
  states.append(json.dumps(batches.state()))
  assert len(expected) > 12
  for i, text in enumerate(states[:-1]):
    resumed = two_sources()
    resumed.restore(json.loads(text))
    assert resumed.state() == json.loads(text)
    for j in range(i, min(i + 4, len(expected))):
      same(next(resumed), expected[j])
      assert json.dumps(resumed.state()) == states[j + 1]
    assert i > len(expected) - 4 or resumed.waste() == batches.waste(
      json.loads(states[i + 4])
    )


def test_restoring_forgets_where_the_iterator_was():
  one, other = two_sources(), two_sources()
  state = one.state()
  expected = take(one, 8)
  take(other, 4)
  other.restore(state)
  for found, wanted in zip(take(other, 8), expected, strict=True):
    same(found, wanted)
  assert state['batch'] == 0 and not any(state['taken'].values())


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
def test_processes_build_parts_of_the_same_batches(parts):
  whole = two_sources()
  shares = [two_sources(rows_of_process=np.array(rows)) for rows in parts]
  for number in range(30):
    if number == 10:  # One process saved, several go on.
      for share in shares:
        share.restore(json.loads(json.dumps(whole.state())))
    batch, meta = next(whole)
    for rows, share in zip(parts, shares, strict=True):
      part, part_meta = next(share)
      assert part_meta == meta
      for x, y in zip(*map(jax.tree.leaves, (part, batch)), strict=True):
        np.testing.assert_array_equal(x, y[rows], strict=True)
    assert len({json.dumps(x.state()) for x in (whole, *shares)}) == 1


def test_bucketing_wastes_less():
  given = ragged(512, 5, rows=2)

  def waste(window, limits=LIMITS):
    batches = BatchIterator(
      given, {'s': 1}, prompts=8, limits=limits, seed=0, window=window
    )
    padded = real = 0
    for batch, meta in take(batches, 64):
      padded += batch.prompts.size
      real += batch.prompt_lengths.sum()
      assert meta.places['generations'] == batch.generations.size
      assert meta.tokens['generations'] == batch.generation_lengths.sum()
    assert batches.waste()['prompts'] == pytest.approx(1 - real / padded)
    return batches.waste()

  bucketed, by_batch = waste(16), waste(1)
  longest = waste(1, BatchShape((128,), (64,), 2))
  assert bucketed['prompts'] < 0.3 < 0.5 < by_batch['prompts']
  assert by_batch['prompts'] < longest['prompts']
  assert bucketed['generations'] + 0.1 < by_batch['generations']


def test_once_has_every_record_once_and_in_order():
  given = ragged(10, 4)
  batches = list(once(given, prompts=4, limits=LIMITS))
  ids = [i for _, meta in batches for i in meta.ids]
  assert ids == [*map(str, range(10)), None, None]
  for _, meta in batches[:-1]:
    assert meta.places['prompts'] > 4
  last, meta = batches[-1]
  assert last.prompt_lengths[2:].tolist() == [1, 1]
  assert last.generation_lengths[2:].tolist() == [[0, 0], [0, 0]]
  assert meta.tokens['prompts'] == last.prompt_lengths[:2].sum()
  assert len(list(once(given[:8], prompts=4, limits=LIMITS))) == 2
  assert list(once([], prompts=4, limits=LIMITS)) == []
  share = once(
    given, prompts=4, limits=LIMITS, rows_of_process=np.array([2, 3])
  )
  for (part, part_meta), (batch, meta) in zip(share, batches, strict=True):
    assert part_meta == meta
    np.testing.assert_array_equal(part.prompts, batch.prompts[2:])


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'prompts': 8}, ['config.batch.micro_batch_prompts', 4, 8]),
    ({'window': 2}, ['config.batch.window', 3, 2]),
    (
      {'limits': BatchShape((32, 128), (16, 32, 64), 2)},
      ['config.batch.prompt_buckets', '[16, 32, 64, 128]', '[32, 128]'],
    ),
    (
      {'limits': BatchShape((16, 32, 64, 128), (64,), 2)},
      ['config.batch.generation_buckets', '[16, 32, 64]', '[64]'],
    ),
    (
      {'limits': BatchShape((16, 32, 64, 128), (16, 32, 64), 3)},
      ['config.batch.generations_per_prompt', 2, 3],
    ),
    ({'seed': 8}, ['seed', 7, 8]),
  ],
)
def test_other_settings_are_not_resumed(changes, words):
  with pytest.raises(UserError, match=naming(*words)):
    two_sources(**changes).restore(two_sources().state())


@pytest.mark.parametrize(
  'given, rates, words',
  [
    (TWO[:-1], RATES, ['records', 'general', 9, 8]),
    (
      [*TWO[:-1], record('8', 3, (1, 1, 1), 'general')],
      RATES,
      ['records', 'general', 9, 'fingerprint'],
    ),
    (TWO, {'judging': 1, 'general': 1}, ["'judging': 4", "'judging': 1"]),
    (TWO, {'judging': 1, 'general': 0}, ["{'judging': 1}"]),
  ],
)
def test_other_data_are_not_resumed(given, rates, words):
  other = BatchIterator(
    given, rates, prompts=4, limits=LIMITS, seed=7, window=3
  )
  with pytest.raises(UserError, match=naming(*words)):
    other.restore(two_sources().state())


def test_a_state_of_something_else_is_refused():
  with pytest.raises(UserError, match=naming("'step'", "'batch'")):
    two_sources().restore({'step': 3})


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'prompts': 0}, ['config.batch.micro_batch_prompts', 0]),
    ({'window': 0}, ['config.batch.window', 0]),
  ],
)
def test_wrong_settings(changes, words):
  with pytest.raises(UserError, match=naming(*words)):
    two_sources(**changes)


@pytest.mark.parametrize(
  'rows, words',
  [
    ([2, 4], ['config.batch.micro_batch_prompts', 4]),
    ([1, 0], []),
    ([-1], []),
  ],
)
def test_wrong_rows_of_a_process(rows, words):
  with pytest.raises(ValueError, match=naming('rows_of_process', rows, *words)):
    two_sources(rows_of_process=np.array(rows))


def test_what_does_not_fit_is_refused():
  given = [record('1', 2, (1,)), record('2', 5, (1,))]
  limits = BatchShape((4,), (4,), 1)
  text = naming("'2'", "'s'", 'prompt', 5)
  with pytest.raises(ValueError, match=text):
    BatchIterator(given, {'s': 1}, prompts=1, limits=limits, seed=0)
  with pytest.raises(ValueError, match=text):
    once(given, prompts=1, limits=limits)
