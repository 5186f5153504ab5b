"""The range of sampling temperatures, which all parts of the program share."""

from grm_jax import settings

# Logits have about seven digits, so a division by less than MIN leaves only the
# maximum: such temperatures sample greedily, as 0 does. Near MAX all tokens are
# about equally likely.
MIN = 1e-5
MAX = 100.0


_GREEDY = f'below {MIN:g} sampling is greedy'
SETTING = settings.Rule(
  f'a number from 0 to {MAX:g} ({_GREEDY})', settings.number(0, MAX).is_valid
)
# The generations of a group must differ.
ROLLOUTS = settings.Rule(
  f'a number from {MIN:g} to {MAX:g} ({_GREEDY})',
  settings.number(MIN, MAX).is_valid,
)


def check(key: str, value: float) -> None:
  """Raises UserError if a temperature is out of range.

  Args:
    key: what the message names it, such as 'config.temperature'.
    value: the temperature.
  """
  settings.check_value(value, SETTING, key)
