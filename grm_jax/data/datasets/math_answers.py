r"""Compares final answers of mathematical solutions, with math-verify.

math-verify reads an answer as a SymPy expression, so that 0.5 equals
\frac{1}{2}. It gives up after 5 seconds, and the answer counts as wrong.
"""

from typing import Any

from grm_jax.errors import UserError

_BOX = r'\boxed'


def has_answer(solution: str) -> bool:
  """Returns whether a published solution has its answer in a box."""
  return _BOX in solution and bool(_parse(solution))


def is_correct(text: str, solution: str) -> bool:
  """Returns whether a text has the answer of a published solution.

  Args:
    text: a solution by a model. Its answer is in its last box; without a box,
      it is the last expression.
    solution: the published solution, see `has_answer`.

  Raises:
    UserError: math-verify is not installed.
  """
  return bool(_import().verify(_parse(solution), _parse(text)))


def _parse(text: str) -> list[Any]:
  """Returns the forms of the answer of a text; [] if there is none."""
  # math-verify would read several boxes as one set of answers.
  start = max(0, text.rfind(_BOX))
  library = _import()
  latex = library.LatexExtractionConfig(boxed_match_priority=0)
  numbers = library.ExprExtractionConfig()
  return library.parse(text[start:], [latex, numbers])


def _import() -> Any:
  try:
    import math_verify
  except ImportError as error:
    raise UserError(
      f'answers without is_correct need {error.name}; pip install '
      "'math-verify==0.9.0'"
    ) from error
  return math_verify
