"""Downloads a file and verifies its SHA-256; used by `make demo-real`.

  python launch/demo/download.py URL SHA256 FILE

FILE is complete or absent. The script needs only the standard library.
"""

import argparse
import hashlib
import http.client
import pathlib
import shutil
import sys
import urllib.request

_TIMEOUT_S = 60  # without any received data


def download(url: str, digest: str, path: pathlib.Path) -> None:
  """Downloads `url` to `path`.

  Args:
    url: source.
    digest: expected SHA-256 in hexadecimal.
    path: target, which is replaced atomically.

  Raises:
    ValueError: the download failed, or the file has another digest.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  partial_path = path.with_name(f'{path.name}.part')
  try:
    with (
      urllib.request.urlopen(url, timeout=_TIMEOUT_S) as source,
      partial_path.open('wb') as target,
    ):
      shutil.copyfileobj(source, target)
  except (OSError, ValueError, http.client.HTTPException) as error:
    raise ValueError(
      f'{url} cannot be downloaded ({error}); check the URL and the network'
    ) from error
  with partial_path.open('rb') as file:
    actual = hashlib.file_digest(file, 'sha256').hexdigest()
  if actual != digest:
    partial_path.unlink()
    raise ValueError(
      f'{url} has SHA-256 {actual} instead of {digest}; check the URL and the '
      'digest'
    )
  partial_path.replace(path)


def main() -> None:
  """Parses the command line and downloads the file."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('url')
  parser.add_argument('sha256')
  parser.add_argument('file', type=pathlib.Path)
  options = parser.parse_args()
  try:
    download(options.url, options.sha256, options.file)
  except ValueError as error:
    sys.exit(f'error: {error}')


if __name__ == '__main__':
  main()
