"""What tests look for in the lines that stages print, in one place.

A line is found by one of these words and by the numbers or paths beside it;
the rest of its wording is free.
"""

import re

STOPPED = 'stopped'  # a run that was asked to end, with its last step
INTERRUPTED = 'stop'  # a stage of a whole run in which it was asked to end
SKIPPED = 'finished'  # a stage of a whole run that had its end before
RANDOM = 'random'  # that parameters are
HELD_OUT = 'accuracy'  # a measurement of held-out examples while training
DIFFERENCE = 'difference'  # between outputs, after a conversion
ADDRESS = re.compile(r'http://[\w.-]+:\d+')  # of a service that is ready
# One process of several that ends because another one has.
LEFT_ALONE = re.compile('several|task died')
# The number of a stage of a whole run, before its title.
HEAD = re.compile(r'\[(\d)/(\d)\]')


def heads(text):
  """The lines that begin a stage of a whole run, or skip it."""
  return [line for line in text.splitlines() if HEAD.match(line)]
