"""How much one client may ask for at once."""

import dataclasses

from grm_jax.errors import UserError
from grm_jax.judgement.example import JudgingExample


@dataclasses.dataclass(frozen=True)
class ServerLimits:
  """Above each of them a request is refused, with the limit's name.

  Attributes:
    body_bytes: of a request as it is sent.
    characters: of all texts of an example.
    responses: of an example.
    k: samples of an example.
    batch: examples of a request.
    waiting: examples of all clients that wait for the model.
    seconds: until a request is given up.
  """

  body_bytes: int
  characters: int
  responses: int
  k: int
  batch: int
  waiting: int
  seconds: float

  def __post_init__(self):
    for name, value in dataclasses.asdict(self).items():
      if not value > 0:
        raise UserError(f'config.limits.{name} is {value}; it must be above 0')

  def check_example(self, example: JudgingExample) -> None:
    """UserError for an example that is too large."""
    _most('responses', len(example.responses), self.responses)
    texts = (*example.responses, example.principles, example.reference)
    count = sum(map(len, texts)) + sum(len(x.text) for x in example.query)
    _most('characters', count, self.characters)

  def check_samples(self, k: int) -> None:
    """UserError for too many samples."""
    _most('k', k, self.k)

  def check_batch(self, count: int) -> None:
    """UserError for too many examples in a request."""
    _most('requests', count, self.batch)


def _most(what, count, most):
  if count > most:
    raise UserError(f'{what}: {count}; this server takes at most {most}')
