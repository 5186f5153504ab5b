"""An example, and how a judge is asked for judgements of it."""

import dataclasses

from grm_jax.errors import UserError
from grm_jax.judgement import response_order
from grm_jax.judgement.example import JudgingExample


@dataclasses.dataclass(frozen=True)
class JudgementRequest:
  """What the samples of an example depend on, beside the model and its prompt.

  Attributes:
    example: what is judged.
    k: samples; 0 is one greedy judgement.
    order: of responses, see judgement/response_order.py.
    temperature: of the samples.
    seed: of orders and samples.
    hint: whether the prompt tells what is right (rejective fine-tuning).
  """

  example: JudgingExample
  k: int
  order: str = 'balanced'
  temperature: float = 0.5
  seed: int = 0
  hint: bool = False

  def __post_init__(self):
    check(self.k, self.order, self.temperature)


def check(k: int, order: str, temperature: float, key: str = 'config') -> None:
  """Checks settings that apply to every example; see Asked.

  Args:
    k, order, temperature: see Asked.
    key: config key that they are under, for messages.

  Raises:
    UserError: one of them is wrong.
  """
  if k < 0:
    raise UserError(f'{key}.k is {k}; 0 is one greedy judgement')
  if order not in response_order.KINDS:
    raise UserError(
      f'{key}.response_order is {order!r}; it can be '
      f'{", ".join(response_order.KINDS)}'
    )
  if not 0 <= temperature < float('inf'):
    raise UserError(f'{key}.temperature is {temperature}; it must be 0 or more')
