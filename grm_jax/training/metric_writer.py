"""Writes the metrics of a run to metrics.jsonl and TensorBoard.

Row n holds the metrics of the n-th update; a checkpoint of step n is the state
after n updates. metrics.jsonl is the record: a row is in the file when
`MetricWriter.write` returns, and in a bucket when `MetricWriter.commit` returns
(see io/gcs_mirror.py). TensorBoard files are a view of it and may lack the last
seconds of a killed run. One process writes.
"""

import dataclasses
import hashlib
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
from etils import epath

from grm_jax.errors import NonFiniteError, UserError
from grm_jax.io import atomic_io
from grm_jax.io.gcs_mirror import GcsMirror

FILE = 'metrics.jsonl'
POSITIONS = 'metrics.positions.json'  # length and digest at each checkpoint
TENSORBOARD = 'tensorboard'
_SCHEME = 'grm_tensorboard'  # of paths that _TensorBoardFile writes
_FLUSH_SECONDS = 10
_FINITE = ('loss', 'grad_norm', 'param_norm')


@dataclasses.dataclass(frozen=True)
class _Position:
  """Length and SHA-256 of the rows up to a checkpoint."""

  bytes: int = 0
  sha256: str = ''


class MetricWriter:
  """Writes rows, texts and histograms; use as a context manager."""

  def __init__(
    self,
    workdir: str | os.PathLike[str],
    step: int = 0,
    active: bool = True,
  ):
    """Opens WORKDIR/metrics.jsonl and WORKDIR/tensorboard.

    Args:
      workdir: a folder, local or gs://; created if it does not exist.
      step: number of updates that the run has done. What a killed run wrote
        after `commit(step)` is removed. At 0 the file is emptied.
      active: whether this process writes. Otherwise all methods do nothing.

    Raises:
      UserError: workdir cannot be written, or the rows up to `commit(step)`
        were changed.
    """
    self._file: BinaryIO | None = None
    self._board: Any = None
    self._num_bytes, self._sha256 = 0, hashlib.sha256()
    if not active:
      return
    with atomic_io.wrap_os_errors(workdir):
      rows = GcsMirror(os.path.join(workdir, FILE))
      board = GcsMirror(os.path.join(workdir, TENSORBOARD))
    self._rows_mirror, self._mirrors = rows, (rows, board)
    self._positions_path = os.path.join(workdir, POSITIONS)
    self._positions: dict[int, _Position] = {}
    if step:
      stored = _read_positions(self._positions_path)
      # Later steps are those of checkpoints that were deleted.
      self._positions = {n: x for n, x in stored.items() if n <= step}
      self._count(_read_content(rows.path, self._positions_path, stored, step))
    with atomic_io.wrap_os_errors(rows.path):
      self._file = rows.path.open('ab')
      self._file.truncate(self._num_bytes)
    with atomic_io.wrap_os_errors(board.path):
      self._board = _open_tensorboard(board.path, step)

  def _count(self, data: bytes) -> None:
    self._num_bytes += len(data)
    self._sha256.update(data)

  def write(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Appends a row, which is in metrics.jsonl before this returns.

    Args:
      step: number of the update.
      scalars: Python numbers or scalar arrays by name. Waits for arrays that
        are still being computed. None values are omitted. JSON has no NaN or
        infinity: they become the strings 'nan', 'inf' and '-inf', which
        float() accepts.

    Raises:
      UserError: the row cannot be written.
    """
    if self._file is None:
      return
    numbers = _to_numbers(scalars)
    row = {'step': step, **{name: _to_json(x) for name, x in numbers.items()}}
    line = json.dumps(row, allow_nan=False).encode() + b'\n'
    with atomic_io.wrap_os_errors(self._rows_mirror.path):
      self._file.write(line)
      # A process that is killed loses its own buffer, but not the kernel's.
      self._file.flush()
    self._count(line)
    for name, x in numbers.items():
      self._board.add_scalar(name, x, step)
    for mirror in self._mirrors:
      mirror.upload_if_due()

  def text(self, step: int, name: str, text: str) -> None:
    """Adds a text, such as a generation, without Markdown formatting."""
    if self._board is not None:
      # Markdown shows indented lines verbatim.
      code = ''.join(f'    {line}\n' for line in text.splitlines())
      self._board.add_text(name, code, step)

  def histogram(self, step: int, name: str, values: Any) -> None:
    """Adds a histogram of `values`, numbers of any shape."""
    if self._board is not None:
      self._board.add_histogram(name, np.asarray(values), step)

  def commit(self, step: int) -> None:
    """Makes all rows durable; call it before the checkpoint of `step`.

    They are on the disk, or in the bucket if workdir is in one. A run that
    resumes from this checkpoint compares them with POSITIONS.

    Args:
      step: number of the checkpoint.
    """
    if self._file is None:
      return
    with atomic_io.wrap_os_errors(self._rows_mirror.path):
      os.fsync(self._file.fileno())
    self._rows_mirror.upload()
    digest = self._sha256.hexdigest()
    self._positions[step] = _Position(self._num_bytes, digest)
    positions = {n: dataclasses.asdict(x) for n, x in self._positions.items()}
    atomic_io.write_file(
      self._positions_path, json.dumps(positions, indent=2) + '\n'
    )

  def close(self) -> None:
    """Writes and uploads everything pending."""
    if self._file is not None:
      with atomic_io.wrap_os_errors(self._rows_mirror.path):
        self._file.close()
        content = self._rows_mirror.path.read_bytes()[: self._num_bytes]
      if hashlib.sha256(content).digest() != self._sha256.digest():
        logging.warning(
          '%s was changed by another program while this run wrote it',
          self._rows_mirror.path,
        )
      self._board.close()
      for mirror in self._mirrors:
        mirror.close()

  def __enter__(self) -> 'MetricWriter':
    return self

  def __exit__(self, kind, *unused) -> None:
    try:
      self.close()
    except UserError:
      # Do not replace the error that already ends the run.
      if kind is None:
        raise


def read_rows(
  workdir: str | os.PathLike[str], step: int | None = None
) -> list[dict[str, Any]]:
  """Returns the rows up to a checkpoint; [] without the file.

  Args:
    workdir: folder of the run.
    step: number of the checkpoint; None for the last one.

  Raises:
    UserError: the rows were changed.
  """
  path, positions_path = (os.path.join(workdir, x) for x in (FILE, POSITIONS))
  positions = _read_positions(positions_path)
  step = max(positions, default=0) if step is None else step
  content = _read_content(epath.Path(path), positions_path, positions, step)
  return [json.loads(line) for line in content.splitlines()]


def _read_content(
  path: Any, positions_path: str, positions: Mapping[int, _Position], step: int
) -> bytes:
  """Returns the rows up to a checkpoint as bytes, unless they were changed."""
  if not path.exists():
    logging.warning('%s is missing; it will lack the earlier rows', path)
    return b''
  position = positions.get(step, _Position())
  content = path.read_bytes()[: position.bytes]
  if _Position(len(content), hashlib.sha256(content).hexdigest()) != position:
    raise UserError(
      f'{path} does not have the content that {positions_path} describes; '
      'restore both, or delete the first one to continue without the earlier '
      'rows'
    )
  return content


def check_finite(
  metrics: Mapping[str, Any],
  ids: Sequence[str],
  workdir: str | os.PathLike[str],
  step: int,
) -> None:
  """Stops the run if its loss or gradient is not finite.

  All processes must call it.

  Args:
    metrics: metrics of the update; contains `loss`, `grad_norm` and
      `param_norm` (after the update).
    ids: ids of the examples in the batch.
    workdir: nonfinite_STEP.json with step, metrics and ids is written here.
    step: number of the update.

  Raises:
    NonFiniteError: one of the three is NaN or infinite.
  """
  numbers = _to_numbers(metrics)
  non_finite = [name for name in _FINITE if not math.isfinite(numbers[name])]
  if not non_finite:
    return
  path = os.path.join(workdir, f'nonfinite_{step}.json')
  values = {name: _to_json(x) for name, x in numbers.items()}
  report = {'step': step, 'metrics': values, 'ids': list(ids)}
  atomic_io.write_file(path, json.dumps(report, indent=2) + '\n')
  problem = ' and '.join(f'{name} is {values[name]}' for name in non_finite)
  raise NonFiniteError(
    f'step {step}: {problem}; inspect the examples, whose ids are in {path}, '
    'or lower config.optimizer.learning_rate'
  )


def _open_tensorboard(folder: pathlib.Path, step: int) -> Any:
  """Opens a tensorboardX.SummaryWriter with a new file in `folder`.

  tensorboardX writes in a thread that ends at the first error of its file, and
  then a caller that adds to its queue waits forever. The file is therefore a
  `_TensorBoardFile`, which drops data after an error and warns once.

  Args:
    folder: a local path; created if it does not exist.
    step: number of updates that the run has done. TensorBoard hides data of
      later steps in older files.
  """
  # tensorboardX imports torch if it is installed, so import it on demand.
  import tensorboardX
  from tensorboardX import record_writer

  record_writer.register_writer_factory(_SCHEME, _TensorBoardFactory())
  return tensorboardX.SummaryWriter(
    f'{_SCHEME}:{folder}',
    purge_step=step + 1 if step else 0,
    flush_secs=_FLUSH_SECONDS,
    # File names differ by the second only, and an existing file is replaced.
    filename_suffix=f'.{time.time_ns()}',
  )


def _read_positions(path: str) -> dict[int, _Position]:
  """Returns the content of POSITIONS by step; {} if missing or damaged."""
  try:
    positions = json.loads(epath.Path(path).read_text())
    return {
      int(step): _Position(int(x['bytes']), x['sha256'])
      for step, x in positions.items()
    }
  except (OSError, ValueError, TypeError, AttributeError, KeyError):
    return {}


class _TensorBoardFactory:
  """Creates the folders and files of paths with our scheme."""

  def directory_check(self, path: str) -> None:
    """Creates the folder, as tensorboardX requires of a factory."""
    pathlib.Path(_local_path(path)).mkdir(parents=True, exist_ok=True)

  def open(self, path: str) -> '_TensorBoardFile':
    """Opens a file at a path with our scheme."""
    return _TensorBoardFile(_local_path(path))


def _local_path(path: str) -> str:
  return path.removeprefix(f'{_SCHEME}:')


class _TensorBoardFile:
  """A file that writes until its first error and drops the rest."""

  def __init__(self, path: str):
    self._path = path
    # Closed by `close`.
    self._file: BinaryIO | None = open(path, 'wb')  # noqa: SIM115

  def write(self, data: bytes) -> None:
    self._try(lambda file: file.write(data))

  def flush(self) -> None:
    self._try(lambda file: file.flush())

  def close(self) -> None:
    self._try(lambda file: file.close())

  def _try(self, operation: Callable[[BinaryIO], object]) -> None:
    if self._file is None:
      return
    try:
      operation(self._file)
    except OSError as error:
      # A record after an incomplete one could not be read.
      self._file = None
      logging.warning(
        'cannot write %s: %s; TensorBoard will not show later data',
        self._path,
        error.strerror,
      )


def _to_numbers(scalars: Mapping[str, Any]) -> dict[str, int | float]:
  """Returns Python numbers; fetches all arrays from the devices at once."""
  values = {name: x for name, x in scalars.items() if x is not None}
  values = jax.device_get(values)
  return {n: x if isinstance(x, int) else float(x) for n, x in values.items()}


def _to_json(x: int | float) -> int | float | str:
  return x if math.isfinite(x) else str(x)
