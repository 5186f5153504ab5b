"""Makes files and folders unreadable for a test, also for root."""

import contextlib
import grp  # noqa: F401 (pathlib imports it when the user may not read it)
import os
import shutil
import tempfile

_NOBODY = 65534


@contextlib.contextmanager
def folder():
  """Yields a new folder that every user can enter, unlike tmp_path."""
  path = tempfile.mkdtemp()
  os.chmod(path, 0o755)
  try:
    yield path
  finally:
    shutil.rmtree(path)


@contextlib.contextmanager
def made(path):
  """Nobody may read `path` in the block; root runs it as another user."""
  mode = os.stat(path).st_mode
  os.chmod(path, 0)
  is_root = os.geteuid() == 0
  if is_root:
    os.seteuid(_NOBODY)
  try:
    yield
  finally:
    if is_root:
      os.seteuid(0)
    os.chmod(path, mode)
