"""Limits on connections, on the size of requests, and on the queue."""

import dataclasses

from grm_jax import settings
from grm_jax.errors import UserError
from grm_jax.judgement.example import JudgingExample

# Bodies of the maximum size that the server keeps at once.
_MAX_BODIES = 16
_SECONDS = settings.number(0, 7 * 86_400, above=True)  # a week at most
# Rules of config.limits.
SETTINGS = {
  'body_bytes': settings.integer(1),
  'characters': settings.integer(1),
  'responses': settings.integer(1),
  'k': settings.samples(1),
  'batch': settings.integer(1),
  'max_queue': settings.integer(1),
  'timeout_s': _SECONDS,
  'receive_timeout_s': _SECONDS,
  'connections': settings.integer(1),
}


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
    receive_timeout_s: seconds in which a client must send the header of a
      request, and then its body.
    connections: maximum number of open connections.
  """

  body_bytes: int
  characters: int
  responses: int
  k: int
  batch: int
  max_queue: int
  timeout_s: float
  receive_timeout_s: float = 60.0
  connections: int = 512

  def __post_init__(self):
    settings.check(dataclasses.asdict(self), SETTINGS, 'config.limits')
    # A batch above the queue would be told for ever to come back later.
    if self.batch > self.max_queue:
      raise UserError(
        f'config.limits.batch is {self.batch}, and config.limits.max_queue is '
        f'{self.max_queue}; set config.limits.batch to at most '
        f'{self.max_queue}'
      )

  @property
  def total_body_bytes(self) -> int:
    """Maximum size of the bodies of all requests without an answer."""
    return _MAX_BODIES * self.body_bytes

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
