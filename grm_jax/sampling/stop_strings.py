"""Where a generation meets one of its stop strings."""

from collections.abc import Callable, Sequence

Detokenize = Callable[[Sequence[int]], str]


def first_stop(
  tokens: Sequence[int],
  checked: int,
  strings: Sequence[str],
  detokenize: Detokenize,
) -> int | None:
  """How many tokens it takes until their text has one of the strings.

  Args:
    tokens: of a generation so far.
    checked: tokens known to be without one.
    strings: not empty.
    detokenize: ids to text.

  Returns:
    The smallest such number, or None.
  """

  def found(n):
    text = detokenize(tokens[:n])
    return any(string in text for string in strings)

  low, high = checked, len(tokens)
  if low >= high or not found(high):
    return None
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (low, middle) if found(middle) else (middle, high)
  return high


def cut_text(text: str, strings: Sequence[str]) -> str:
  """The text up to and with the string that ends first, if there is one."""
  ends = [text.find(s) + len(s) for s in strings if s in text]
  return text[: min(ends)] if ends else text
