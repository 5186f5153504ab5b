"""Words that tests look for in the lines that stages print.

Tests find a line by one of these words and by the numbers or paths in it. The
rest of the wording is free.
"""

import re

STOPPED = 'stopped'  # a preempted run, with its last step
INTERRUPTED = 'interrupted'  # the stage of a pipeline in which it was preempted
SKIPPED = 'finished'  # a stage of a pipeline that had finished before
RANDOM = 'random'  # the parameters are random
HELD_OUT = 'accuracy'  # an evaluation during training
DIFFERENCE = 'difference'  # between outputs, after a conversion
ADDRESS = re.compile(r'http://[\w.-]+:\d+')  # of a service that is ready
# A process that ends because another one of the run has ended.
LEFT_ALONE = re.compile(
  'multi-process run failed|another process of this run has ended|task died'
)
# The number of a pipeline's stage, before its title.
HEAD = re.compile(r'\[(\d)/(\d)\]')


def heads(text):
  """Returns the lines that start or skip a stage of a pipeline."""
  return [line for line in text.splitlines() if HEAD.match(line)]
