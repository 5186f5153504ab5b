"""Checks that a path can be read as a file, before anything reads it."""

import os
import stat

from grm_jax.errors import UserError

_KINDS = (
  (stat.S_ISFIFO, 'a pipe'),
  (stat.S_ISSOCK, 'a socket'),
  (stat.S_ISCHR, 'a device'),
  (stat.S_ISBLK, 'a device'),
)


def check(path: str | os.PathLike[str], key: str = '') -> None:
  """Checks that a path is not a pipe, a socket or a device.

  Stages read a file more than once, which a pipe does not allow, and devices
  such as /dev/zero have no end. A missing path and a folder pass: opening them
  raises the error. A gs:// path passes too.

  Args:
    path: local or gs://.
    key: config key that the path comes from, for the message.

  Raises:
    UserError: the path is one of these.
  """
  try:
    mode = os.stat(path).st_mode
  except (OSError, ValueError):  # ValueError: a NUL character in the path
    return
  for is_kind, kind in _KINDS:
    if is_kind(mode):
      name = f'{key}={os.fspath(path)}' if key else os.fspath(path)
      raise UserError(
        f'cannot read {name}: it is {kind}, not a file; give the path of a '
        'regular file, and write the output of a pipe into one first'
      )
