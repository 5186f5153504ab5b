"""Checks messages by the names and values in them, not by their sentences.

A message can be an error, a log line or a line that a run prints. Tests check
that it contains the config key, path, row or values that a reader needs, so
that its wording can change.
"""

import re


def naming(*words):
  """Returns a pattern for `match=` that requires all words as whole words.

  `config.k` is not in 'config.k_meta' or 'config.k.x', and 2 is not in '12' or
  '2.5'. The pattern can end a longer one: the words then follow its beginning.
  """
  return ''.join(f'(?=(?s:.*){_whole_word(str(word))})' for word in words)


def in_row(file, number, *words):
  """Returns a pattern: a file, then the number of a row of it, then words."""
  return rf'{re.escape(str(file))}\D+{number}\b{naming(*words)}'


def names(message, *words):
  """Returns whether a message contains all words; see `naming`."""
  return bool(re.match(naming(*words), str(message)))


def lines_with(text, *words):
  """Returns the lines of a text that contain all words."""
  return [line for line in text.splitlines() if names(line, *words)]


def setting(key, value):
  """Returns the words of a message about a config leaf: its key and value."""
  return f'config.{key}', value


def _whole_word(word):
  # A digit must not follow '-' or '.', as in pytest's folder 'pytest-3'.
  before = r'(?<![\w.-])' if word[0].isdigit() else r'(?<!\w)'
  return rf'{before}{re.escape(word)}(?!\w|\.\w)'
