"""Correctness of a judgement and the reward that GRPO gives it.

The default reward is the outcome reward of equation 10 in arXiv 2504.02495: +1
for a correct judgement, -1 for any other. A judgement that does not parse is
incorrect; so is a truncated one, unless config.prompt.truncated is 'read'.
There is no format reward; the KL term keeps the format.
"""

import importlib.util
import numbers
import os
import sys
import traceback
import types
from collections.abc import Callable, Sequence
from typing import Any

from grm_jax.errors import UserError
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.judgement import Judgement

OUTCOMES = ('correct', 'incorrect', 'parse_failure', 'truncated')
CRITIQUE = 'critique'  # outcome of a generation that states no scores

# Signature of a reward function.
RewardFunction = Callable[[JudgingExample, Judgement], float]
_MAX_FLOAT32 = 3.4028234e38  # rewards are arrays of float32


def prefers_best(scores: Sequence[float] | None, best: int) -> bool:
  """Returns whether the best response's score is strictly the highest.

  Args:
    scores: [C], one per response in the example's own order, C >= 2. None is a
      parse failure, which is incorrect. A tie at the top is incorrect too.
    best: index of the best response.

  Raises:
    ValueError: there are fewer than two scores, or `best` is out of range.
  """
  if scores is None:
    return False
  if len(scores) < 2:
    raise ValueError(
      f'{len(scores)} scores have no best one; use matches_label'
    )
  if not 0 <= best < len(scores):
    raise ValueError(f'best is {best}; it must be from 0 to {len(scores) - 1}')
  return all(scores[best] > s for i, s in enumerate(scores) if i != best)


def matches_label(score: float | None, label: float) -> bool:
  """Returns whether a single response's score is its label; None is not."""
  return score == label


def has_label(example: JudgingExample) -> bool:
  """Returns whether the example states what a correct judgement is."""
  if len(example.responses) > 1:
    return example.best is not None
  return example.rewards is not None and example.rewards[0] in (0, 1)


def is_correct(scores: Sequence[float] | None, example: JudgingExample) -> bool:
  """Returns whether the scores agree with the example's label.

  Args:
    scores: [C], one per response in the example's own order; None is a parse
      failure.
    example: states its best response, or for C = 1 its label (0 or 1) as
      reward.

  Raises:
    UserError: the example has no label.
    ValueError: the numbers of scores and responses differ.
  """
  n = len(example.responses)
  if scores is not None and len(scores) != n:
    raise ValueError(f'{example.id}: {len(scores)} scores for {n} responses')
  if n > 1:
    if example.best is None:
      raise UserError(
        f'{example.id}: none of the {n} responses is marked as the best; set '
        '`best` in the data'
      )
    return prefers_best(scores, example.best)
  if example.rewards is None:
    raise UserError(
      f'{example.id}: a single response has no label; set `rewards` to [0] or '
      '[1] in the data'
    )
  return matches_label(
    None if scores is None else scores[0], example.rewards[0]
  )


def outcome(example: JudgingExample, judgement: Judgement) -> str:
  """Returns which of OUTCOMES a judgement is, or CRITIQUE without scores.

  Args:
    example: the labelled example, see `has_label`; any for a critique.
    judgement: one generation about it.

  Raises:
    UserError: the example has no label.
  """
  if judgement.scores is None:
    return 'truncated' if judgement.truncated else 'parse_failure'
  if not judgement.scores:
    return CRITIQUE
  return 'correct' if is_correct(judgement.scores, example) else 'incorrect'


def outcome_reward(example: JudgingExample, judgement: Judgement) -> float:
  """Returns +1.0 for a correct judgement, else -1.0 (equation 10)."""
  return 1.0 if outcome(example, judgement) == 'correct' else -1.0


def load_reward(spec: str, key: str = 'config.reward') -> RewardFunction:
  """Loads the reward function that `config.reward` names.

  A user's function has the signature

    def reward(example: JudgingExample, judgement: Judgement) -> float

  `example` holds the query, the responses and what is known about them (`best`,
  `rewards`, `reference`, `tags`). `judgement` offers `text`, the whole
  generation; `scores`, one integer per response in the example's own order, or
  None if the text does not parse; and `truncated`, True if the generation
  reached the maximum length. The result must be a finite number. The function
  must depend on its arguments only: every process calls it, and a resumed run
  calls it again.

  Args:
    spec: 'outcome' for `outcome_reward`, or 'path/to/file.py:function'. The
      path is local and relative to the working directory.
    key: config key of `spec`, for messages.

  Returns:
    The function. A user's function is wrapped: it raises UserError if it fails
    or if its result is not a finite number.

  Raises:
    UserError: the spec, the file or the function is wrong.
  """
  if spec == 'outcome':
    return outcome_reward
  path, separator, name = spec.rpartition(':')
  if not separator or not path.endswith('.py') or not name.isidentifier():
    raise UserError(
      f"{key} is {spec!r}; it must be 'outcome' or 'path/to/file.py:function'"
    )
  function = getattr(_load_module(path), name, None)
  if not callable(function):
    problem = 'is not a function' if function is not None else 'does not exist'
    raise UserError(
      f'{key} is {spec!r}, but {name} {problem} in that file; define '
      f'def {name}(example, judgement) there'
    )

  return _checked(function, spec, path)


def _checked(function: RewardFunction, spec: str, path: str) -> RewardFunction:
  """Wraps a user's function; see `load_reward`."""

  def reward(example: JudgingExample, judgement: Judgement) -> float:
    """Calls the user's function and checks that its result is finite."""
    try:
      value = function(example, judgement)
    except Exception as error:  # a user's function can raise anything
      raise _failure(spec, path, error, f' for example {example.id}') from error
    if not _is_finite(value):
      raise UserError(
        f'config.reward: {spec} returned {value!r} for example {example.id}; '
        'it must return a finite number'
      )
    return float(value)

  return reward


def _is_finite(value: Any) -> bool:
  # NumPy's scalars are numbers.Real; arrays and None are not.
  if not isinstance(value, numbers.Real):
    return False
  magnitude: Any = abs(value)
  return bool(magnitude <= _MAX_FLOAT32)  # False for NaN


def _load_module(path: str) -> types.ModuleType:
  """Imports a user's file.

  Raises:
    UserError: there is no such file, or it fails while it is imported.
  """
  if not os.path.isfile(path):
    raise UserError(
      f'config.reward names the file {path}, which does not exist; give a path '
      f'relative to {os.getcwd()}'
    )
  module_name = f'grm_jax_reward_{os.path.basename(path).removesuffix(".py")}'
  module_spec = importlib.util.spec_from_file_location(module_name, path)
  # It is None only for a file that does not end in .py.
  assert module_spec is not None and module_spec.loader is not None
  module = importlib.util.module_from_spec(module_spec)
  sys.modules[module_name] = module  # dataclasses in the file look it up
  try:
    module_spec.loader.exec_module(module)
  except Exception as error:  # a user's file can raise anything
    del sys.modules[module_name]
    raise _failure(path, path, error) from error
  return module


def _failure(
  spec: str, path: str, error: Exception, where: str = ''
) -> UserError:
  """Returns the error for an exception in the user's file, with its line."""
  file = os.path.abspath(path)
  frames = traceback.extract_tb(error.__traceback__)
  lines = [x.lineno for x in frames if os.path.abspath(x.filename) == file]
  if isinstance(error, SyntaxError) and not lines:
    lines = [error.lineno]
  place = f', line {lines[-1]}' if lines else ''
  text = ' '.join(str(error).split())
  return UserError(
    f'config.reward: {spec} failed{where}{place}: {type(error).__name__}: '
    f'{text}; correct the function'
  )
