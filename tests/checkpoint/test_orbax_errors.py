"""Which records of asyncio's log are dropped after a failed save."""

import asyncio

import pytest

from grm_jax.checkpoint import orbax_errors

WRITE = 'OUT_OF_RANGE: Failed to write 5 bytes to file 9: File too large'


@pytest.mark.parametrize(
  ('error', 'logged'),
  [
    (ValueError(WRITE), False),
    (ValueError('a fault of ours'), True),
    (KeyError('x'), True),
  ],
)
def test_only_failed_writes_are_dropped(error, logged, caplog):
  orbax_errors.silence_log()
  loop = asyncio.new_event_loop()
  loop.create_future().set_exception(error)  # logged when it is deleted
  loop.close()
  assert ('never retrieved' in caplog.text) == logged
