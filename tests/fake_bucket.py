"""A gs:// bucket in memory, for etils and, over HTTP, for TensorStore."""

import contextlib
import http.server
import json
import re
import threading
import urllib.parse

import fsspec
from etils.epath import gpath
from fsspec.implementations.memory import MemoryFileSystem
from orbax.checkpoint._src.path import gcs_utils

from grm_jax.checkpoint import integrity

_OBJECT = re.compile(r'/storage/v1/b/([^/]+)/o/(.+)')
_OBJECTS = re.compile(r'(?:/upload)?/storage/v1/b/([^/]+)/o')


class MemoryBuckets(MemoryFileSystem):
  """Objects by /BUCKET/NAME, with the names that gcsfs gives them."""

  protocol = ('gcs', 'gs')
  store = {}  # noqa: RUF012
  pseudo_dirs = ['']  # noqa: RUF012

  @classmethod
  def _strip_protocol(cls, path):
    path = str(path).removeprefix('gs://').strip('/')
    return f'/{path}' if path else ''

  def glob(self, path, **options):
    return [x.lstrip('/') for x in super().glob(path, **options)]


class _Handler(http.server.BaseHTTPRequestHandler):
  """The part of the JSON API of Cloud Storage that TensorStore uses."""

  protocol_version = 'HTTP/1.1'
  memory = MemoryBuckets()

  def log_message(self, *unused):
    pass

  def _parse_url(self):
    """Returns (path in memory, query); the path of a listing ends with a /."""
    url = urllib.parse.urlsplit(self.path)
    query = dict(urllib.parse.parse_qsl(url.query))
    if match := _OBJECT.fullmatch(url.path):
      return f'/{match[1]}/{urllib.parse.unquote(match[2])}', query
    match = _OBJECTS.fullmatch(url.path)
    return f'/{match[1]}/' if match else '', query

  def _respond(self, status, data=b'', **headers):
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name.replace('_', '-'), value)
    self.send_header('Content-Length', str(len(data)))
    self.end_headers()
    self.wfile.write(data)

  def do_GET(self):  # noqa: N802
    path, query = self._parse_url()
    if path.endswith('/'):
      self._list(path, query)
      return
    if not self.memory.isfile(path):
      self._respond(404)
      return
    data = self.memory.cat_file(path)
    headers = {'x_goog_generation': str(_generation(path))}
    byte_range = re.fullmatch(
      r'bytes=(\d+)-(\d*)', self.headers.get('Range', '')
    )
    if not byte_range:
      self._respond(200, data, **headers)
      return
    begin = int(byte_range[1])
    end = int(byte_range[2]) + 1 if byte_range[2] else len(data)
    headers['Content_Range'] = f'bytes {begin}-{end - 1}/{len(data)}'
    self._respond(206, data[begin:end], **headers)

  def _list(self, path, query):
    names = [x.removeprefix(path) for x in self.memory.find(path)]
    items = [
      {'name': name, 'generation': str(_generation(path + name))}
      for name in sorted(names)
      if name.startswith(query.get('prefix', ''))
    ]
    self._respond(200, json.dumps({'items': items}).encode())

  def do_POST(self):  # noqa: N802
    path, query = self._parse_url()
    data = self.rfile.read(int(self.headers['Content-Length']))
    name = path + query['name']
    if query.get('ifGenerationMatch') == '0' and self.memory.isfile(name):
      self._respond(412)
      return
    self.memory.pipe_file(name, data)
    response = {'name': query['name'], 'generation': str(_generation(name))}
    self._respond(200, json.dumps(response).encode())

  def do_DELETE(self):  # noqa: N802
    path, _ = self._parse_url()
    exists = self.memory.isfile(path)
    if exists:
      self.memory.rm_file(path)
    self._respond(204 if exists else 404)


def _generation(path):
  return int(MemoryBuckets().info(path)['created'].timestamp() * 1e6)


@contextlib.contextmanager
def bucket(patch):
  """Keeps gs:// paths in memory during a test.

  Args:
    patch: pytest's monkeypatch.

  Yields:
    The path of a bucket.
  """
  fsspec.register_implementation('gcs', MemoryBuckets, clobber=True)
  # With TensorFlow installed, etils would access the real service through it.
  patch.setattr(gpath, '_is_tf_installed', lambda: False)
  # Orbax would query the real service for the kind of the bucket.
  patch.setattr(gcs_utils, 'get_bucket', lambda name: object())
  patch.setattr(integrity, '_has_gcs_client', lambda: True)
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), _Handler)
  host = f'http://127.0.0.1:{server.server_port}'
  patch.setenv('TENSORSTORE_GCS_HTTP_URL', host)
  patch.setenv('GCE_METADATA_ROOT', f'127.0.0.1:{server.server_port}')
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  try:
    yield 'gs://bucket'
  finally:
    server.shutdown()
    MemoryBuckets.store.clear()
    MemoryBuckets.pseudo_dirs[:] = ['']
