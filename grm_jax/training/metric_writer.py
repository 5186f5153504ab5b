"""Numbers of a run: metrics.jsonl and TensorBoard, written by one process.

A step has one unit everywhere: row n is of the n-th update of the run, and
a checkpoint of step n holds n updates. metrics.jsonl is the record: each row
is in the file when `Writer.write` returns; in a bucket, when `Writer.send`
does, see io/gcs_mirror.py. TensorBoard's files are a view of it and may lack
the last seconds of a killed run.
"""

import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

import jax
import numpy as np
from absl import logging

from grm_jax.errors import NonFiniteError, UserError
from grm_jax.io import atomic_io
from grm_jax.io.gcs_mirror import GcsMirror

FILE = 'metrics.jsonl'
BOARD = 'tensorboard'
_SCHEME = 'grm_board'
_FLUSH_SECONDS = 10
_FINITE = ('loss', 'grad_norm', 'param_norm')


class MetricWriter:
  """Writes rows, texts and histograms of steps; use as a context manager."""

  def __init__(
    self, workdir: str | os.PathLike[str], step: int = 0, active: bool = True
  ):
    """Opens WORKDIR/metrics.jsonl and WORKDIR/tensorboard.

    Args:
      workdir: a folder, local or gs://; made if absent.
      step: updates that the run has already done. Rows of later steps, left
        by a run that was killed after its last checkpoint, are removed, and
        so is half a line. At 0 the file begins anew. So write and send the row
        of a step before its checkpoint, or a run that goes on will lack it.
      active: whether this process writes; others do nothing at all.

    Raises:
      UserError: workdir cannot be written.
    """
    self._file = self._board = None
    if not active:
      return
    with atomic_io.wrap_os_errors(workdir):
      rows = GcsMirror(os.path.join(workdir, FILE))
      board = GcsMirror(os.path.join(workdir, BOARD))
    self._mirrors = rows, board
    _keep_until(rows.path, step)
    self._file = rows.path.open('ab')
    with atomic_io.wrap_os_errors(board.path):
      self._board = _open_board(board.path, step)

  def write(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Adds a row; it is in metrics.jsonl before this returns.

    Args:
      step: what the row is of.
      scalars: by name; Python numbers or arrays of no dimension, waited
        for if they are still being computed. What is None is left out. JSON has
        no NaN or infinity: they are the strings 'nan', 'inf' and '-inf',
        which float() reads like numbers.

    Raises:
      UserError: the row cannot be written.
    """
    if self._file is None:
      return
    numbers = _numbers(scalars)
    row = {'step': step, **{name: _json(x) for name, x in numbers.items()}}
    with atomic_io.wrap_os_errors(self._mirrors[0].path):
      self._file.write(json.dumps(row, allow_nan=False).encode() + b'\n')
      self._file.flush()
    for name, x in numbers.items():
      self._board.add_scalar(name, x, step)
    for mirror in self._mirrors:
      mirror.send(now=False)

  def text(self, step: int, name: str, text: str) -> None:
    """Shows a text, such as a generation, as it is: not as Markdown."""
    if self._board is not None:
      # Indented lines are code to Markdown.
      code = ''.join(f'    {line}\n' for line in text.splitlines())
      self._board.add_text(name, code, step)

  def histogram(self, step: int, name: str, values: Any) -> None:
    """Shows how `values`, numbers of any shape, are distributed."""
    if self._board is not None:
      self._board.add_histogram(name, np.asarray(values), step)

  def send(self) -> None:
    """All rows so far are where they are to be when this returns."""
    if self._file is not None:
      self._mirrors[0].send()

  def close(self) -> None:
    """Writes what is pending."""
    if self._file is not None:
      with atomic_io.wrap_os_errors(self._mirrors[0].path):
        self._file.close()
      self._board.close()
      for mirror in self._mirrors:
        mirror.close()

  def __enter__(self) -> 'MetricWriter':
    return self

  def __exit__(self, kind, *unused) -> None:
    try:
      self.close()
    except UserError:
      # What already ends the run is the error to tell.
      if kind is None:
        raise


def check_finite(
  metrics: Mapping[str, Any],
  ids: Sequence[str],
  workdir: str | os.PathLike[str],
  step: int,
) -> None:
  """Stops the run if its loss or gradient is not finite. All processes call.

  Args:
    metrics: of the step; has `loss`, `grad_norm` and `param_norm`, that of
      the parameters after it.
    ids: of the examples in the batch.
    workdir: gets nonfinite_STEP.json with step, metrics and ids.
    step: the update that the metrics are of.

  Raises:
    NonFiniteError: one of them is NaN or infinite.
  """
  numbers = _numbers(metrics)
  wrong = [name for name in _FINITE if not math.isfinite(numbers[name])]
  if not wrong:
    return
  path = os.path.join(workdir, f'nonfinite_{step}.json')
  shown = {name: _json(x) for name, x in numbers.items()}
  report = {'step': step, 'metrics': shown, 'ids': list(ids)}
  atomic_io.write_whole(path, json.dumps(report, indent=2) + '\n')
  what = ' and '.join(f'{name} is {shown[name]}' for name in wrong)
  raise NonFiniteError(
    f'step {step}: {what}; the ids of its examples are in {path}. Look at '
    'them, or lower config.optimizer.learning_rate'
  )


def _open_board(folder: pathlib.Path, step: int):
  """A tensorboardX.SummaryWriter of a new file in `folder`.

  tensorboardX writes in a thread that ends at the first error of its file, and
  a caller that adds to its queue later waits forever. The file is therefore
  opened here: after an error it drops what it gets, with one warning.

  Args:
    folder: a local path; made if absent.
    step: updates that the run has already done; TensorBoard does not show what
      older files have of later ones.
  """
  # It imports torch where there is one: not before it is needed.
  import tensorboardX
  from tensorboardX import record_writer

  record_writer.register_writer_factory(_SCHEME, _BoardFactory())
  return tensorboardX.SummaryWriter(
    f'{_SCHEME}:{folder}',
    purge_step=step + 1 if step else 0,
    flush_secs=_FLUSH_SECONDS,
    # Files are told apart by the second, and one that exists is replaced.
    filename_suffix=f'.{time.time_ns()}',
  )


class _BoardFactory:
  """Makes the folders and files that tensorboardX asks for by our scheme."""

  def directory_check(self, path: str) -> None:
    pathlib.Path(_local(path)).mkdir(parents=True, exist_ok=True)

  def open(self, path: str) -> '_BoardFile':
    return _BoardFile(_local(path))


def _local(path):
  return path.removeprefix(f'{_SCHEME}:')


class _BoardFile:
  """A file that writes until its first error and drops the rest."""

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

  def _try(self, do: Callable[[BinaryIO], object]) -> None:
    if self._file is None:
      return
    try:
      do(self._file)
    except OSError as error:
      # After half a record nobody could read another one.
      self._file = None
      logging.warning(
        'cannot write %s: %s; TensorBoard will not show what comes now',
        self._path,
        error.strerror,
      )


def _keep_until(path: pathlib.Path, step: int) -> None:
  """Makes the file hold the whole rows of steps 1..step; none at step 0."""
  old = path.read_bytes() if path.exists() else b''
  lines = old.splitlines(keepends=True) if step else []
  with atomic_io.atomic_write(path) as file:
    file.writelines(line for line in lines if _is_kept(line, path, step))


def _is_kept(line, path, step):
  """Whether the line is whole and of a step up to `step`."""
  if not line.endswith(b'\n'):
    return False
  try:
    return json.loads(line)['step'] <= step
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(
      f'{path} has a line that is no row of metrics: {line[:60]!r}; delete the '
      'file or choose another --workdir'
    ) from error


def _numbers(scalars):
  """Floats (ints stay ints), fetched from the devices at once."""
  found = {name: x for name, x in scalars.items() if x is not None}
  found = jax.device_get(found)
  return {n: x if isinstance(x, int) else float(x) for n, x in found.items()}


def _json(x):
  return x if math.isfinite(x) else str(x)
