"""Files that grow, also in a bucket, whose objects cannot be appended to.

There a file, or a folder of them, grows in a local copy, and all of it is sent
every half a minute, when asked to, and at the end. What a killed process had
not sent is lost: a run goes on a little before where it was.
"""

import os
import pathlib
import shutil
import tempfile
import time

from etils import epath

from grm_jax.io import atomic_io

SECONDS = 30  # between two times that a copy is sent by itself


class GcsMirror:
  """Where to write what is to be at some path.

  Attributes:
    path: local; the path itself, or where its copy is.
  """

  def __init__(self, path: str | os.PathLike[str]):
    """Makes the folder that it is in, and copies a file that is there.

    Args:
      path: local or gs://, of a file or of a folder. One process.

    Raises:
      OSError: the folder cannot be made.
    """
    self._there, self._folder = None, None
    self.path = pathlib.Path(path)
    if '://' not in os.fspath(path):
      self.path.parent.mkdir(parents=True, exist_ok=True)
      return
    self._there = epath.Path(path)
    self._folder = pathlib.Path(tempfile.mkdtemp(prefix='grm_jax_'))
    self.path = self._folder / self._there.name
    self._sent, self._sizes = time.monotonic(), {}
    if self._there.exists() and not self._there.is_dir():
      self.path.write_bytes(self._there.read_bytes())

  def send(self, now: bool = True) -> None:
    """Makes the bucket hold what the copy does; nothing for local paths.

    Args:
      now: False only if the last time was SECONDS ago.
    """
    if self._there is None:
      return
    if not now and time.monotonic() - self._sent < SECONDS:
      return
    for file in self._files():
      size = file.stat().st_size
      if self._sizes.get(file) != size:
        below = file.relative_to(self.path).parts
        atomic_io.copy(file, self._there.joinpath(*below))
        self._sizes[file] = size
    self._sent = time.monotonic()

  def _files(self):
    if not self.path.is_dir():
      return [self.path] if self.path.exists() else []
    return [x for x in self.path.rglob('*') if x.is_file()]

  def close(self) -> None:
    """Sends what is left; the copy is gone then."""
    self.send()
    if self._folder is not None:
      shutil.rmtree(self._folder, ignore_errors=True)
