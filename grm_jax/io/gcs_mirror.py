"""Local copies of growing files whose final place is a bucket.

Objects in a bucket cannot be appended to. A file, or a folder of files, with a
gs:// path therefore grows in a local copy, which is uploaded every half a
minute, on request, and at the end. If the process is killed, the changes since
the last upload are lost, and the resumed run continues from that upload.
"""

import os
import pathlib
import shutil
import tempfile
import time

from etils import epath

from grm_jax.io import atomic_io

UPLOAD_INTERVAL_S = 30


class GcsMirror:
  """A local path for writing, mirrored to a bucket if the target is gs://.

  Attributes:
    path: the local path to write to: the target itself, or its local copy.
  """

  path: pathlib.Path

  def __init__(self, path: str | os.PathLike[str]):
    """Makes the parent folder; downloads a file that exists in the bucket.

    Args:
      path: target file or folder, local or gs://. Only one process may mirror
        it.

    Raises:
      OSError: the folder cannot be made.
    """
    self._target: epath.Path | None = None
    if '://' not in os.fspath(path):
      self.path = pathlib.Path(path)
      self.path.parent.mkdir(parents=True, exist_ok=True)
      return
    self._target = epath.Path(path)
    self._temp_folder = pathlib.Path(tempfile.mkdtemp(prefix='grm_jax_'))
    self.path = self._temp_folder / self._target.name
    self._uploaded_at = time.monotonic()
    self._uploaded_sizes: dict[pathlib.Path, int] = {}
    if self._target.exists() and not self._target.is_dir():
      self.path.write_bytes(self._target.read_bytes())

  def upload(self) -> None:
    """Copies every file that has grown to the bucket; no-op for local paths."""
    if self._target is None:
      return
    for file in self._files():
      # The files are append-only: an equal size means equal content.
      size = file.stat().st_size
      if self._uploaded_sizes.get(file) != size:
        relative_parts = file.relative_to(self.path).parts
        atomic_io.copy(file, self._target.joinpath(*relative_parts))
        self._uploaded_sizes[file] = size
    self._uploaded_at = time.monotonic()

  def upload_if_due(self) -> None:
    """Uploads if the last upload was UPLOAD_INTERVAL_S ago or earlier."""
    if self._target is None:
      return
    if time.monotonic() - self._uploaded_at >= UPLOAD_INTERVAL_S:
      self.upload()

  def _files(self) -> list[pathlib.Path]:
    if not self.path.is_dir():
      return [self.path] if self.path.exists() else []
    return [x for x in self.path.rglob('*') if x.is_file()]

  def close(self) -> None:
    """Uploads what is left and deletes the local copy of a gs:// target."""
    if self._target is not None:
      self.upload()
      shutil.rmtree(self._temp_folder, ignore_errors=True)
