"""Rules for the leaves of configs: types, ranges and choices.

Each stage has a table SETTINGS with the rule of every leaf of its config, in
dicts that are nested like the config. Groups that several stages have, such as
`mesh`, have a table beside the code that reads them. `check` compares a config
with the table of its stage before the stage reads or writes anything. A check
that needs two leaves, or a file, is part of the `check` of the stage.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from grm_jax.errors import UserError

_MAX_INT = 2**31 - 1
# Samples of one example. More would take days for a few examples.
MAX_SAMPLES = 10_000
# Examples that a run can ask for. More would fill the host's memory.
MAX_EXAMPLES = 10_000_000
# Tokens of a prompt or a generation. No model here reads as many.
MAX_TOKENS = 2**20
# Things in one step or call, such as prompts or decode steps. More would not
# fit the memory of any device, or would take days.
MAX_PARALLEL = 2**16
_SHOWN_CHARACTERS = 80


@dataclasses.dataclass(frozen=True)
class Rule:
  """The values that a config leaf can have.

  Attributes:
    values: these values in words, which complete "set it to".
    is_valid: returns whether a value is one of them. It accepts any type.
  """

  values: str
  is_valid: Callable[[Any], bool]


Rules = Mapping[str, 'Rule | Rules']


def check(
  config: ConfigDict | Mapping[str, Any], rules: Rules, key: str = 'config'
) -> None:
  """Checks that a config has exactly the leaves in `rules`, with valid values.

  Args:
    config: config of a stage, or a group of it.
    rules: a rule per leaf.
    key: config key of `config`, for messages.

  Raises:
    UserError: a leaf is unknown, missing or wrong. The message has its key.
  """
  _check_names(config, rules, key)
  check_values(config, rules, key)


def check_values(
  config: ConfigDict | Mapping[str, Any], rules: Rules, key: str = 'config'
) -> None:
  """Checks the leaves that a config has; see `check`."""
  for name, rule in rules.items():
    if name not in config:
      continue
    if isinstance(rule, Rule):
      check_value(config[name], rule, f'{key}.{name}')
    else:
      check_values(_group(config[name], f'{key}.{name}'), rule, f'{key}.{name}')


def check_value(value: Any, rule: Rule, key: str) -> None:
  """Raises UserError, which names `key`, if the value breaks the rule."""
  if not rule.is_valid(value):
    raise UserError(f'{key} is {_shown(value)}; set it to {rule.values}')


def _check_names(config: Any, rules: Rules, key: str) -> None:
  for name in config:
    if name not in rules:
      raise UserError(
        f'{key}.{name} is not a setting of this stage; remove it, or set '
        'config.stage to the stage of this config file'
      )
  for name, rule in rules.items():
    if name not in config:
      raise UserError(
        f'{key}.{name} is missing; add it, see the files in configs/'
      )
    if not isinstance(rule, Rule):
      _check_names(_group(config[name], f'{key}.{name}'), rule, f'{key}.{name}')


def _group(value: Any, key: str) -> Any:
  if not isinstance(value, ConfigDict | Mapping):
    raise UserError(
      f'{key} is {_shown(value)}, but it is a group; set {key}.NAME, see '
      'docs/settings.md'
    )
  return value


def _shown(value: Any) -> str:
  text = ' '.join(repr(value).split())
  if len(text) > _SHOWN_CHARACTERS:
    text = f'{text[:_SHOWN_CHARACTERS]}...'
  return text


def integer(low: int, high: int = _MAX_INT, note: str = '') -> Rule:
  """Integers from `low` to `high`; `note` explains special values."""
  shown_high = '2**31 - 1' if high == _MAX_INT else high
  return Rule(
    f'an integer from {low} to {shown_high}{note and f" ({note})"}',
    lambda x: _is_int(x) and low <= x <= high,
  )


def number(
  low: float = -math.inf,
  high: float = math.inf,
  *,
  above: bool = False,
  below: bool = False,
) -> Rule:
  """Finite numbers from `low` to `high`.

  Args:
    low: the smallest value.
    high: the largest value.
    above: `low` itself is not valid.
    below: `high` itself is not valid.
  """
  bounds = []
  if low > -math.inf:
    bounds.append(f'above {low:g}' if above else f'of at least {low:g}')
  if high < math.inf:
    bounds.append(f'below {high:g}' if below else f'of at most {high:g}')

  def is_valid(x):
    if not (_is_int(x) or isinstance(x, float)) or not _is_finite(x):
      return False
    return (x > low if above else x >= low) and (
      x < high if below else x <= high
    )

  return Rule(f'a finite number {" and ".join(bounds)}'.strip(), is_valid)


def one_of(*choices: str) -> Rule:
  """One of some texts."""
  return Rule(
    f'one of {", ".join(map(repr, choices))}',
    lambda x: isinstance(x, str) and x in choices,
  )


def some_of(*choices: str) -> Rule:
  """A text of some choices, separated by commas; at least one."""

  def is_valid(x):
    return isinstance(x, str) and all(
      name.strip() in choices for name in x.split(',')
    )

  return Rule(
    f'some of {",".join(choices)}, separated by commas, each once',
    lambda x: is_valid(x) and _is_unique(x.replace(' ', '').split(',')),
  )


def samples(low: int, note: str = '') -> Rule:
  """The number of samples of an example; see MAX_SAMPLES."""
  return integer(low, MAX_SAMPLES, note)


def examples(low: int, note: str = '') -> Rule:
  """A number of examples; see MAX_EXAMPLES."""
  return integer(low, MAX_EXAMPLES, note)


def tokens(low: int, note: str = '') -> Rule:
  """A length in tokens; see MAX_TOKENS."""
  return integer(low, MAX_TOKENS, note)


def parallel(low: int) -> Rule:
  """A number of things in one step or call; see MAX_PARALLEL."""
  return integer(low, MAX_PARALLEL)


def tuple_of(choices: tuple[str, ...]) -> Rule:
  """A tuple of some of the choices, each once; it can be empty."""
  return Rule(
    f'a tuple of some of {", ".join(map(repr, choices))}, each once',
    lambda x: (
      isinstance(x, list | tuple)
      and all(isinstance(y, str) and y in choices for y in x)
      and _is_unique(x)
    ),
  )


def optional(rule: Rule, meaning: str) -> Rule:
  """The values of a rule, or an empty text or tuple with a meaning."""
  return Rule(
    f'{rule.values}; or leave it empty ({meaning})',
    lambda x: x == '' or x == () or rule.is_valid(x),
  )


def _is_int(x: Any) -> bool:
  return isinstance(x, int) and not isinstance(x, bool)


def _is_finite(x: Any) -> bool:
  try:
    return math.isfinite(x)
  except OverflowError:  # an integer above the largest float
    return False


def _is_unique(values: Any) -> bool:
  return len(set(values)) == len(values)


def _is_text(x: Any) -> bool:
  return isinstance(x, str) and x.isprintable()


def _is_name(x: Any) -> bool:
  return _is_text(x) and bool(x) and not set(x) & set(' (),"\'')


def _are_lengths(x: Any) -> bool:
  return (
    isinstance(x, list | tuple)
    and bool(x)
    and all(_is_int(y) and 1 <= y <= MAX_TOKENS for y in x)
    and all(a < b for a, b in zip(x, x[1:], strict=False))
  )


BOOLEAN = Rule('true or false', lambda x: isinstance(x, bool))
# Names and paths.
TEXT = Rule('a text on one line', _is_text)
# Names of hosts.
NAME = Rule('a name without spaces', _is_name)
NAMES = Rule(
  'a tuple of names without spaces',
  lambda x: isinstance(x, list | tuple) and all(map(_is_name, x)),
)
# Padded lengths, such as prompt_buckets.
LENGTHS = Rule(
  f'a tuple of different integers from 1 to {MAX_TOKENS} in ascending order',
  _are_lengths,
)
FRACTION = number(0, 1)
# jax.random.key ignores the higher bits of larger seeds.
SEED = integer(0, 2**32 - 1)
# Number of a checkpoint.
STEP = integer(-1, note='-1: the newest')
PERIOD = integer(0, note='0: at the end only')
