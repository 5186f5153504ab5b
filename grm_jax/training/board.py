"""TensorBoard's files: a view of a run, which goes on without it.

tensorboardX writes in a thread that ends at its file's first error, and
whoever adds to its queue later waits for good. So the file is opened here: what
it cannot hold is dropped, with one warning.
"""

import os
import pathlib
import time
from collections.abc import Callable
from typing import BinaryIO

import tensorboardX
from absl import logging
from tensorboardX import record_writer

_FLUSH_SECONDS = 10
_SCHEME = 'grm_board'


def writer(folder: str | os.PathLike, step: int) -> tensorboardX.SummaryWriter:
  """Writes a new file into a local folder, which is made if absent.

  Args:
    folder: where it is to be.
    step: updates that the run has already done; TensorBoard does not show what
      older files have of later ones.
  """
  record_writer.register_writer_factory(_SCHEME, _Factory())
  return tensorboardX.SummaryWriter(
    f'{_SCHEME}:{os.fspath(folder)}',
    purge_step=step + 1 if step else 0,
    flush_secs=_FLUSH_SECONDS,
    # Files are told apart by the second, and one that exists is replaced.
    filename_suffix=f'.{time.time_ns()}',
  )


class _Factory:
  """What tensorboardX asks for folders and files of our scheme."""

  def directory_check(self, path: str) -> None:
    pathlib.Path(_local(path)).mkdir(parents=True, exist_ok=True)

  def open(self, path: str) -> '_File':
    return _File(_local(path))


def _local(path):
  return path.removeprefix(f'{_SCHEME}:')


class _File:
  """A file that takes everything, and keeps it until the first error."""

  def __init__(self, path: str):
    self._path = path
    # Closed by `close`.
    self._file = open(path, 'wb')  # noqa: SIM115

  def write(self, data: bytes) -> None:
    self._try(lambda file: file.write(data))

  def flush(self) -> None:
    self._try(lambda file: file.flush())

  def close(self) -> None:
    self._try(lambda file: file.close())

  def _try(self, what: Callable[[BinaryIO], object]) -> None:
    if self._file is None:
      return
    try:
      what(self._file)
    except OSError as error:
      # After half a record nobody could read another one.
      self._file = None
      logging.warning(
        'cannot write %s: %s; TensorBoard will not show what comes now',
        self._path,
        error.strerror,
      )
