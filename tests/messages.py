"""What tests ask of messages: the names and values in them, never sentences.

A message may be an error, a log line or a line that a run prints. Tests check
that it names the config key, the path, the row or the values that a reader
needs, so that its wording is free.
"""

import re


def naming(*words):
  """A pattern for `match=` of pytest.raises: text with all words, as wholes.

  `config.k` is not in 'config.k_meta' and not in 'config.k.x', and 2 is
  neither in '12' nor in '2.5'. It may end a longer pattern: then the words
  follow what the pattern begins with.
  """
  return ''.join(f'(?=(?s:.*){_whole(str(word))})' for word in words)


def in_row(file, number, *words):
  """A pattern: a file, then the number of a row or line of it, then words."""
  return rf'{re.escape(str(file))}\D+{number}\b{naming(*words)}'


def names(message, *words):
  """Whether a message has all words, as wholes; see `naming`."""
  return bool(re.match(naming(*words), str(message)))


def lines_with(text, *words):
  """The lines of a text that have all words."""
  return [line for line in text.splitlines() if names(line, *words)]


def setting(key, value):
  """The words of a message about one setting: its config key and its value."""
  return f'config.{key}', value


def _whole(word):
  # Not a part of 'pytest-3', as folders of tests are named.
  before = r'(?<![\w.-])' if word[0].isdigit() else r'(?<!\w)'
  return rf'{before}{re.escape(word)}(?!\w|\.\w)'
