"""Micro-batches by hand, and the assignment of groups to them."""

import jax
import numpy as np
import pytest

from grm_jax.data import global_arrays
from grm_jax.data.tokenized_example import BatchShape
from grm_jax.sharding import mesh, rules
from grm_jax.stages.grpo import collate
from grm_jax.stages.grpo.rollout import group_advantages
from tests.stages.grpo.groups import make_group

SHAPE = BatchShape((2, 4, 8), (2, 3, 6), 2)


def pad(groups, num_prompts=3, normalize_by_std=True):
  advantages = group_advantages(groups, normalize_by_std)
  return collate.pad_groups(groups, advantages, num_prompts, SHAPE)


def test_arrays_by_hand():
  one = make_group('a', (2, 5, 6), ((7,), (8, 9)), 'rw')
  two = make_group('b', (2,), ((3, 4, 1), (9,)), 'ww')
  padded = pad([one, two])
  batch = padded.batch
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
    padded.rollout_logps,
    -np.array([[[7, 0, 0], [8, 9, 0]], [[3, 4, 1], [9, 0, 0]], [[0] * 3] * 2])
    / 10,
  )
  np.testing.assert_allclose(
    padded.advantages, [[1, -1], [0, 0], [0, 0]], rtol=1e-5
  )
  np.testing.assert_array_equal(padded.weights, [[1, 1], [1, 1], [0, 0]])
  assert padded.ref_logps is None and padded.old_logps is None
  floats = (padded.advantages, padded.weights, padded.rollout_logps)
  assert {x.dtype for x in floats} == {np.dtype(np.float32)}
  assert {x.dtype for x in jax.tree.leaves(batch)} == {np.dtype(np.int32)}


@pytest.mark.parametrize(
  'prompt, longest, shape',
  [(2, 2, (2, 2)), (3, 2, (4, 2)), (4, 4, (4, 6)), (8, 6, (8, 6))],
)
def test_pads_to_the_smallest_bucket(prompt, longest, shape):
  group = make_group('a', range(2, 2 + prompt), ((7,), range(3, 3 + longest)))
  batch = pad([make_group(), group]).batch
  assert batch.prompts.shape == (3, shape[0])
  assert batch.generations.shape == (3, 2, shape[1])


def test_an_empty_generation_has_a_row():
  """It was cut off before its first token."""
  padded = pad([make_group(tokens=((), (5,)))])
  np.testing.assert_array_equal(padded.batch.generation_lengths[0], [0, 1])
  np.testing.assert_array_equal(padded.weights[0], [1, 1])


def split_names(groups, num_minibatches, micro_batch_prompts):
  return [
    [
      [groups[i].rollout_prompt.example.id for i in micro]
      for micro in minibatch
    ]
    for minibatch in collate.split_groups(
      groups, num_minibatches, micro_batch_prompts
    )
  ]


def groups_of_lengths(*lengths):
  """Groups named by position and length of the prompt: '0:7', '1:3', ..."""
  return [
    make_group(f'{i}:{n}', range(1, n + 1)) for i, n in enumerate(lengths)
  ]


def test_similar_lengths_share_a_micro_batch():
  groups = groups_of_lengths(7, 3, 5, 2, 9)
  assert split_names(groups, 1, 2) == [
    [['3:2', '1:3'], ['2:5', '0:7'], ['4:9']]
  ]
  # Prompts of equal length are sorted by their longest generation.
  long = make_group('long', tokens=((1,), (2, 3, 4)))
  short = make_group('short')
  assert split_names([long, short], 1, 1) == [[['short'], ['long']]]


def test_groups_are_dealt_to_minibatches_in_turn():
  groups = groups_of_lengths(7, 3, 5, 2, 9)
  assert split_names(groups, 2, 2) == [
    [['2:5', '0:7'], ['4:9']],
    [['3:2', '1:3']],
  ]
  assert split_names(groups, 5, 4) == [
    [[f'{i}:{n}']] for i, n in enumerate([7, 3, 5, 2, 9])
  ]


def test_minibatches_hold_each_group_with_its_advantages():
  """8 groups on 4 pairs of devices; the advantages name their groups."""
  layout = rules.make_layout(mesh.make_mesh(2, 2, 2), rules.RULES)
  lengths = [3, 4, 2, 4, 1, 1, 2, 3, 6]
  advantages = np.arange(18, dtype=np.float32).reshape(9, 2)
  ((one, two),) = collate.make_minibatches(
    groups_of_lengths(*lengths),
    advantages,
    num_minibatches=1,
    micro_batch_prompts=8,
    batch_shape=SHAPE,
    layout=layout,
  )
  shortest_first = np.argsort(lengths, kind='stable')
  np.testing.assert_array_equal(one.advantages, advantages[shortest_first[:8]])
  np.testing.assert_array_equal(two.advantages[0], advantages[8])
  np.testing.assert_array_equal(two.advantages[1:], 0)
  assert two.batch.prompts.shape == (8, 8)


def test_devices_hold_each_group_where_its_prompt_is():
  """8 groups on 4 pairs of devices: two groups on each."""
  layout = rules.make_layout(mesh.make_mesh(2, 2, 2), rules.RULES)
  padded = pad(groups_of_lengths(3, 4, 2, 4, 1, 1, 2, 3), num_prompts=8)
  placed = global_arrays.make_global_arrays(padded, layout, 8)
  for on_devices, expected in zip(
    jax.tree.leaves(placed), jax.tree.leaves(padded), strict=True
  ):
    np.testing.assert_array_equal(np.asarray(on_devices), expected)
    shards = on_devices.addressable_shards
    assert len(shards) == 8 and {x.data.shape[0] for x in shards} == {2}
