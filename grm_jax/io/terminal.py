"""Text that a terminal, a log file or an error message can show."""


def printable(text: str) -> str:
  """Returns a text with control characters escaped, in one line.

  Ids, paths and keys come from files and requests. Without this, an escape
  sequence in one of them would change the reader's terminal, and a line break
  would forge a line of the log.
  """
  if text.isprintable():
    return text
  return ''.join(
    x if x.isprintable() else x.encode('unicode_escape').decode() for x in text
  )


def short(text: str, max_chars: int = 300) -> str:
  """Returns a printable text; the middle of a long one is left out."""
  if len(text) > max_chars:
    tail = max_chars // 3
    text = f'{text[: max_chars - tail - 5]} ... {text[-tail:]}'
  return printable(text)
