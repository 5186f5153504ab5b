"""An example, and how a judge is asked for judgements of it."""

import dataclasses

from grm_jax.judging import orders
from grm_jax.judging.example import JudgingExample


@dataclasses.dataclass(frozen=True)
class Asked:
  """What the samples of an example depend on, beside the model and its prompt.

  Attributes:
    example: what is judged.
    k: samples; 0 is one greedy judgement.
    order: of responses, see judging/orders.py.
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


def check(k: int, order: str, temperature: float) -> None:
  """ValueError for what no example can be asked with; see Asked."""
  if k < 0:
    raise ValueError(f'config.k is {k}; 0 is one greedy judgement')
  if order not in orders.KINDS:
    raise ValueError(
      f'config.order is {order!r}; it can be {", ".join(orders.KINDS)}'
    )
  if not 0 <= temperature < float('inf'):
    raise ValueError(
      f'config.temperature is {temperature}; it must be 0 or more'
    )
