"""What Orbax and TensorStore print beside our own messages, kept quiet."""

import functools
import sys

from absl import logging


def silence_log() -> None:
  """Drops some thirty INFO lines that Orbax logs a save; warnings pass."""
  logging.get_absl_logger().addFilter(
    lambda record: (
      record.levelno > logging.converter.STANDARD_INFO
      or '/orbax/checkpoint/' not in record.pathname
    )
  )


@functools.cache
def silence_late_reads() -> None:
  """Keeps what comes back after a failed read from printing tracebacks.

  When one of the reads fails, Orbax closes the event loop of all of them, and
  TensorStore's threads print an error for each that ends later; some do so in
  the middle of our own message.
  """
  before = sys.unraisablehook

  def hook(what):
    if str(what.exc_value) != 'Event loop is closed':
      before(what)

  sys.unraisablehook = hook
