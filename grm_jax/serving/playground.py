"""The page at /, for people who want to look at judgements."""

import pathlib

import fastapi
from fastapi.responses import FileResponse

_FOLDER = pathlib.Path(__file__).with_name('page')
_FILES = {
  '/': ('index.html', 'text/html'),
  '/page.css': ('page.css', 'text/css'),
  '/page.js': ('page.js', 'text/javascript'),
}
# Nothing but these files runs in it, whatever a model or a user writes.
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


def router() -> fastapi.APIRouter:
  """Routes of the page's files."""
  made = fastapi.APIRouter(include_in_schema=False)
  for path, (name, kind) in _FILES.items():
    made.add_api_route(path, _sender(name, kind), methods=['GET'])
  return made


def _sender(name, kind):
  async def send() -> FileResponse:
    return FileResponse(_FOLDER / name, media_type=kind, headers=_HEADERS)

  return send
