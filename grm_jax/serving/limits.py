"""Limits on the size of requests and on the length of the queue."""

import dataclasses

from grm_jax.errors import UserError
from grm_jax.judgement.example import JudgingExample


@dataclasses.dataclass(frozen=True)
class ServerLimits:
  """Limits of the service; an error response names the exceeded limit.

  The attributes are the leaves of config.limits.

  Attributes:
    body_bytes: maximum size of a request body, in bytes.
    characters: maximum number of characters in all texts of an example.
    responses: maximum number of responses of an example.
    k: maximum number of samples of an example.
    batch: maximum number of examples in a request.
    max_queue: maximum number of queued examples, over all clients.
    timeout_s: seconds after which a request is cancelled.
  """

  body_bytes: int
  characters: int
  responses: int
  k: int
  batch: int
  max_queue: int
  timeout_s: float

  def __post_init__(self):
    for name, value in dataclasses.asdict(self).items():
      if not value > 0:
        raise UserError(f'config.limits.{name} is {value}; it must be above 0')

  def check_example(self, example: JudgingExample) -> None:
    """Raises UserError if the example is too large."""
    _check_maximum('responses', len(example.responses), self.responses)
    texts = (*example.responses, example.principles, example.reference)
    num_characters = sum(map(len, texts))
    num_characters += sum(len(turn.text) for turn in example.query)
    _check_maximum('characters', num_characters, self.characters)

  def check_samples(self, k: int) -> None:
    """Raises UserError if an example asks for too many samples."""
    _check_maximum('k', k, self.k)

  def check_batch(self, num_examples: int) -> None:
    """Raises UserError if a request has too many examples."""
    _check_maximum('requests', num_examples, self.batch)


def _check_maximum(name, value, maximum):
  if value > maximum:
    raise UserError(
      f'{name} is {value}; the maximum of this server is {maximum}'
    )
