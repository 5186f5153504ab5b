"""Errors of single examples, which must not end a run over many of them."""

from absl import logging

from grm_jax.errors import UserError
from grm_jax.judgement.judgement import ExampleError


def example_error(example_id: str, error: Exception) -> ExampleError:
  """Returns the result of an example whose prompt or judgement failed.

  Args:
    example_id: its id.
    error: a UserError, or an error in the program, which is logged with its
      traceback. It must come from work on this example alone and not from the
      device, whose errors concern all examples.

  Raises:
    MemoryError: the error is one, so the machine is at fault.
  """
  if isinstance(error, MemoryError):
    raise error
  if isinstance(error, UserError):
    return ExampleError(example_id, str(error))
  logging.error('%s', example_id, exc_info=error)
  reason = f'an error in the program: {type(error).__name__}: {error}'
  return ExampleError(example_id, reason)
