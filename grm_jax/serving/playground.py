"""The page at /: a form that judges responses and shows the judgements."""

import pathlib

import fastapi
from fastapi.responses import FileResponse

_FOLDER = pathlib.Path(__file__).with_name('static')
_FILES = {
  '/': ('index.html', 'text/html'),
  '/page.css': ('page.css', 'text/css'),
  '/page.js': ('page.js', 'text/javascript'),
}
# The page runs its own script only, whatever a user or a model writes.
_HEADERS = {
  'Content-Security-Policy': (
    "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
  ),
  'X-Content-Type-Options': 'nosniff',
  'Referrer-Policy': 'no-referrer',
  'Cache-Control': 'no-cache',
}


def make_router() -> fastapi.APIRouter:
  """Returns the routes of the page's files."""
  router = fastapi.APIRouter(include_in_schema=False)
  for path, (name, media_type) in _FILES.items():
    router.add_api_route(path, _file_route(name, media_type), methods=['GET'])
  return router


def _file_route(name, media_type):
  async def send_file() -> FileResponse:
    return FileResponse(_FOLDER / name, media_type=media_type, headers=_HEADERS)

  return send_file
