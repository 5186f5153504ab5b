"""Periodic actions of a run."""

import pytest

from grm_jax.training.run import should_run


@pytest.mark.parametrize(
  'every, total, stride, due',
  [
    (4, 10, 1, [4, 8, 10]),
    (0, 10, 1, [10]),
    (3, 10, 2, [4, 6, 10]),
    (4, 12, 4, [4, 8, 12]),
  ],
)
def test_periodic_actions(every, total, stride, due):
  steps = range(stride, total + 1, stride)
  assert [x for x in steps if should_run(x, every, total, stride)] == due
