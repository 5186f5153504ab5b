"""Standard output whose errors do not end a run before its work is saved."""

import io
import os
from typing import TextIO

from grm_jax.errors import UserError


class StandardOutput(io.TextIOBase):
  """Writes to a stream until an error, and then to nowhere.

  A full disk or a closed pipe, as after `| head`, must not end hours of work:
  `check` reports it once the work is saved.
  """

  def __init__(self, stream: TextIO | None):
    """Wraps `stream`; None, for a closed descriptor, writes to nowhere."""
    if isinstance(stream, io.TextIOWrapper):
      # An id can have characters that the terminal cannot show.
      stream.reconfigure(errors='backslashreplace')
    self._stream, self._error = stream, ''

  def write(self, text: str) -> int:
    """Writes `text`; an error is kept for `check`."""
    try:
      if self._stream is not None:
        self._stream.write(text)
    except OSError as error:
      self._give_up(error)
    return len(text)

  def flush(self) -> None:
    """Flushes the stream; an error is kept for `check`."""
    try:
      if self._stream is not None:
        self._stream.flush()
    except OSError as error:
      self._give_up(error)

  def isatty(self) -> bool:
    """Returns whether the stream is a terminal."""
    return self._stream is not None and self._stream.isatty()

  def fileno(self) -> int:
    """Returns the descriptor of the stream."""
    if self._stream is None:
      raise OSError('standard output is closed')
    return self._stream.fileno()

  def check(
    self, note: str = 'the results are in the files of this run; '
  ) -> None:
    """Raises UserError, with the note, if something could not be written."""
    self.flush()
    if self._error:
      raise UserError(
        f'standard output cannot be written ({self._error}); {note}send '
        'the output to another place'
      )

  def _give_up(self, error: OSError) -> None:
    self._error = error.strerror or str(error)
    # Python would report the rest of its buffer at the end of the process.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, self.fileno())
    os.close(null)
