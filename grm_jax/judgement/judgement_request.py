"""A request for judgements of one example."""

import dataclasses

from grm_jax.errors import UserError
from grm_jax.judgement import response_order, temperature_range
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.prompt_builder import Hint


@dataclasses.dataclass(frozen=True)
class JudgementRequest:
  """Everything that an example's samples depend on, besides model and prompt.

  Attributes:
    example: the example to judge.
    k: number of samples; 0 requests one greedy judgement.
    order: response order, one of response_order.KINDS.
    temperature: sampling temperature, see temperature_range.py.
    seed: seed of the response orders and the samples.
    hint: states the label in the prompt (rejective fine-tuning).
  """

  example: JudgingExample
  k: int
  order: str = 'balanced'
  temperature: float = 0.5
  seed: int = 0
  hint: Hint | None = None

  def __post_init__(self):
    check(self.k, self.order, self.temperature)


def check(k: int, order: str, temperature: float, key: str = 'config') -> None:
  """Checks settings that are the same for all examples.

  Args:
    k: see JudgementRequest.
    order: see JudgementRequest.
    temperature: see JudgementRequest.
    key: config key that the settings are under, for messages.

  Raises:
    UserError: a setting is out of range.
  """
  if k < 0:
    raise UserError(
      f'{key}.k is {k}; it must be 1 or more, or 0 for one greedy judgement'
    )
  if order not in response_order.KINDS:
    raise UserError(
      f'{key}.response_order is {order!r}; it must be one of '
      f'{", ".join(response_order.KINDS)}'
    )
  temperature_range.check(f'{key}.temperature', temperature)
