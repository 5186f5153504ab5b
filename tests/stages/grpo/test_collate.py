"""Arrays of a micro-batch by hand, and which group goes where."""

import jax
import numpy as np
import pytest

from grm_jax.data import global_arrays
from grm_jax.sharding import mesh, rules
from grm_jax.stages.grpo import collate as grpo_collate
from grm_jax.stages.grpo import update as grpo_update
from tests.stages.grpo_groups import group

SIZES = dict(prompts=3, buckets=(2, 4, 8), sizes=(2, 3, 6), std=True)


def test_arrays_by_hand():
  one = group('a', (2, 5, 6), ((7,), (8, 9)), 'rw')
  two = group('b', (2,), ((3, 4, 1), (9,)), 'ww')
  made = grpo_collate.arrays([one, two], **SIZES)
  batch = made.batch
  np.testing.assert_array_equal(
    batch.prompts, [[2, 5, 6, 0], [2, 0, 0, 0], [0, 0, 0, 0]]
  )
  np.testing.assert_array_equal(batch.prompt_lengths, [3, 1, 1])
  np.testing.assert_array_equal(
    batch.generations,
    [
      [[7, 0, 0], [8, 9, 0]],
      [[3, 4, 1], [9, 0, 0]],
      [[0, 0, 0], [0, 0, 0]],
    ],
  )
  np.testing.assert_array_equal(
    batch.generation_lengths, [[1, 2], [3, 1], [0, 0]]
  )
  np.testing.assert_allclose(
    made.rollout_logps,
    -np.array([[[7, 0, 0], [8, 9, 0]], [[3, 4, 1], [9, 0, 0]], [[0] * 3] * 2])
    / 10,
  )
  np.testing.assert_allclose(
    made.advantages, [[1, -1], [0, 0], [0, 0]], rtol=1e-5
  )
  np.testing.assert_array_equal(made.weights, [[1, 1], [1, 1], [0, 0]])
  assert made.ref_logps is None and made.old_logps is None
  floats = (made.advantages, made.weights, made.rollout_logps)
  assert {x.dtype for x in floats} == {np.dtype(np.float32)}
  assert {x.dtype for x in jax.tree.leaves(batch)} == {np.dtype(np.int32)}


@pytest.mark.parametrize('std, first', [(True, 1.7320), (False, 1.5)])
def test_advantages_of_a_group(std, first):
  """Of rewards 1, -1, -1, -1."""
  one = group('a', tokens=((3,), (4,), (5,), (6,)), letters='rwxc')
  made = grpo_collate.arrays([one], **SIZES | {'std': std})
  expected = [first, *[-first / 3] * 3]
  np.testing.assert_allclose(made.advantages[0], expected, rtol=1e-4)


@pytest.mark.parametrize(
  'prompt, longest, shape',
  [(2, 2, (2, 2)), (3, 2, (4, 2)), (4, 4, (4, 6)), (8, 6, (8, 6))],
)
def test_padded_to_the_least_that_fits(prompt, longest, shape):
  one = group('a', range(2, 2 + prompt), ((7,), range(3, 3 + longest)))
  batch = grpo_collate.arrays([group(), one], **SIZES).batch
  assert batch.prompts.shape == (3, shape[0])
  assert batch.generations.shape == (3, 2, shape[1])


def test_an_empty_generation_has_a_place():
  """Of one that wrote nothing, not even the end of a turn."""
  made = grpo_collate.arrays([group(tokens=((), (5,)))], **SIZES)
  np.testing.assert_array_equal(made.batch.generation_lengths[0], [0, 1])
  np.testing.assert_array_equal(made.weights[0], [1, 1])


def names(parts):
  return [[[g.visit.example.id for g in micro] for micro in p] for p in parts]


def named(*lengths):
  """Groups named by place and length of prompt: '0:7', '1:3', ..."""
  return [group(f'{i}:{n}', range(1, n + 1)) for i, n in enumerate(lengths)]


def test_alike_lengths_share_a_micro_batch():
  groups = named(7, 3, 5, 2, 9)
  assert names(grpo_collate.divide(groups, 2, 1)) == [
    [['3:2', '1:3'], ['2:5', '0:7'], ['4:9']]
  ]
  # Of prompts of one length, by the longest generation.
  long, short = group('long', tokens=((1,), (2, 3, 4))), group('short')
  assert names(grpo_collate.divide([long, short], 1, 1)) == [
    [['short'], ['long']]
  ]


def test_dealt_to_minibatches_as_they_were_visited():
  groups = named(7, 3, 5, 2, 9)
  assert names(grpo_collate.divide(groups, 2, 2)) == [
    [['2:5', '0:7'], ['4:9']],
    [['3:2', '1:3']],
  ]
  parts = grpo_collate.divide(groups, 4, 5)
  assert names(parts) == [[[f'{i}:{n}']] for i, n in enumerate([7, 3, 5, 2, 9])]


def test_meta_counts_what_was_trained_on():
  found = grpo_update.meta(
    [group('a', (2, 5, 6), ((7,), (8, 9))), group('b', (2,), epoch=3)]
  )
  assert found.ids == ('a', 'b') and found.epochs == (0, 3)
  assert found.lengths == ((3, (1, 2)), (1, (1, 2)))
  assert found.tokens == {'prompts': 4, 'generations': 6}


def test_one_row_for_several_updates():
  numbers = [
    {'loss': 1.0, 'sampler_difference_max': 0.5, 'kl': 0.0},
    {'loss': -2.0, 'sampler_difference_max': 0.1, 'kl': 0.4},
  ]
  assert grpo_update.mean(numbers) == pytest.approx(
    {'loss': -0.5, 'sampler_difference_max': 0.5, 'kl': 0.2}
  )


def test_on_the_devices_each_group_is_where_its_prompt_is():
  """8 groups on 4 pairs of devices: two on each."""
  layout = rules.layout(mesh.make_mesh(2, 2, 2), rules.RULES)
  groups = named(3, 4, 2, 4, 1, 1, 2, 3)
  made = grpo_collate.arrays(groups, **SIZES | {'prompts': 8})
  placed = global_arrays.place(made, layout, 8)
  for ours, theirs in zip(
    jax.tree.leaves(placed), jax.tree.leaves(made), strict=True
  ):
    np.testing.assert_array_equal(np.asarray(ours), theirs)
    assert len(ours.addressable_shards) == 8
    assert {x.data.shape[0] for x in ours.addressable_shards} == {2}
