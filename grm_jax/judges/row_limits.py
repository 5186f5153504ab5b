"""Limits on the size of one example, so that no row can stop a whole run.

All judges report an example above a limit as an error and judge the rest.
"""

from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.judgement import ExampleError

MAX_RESPONSES = 1024
# A pairwise judge reads n * (n - 1) pairs.
MAX_PAIRED_RESPONSES = 128
MAX_CHARACTERS = 4_000_000


def limited(
  example: JudgingExample | ExampleError, max_responses: int = MAX_RESPONSES
) -> JudgingExample | ExampleError:
  """Returns the example, or an error if it is too large to be judged."""
  if isinstance(example, ExampleError):
    return example
  num_responses = len(example.responses)
  if num_responses > max_responses:
    return ExampleError(
      example.id,
      f'it has {num_responses} responses, this judge reads at most '
      f'{max_responses}; split the row',
    )
  texts = [*example.responses, example.principles, example.reference]
  num_characters = sum(map(len, texts))
  num_characters += sum(len(turn.text) for turn in example.query)
  if num_characters > MAX_CHARACTERS:
    return ExampleError(
      example.id,
      f'it has {num_characters} characters, a judge reads at most '
      f'{MAX_CHARACTERS}; shorten the texts',
    )
  return example
