"""Downloads a file whose SHA-256 is known: the real pairs of `make demo-real`.

  python launch/demo/download.py URL SHA256 FILE

FILE appears whole or not at all. Nothing but the standard library is needed.
"""

import argparse
import hashlib
import http.client
import pathlib
import shutil
import sys
import urllib.request

_SECONDS = 60  # without a byte


def download(url: str, digest: str, path: pathlib.Path) -> None:
  """Puts what is at `url` into the file `path`.

  Raises:
    ValueError: it cannot be had, or is another file than was meant.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(f'{path.name}.part')
  try:
    with (
      urllib.request.urlopen(url, timeout=_SECONDS) as source,
      part.open('wb') as target,
    ):
      shutil.copyfileobj(source, target)
  except (OSError, ValueError, http.client.HTTPException) as error:
    raise ValueError(f'{url} cannot be read: {error}') from error
  with part.open('rb') as file:
    found = hashlib.file_digest(file, 'sha256').hexdigest()
  if found != digest:
    part.unlink()
    raise ValueError(f'{url} has SHA-256 {found}, not {digest}')
  part.replace(path)


def main() -> None:
  """Downloads what the command line says."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('url')
  parser.add_argument('sha256')
  parser.add_argument('file', type=pathlib.Path)
  arguments = parser.parse_args()
  try:
    download(arguments.url, arguments.sha256, arguments.file)
  except ValueError as error:
    sys.exit(f'error: {error}')


if __name__ == '__main__':
  main()
