"""Finds the stop strings of a generation."""

from collections.abc import Callable, Sequence

Detokenize = Callable[[Sequence[int]], str]


def first_stop(
  tokens: Sequence[int],
  num_checked: int,
  stop: Sequence[str],
  detokenize: Detokenize,
) -> int | None:
  """Returns the smallest number of tokens whose text has a stop string.

  Args:
    tokens: token ids of a generation so far.
    num_checked: leading tokens that are known to have no stop string.
    stop: stop strings, none of them empty.
    detokenize: token ids to text.

  Returns:
    The number of tokens, or None if there is no stop string.
  """

  def contains_stop(length):
    text = detokenize(tokens[:length])
    return any(string in text for string in stop)

  low, high = num_checked, len(tokens)
  if low >= high or not contains_stop(high):
    return None
  # Bisection: the first `low` tokens have no stop string, the first `high` do.
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (low, middle) if contains_stop(middle) else (middle, high)
  return high


def cut_text(text: str, stop: Sequence[str]) -> str:
  """Cuts a text after the stop string that ends first, if there is one."""
  ends = [text.find(x) + len(x) for x in stop if x in text]
  return text[: min(ends)] if ends else text
