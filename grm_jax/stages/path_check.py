"""Checks that a run does not write over its own inputs."""

import os
from collections.abc import Iterable, Mapping

from grm_jax.data import source_list
from grm_jax.errors import UserError
from grm_jax.stages import input_identity


def check_distinct(reads: Mapping[str, str], writes: Iterable[str]) -> None:
  """Checks that no input is a file or folder that the run writes.

  Links and other spellings of the same path are found.

  Args:
    reads: paths, data sources, or several of them separated by commas, by
      config key.
    writes: the files and folders that the run writes.

  Raises:
    UserError: an input would be overwritten.
  """
  written = {_canonical(path): path for path in writes}
  for key, value in reads.items():
    for path in _paths(value):
      if _canonical(path) in written:
        raise UserError(
          f'config.{key}={value} is {path}, which this run would overwrite; '
          'choose another path for the output or --workdir'
        )


def is_same(path: str, other_path: str) -> bool:
  """Returns whether two spellings name the same file or folder."""
  return _canonical(path) == _canonical(other_path)


def _paths(value: str) -> list[str]:
  """Returns the folders and files that an input names."""
  paths = []
  for part in value.split(','):
    spec = source_list.parse_one(part.strip()).spec
    if '://' in spec:
      # A prefix such as `judged:` can stand before gs://. Nothing is listed.
      start = spec.rfind(':', 0, spec.rfind('://')) + 1
      paths.append(spec[start:].partition('#')[0])
    elif os.path.isdir(spec):
      paths += [spec, *input_identity.files_of(spec)]
    elif spec:
      paths += input_identity.files_of(spec)
  return paths


def _canonical(path: str) -> tuple[int, int] | str:
  """Returns what identifies a file: its inode, or its path without links."""
  path = os.fspath(path)
  if '://' in path:
    scheme, _, rest = path.partition('://')
    return f'{scheme}://{os.path.normpath(rest)}'
  try:
    status = os.stat(path)
    return status.st_dev, status.st_ino
  except OSError:
    return os.path.realpath(path)
