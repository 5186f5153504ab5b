"""A bucket in memory: what etils sees of gs://, and TensorStore over HTTP."""

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


class Memory(MemoryFileSystem):
  """Objects by /BUCKET/NAME, under the names that gcsfs gives them."""

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
  """The part of Cloud Storage's JSON API that TensorStore speaks."""

  protocol_version = 'HTTP/1.1'
  memory = Memory()

  def log_message(self, *unused):
    pass

  def _asked(self):
    parts = urllib.parse.urlsplit(self.path)
    query = dict(urllib.parse.parse_qsl(parts.query))
    if found := _OBJECT.fullmatch(parts.path):
      return f'/{found[1]}/{urllib.parse.unquote(found[2])}', query
    found = _OBJECTS.fullmatch(parts.path)
    return f'/{found[1]}/' if found else '', query

  def _answer(self, status, data=b'', **headers):
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name.replace('_', '-'), value)
    self.send_header('Content-Length', str(len(data)))
    self.end_headers()
    self.wfile.write(data)

  def do_GET(self):  # noqa: N802
    path, query = self._asked()
    if path.endswith('/'):
      self._list(path, query)
    elif self.memory.isfile(path):
      data = self.memory.cat_file(path)
      told = {'x_goog_generation': str(_generation(path))}
      if asked := re.fullmatch(
        r'bytes=(\d+)-(\d*)', self.headers.get('Range', '')
      ):
        begin = int(asked[1])
        end = int(asked[2]) + 1 if asked[2] else len(data)
        told['Content_Range'] = f'bytes {begin}-{end - 1}/{len(data)}'
        self._answer(206, data[begin:end], **told)
      else:
        self._answer(200, data, **told)
    else:
      self._answer(404)

  def _list(self, path, query):
    found = [x.removeprefix(path) for x in self.memory.find(path)]
    items = [
      {'name': name, 'generation': str(_generation(path + name))}
      for name in sorted(found)
      if name.startswith(query.get('prefix', ''))
    ]
    self._answer(200, json.dumps({'items': items}).encode())

  def do_POST(self):  # noqa: N802
    path, query = self._asked()
    data = self.rfile.read(int(self.headers['Content-Length']))
    name = path + query['name']
    if query.get('ifGenerationMatch') == '0' and self.memory.isfile(name):
      self._answer(412)
      return
    self.memory.pipe_file(name, data)
    told = {'name': query['name'], 'generation': str(_generation(name))}
    self._answer(200, json.dumps(told).encode())

  def do_DELETE(self):  # noqa: N802
    path, _ = self._asked()
    there = self.memory.isfile(path)
    if there:
      self.memory.rm_file(path)
    self._answer(204 if there else 404)


def _generation(path):
  return int(Memory().info(path)['created'].timestamp() * 1e6)


@contextlib.contextmanager
def bucket(patch):
  """gs:// in memory for a test; `patch` is pytest's monkeypatch."""
  fsspec.register_implementation('gcs', Memory, clobber=True)
  # Where TensorFlow is installed, etils would ask the real service through it.
  patch.setattr(gpath, '_is_tf_installed', lambda: False)
  # It asks the real service what kind of bucket it is: a flat one.
  patch.setattr(gcs_utils, 'get_bucket', lambda name: object())
  patch.setattr(integrity, '_has_client', lambda: True)
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
    Memory.store.clear()
    Memory.pseudo_dirs[:] = ['']
