"""The range of sampling temperatures, which all parts of the program share."""

from grm_jax.errors import UserError

# Logits have about seven digits, so a division by less than MIN leaves only the
# maximum: such temperatures sample greedily, as 0 does. Near MAX all tokens are
# about equally likely.
MIN = 1e-5
MAX = 100.0


def check(key: str, value: float, minimum: float = 0.0) -> None:
  """Raises UserError if a temperature is out of range.

  Args:
    key: what the message names it, such as 'config.temperature'.
    value: the temperature.
    minimum: MIN where greedy sampling is not allowed.
  """
  if not minimum <= value <= MAX:  # also true for NaN
    raise UserError(
      f'{key} is {value}; set it to {minimum:g} to {MAX:g} (below {MIN:g} '
      'sampling is greedy)'
    )
