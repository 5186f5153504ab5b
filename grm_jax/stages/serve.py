"""The stage serve: a judge behind HTTP, until SIGTERM."""

import contextlib
import functools
import importlib.util
import re
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from grm_jax import settings
from grm_jax.errors import UserError
from grm_jax.io import input_file
from grm_jax.judges import factory as judge_factory
from grm_jax.judges import failure_report
from grm_jax.judges import settings as judge_settings
from grm_jax.judges.generative import Judge
from grm_jax.serving import limits as server_limits
from grm_jax.serving.limits import ServerLimits
from grm_jax.training import run as training_run

_PACKAGES = ('fastapi', 'uvicorn', 'prometheus_client')
_MAX_TOKEN_BYTES = 4096
_LOOPBACK = ('127.0.0.1', 'localhost', '::1')
# The same as host names of requests, which have IPv6 addresses in brackets.
_LOOPBACK_HOSTS = ('127.0.0.1', 'localhost', '[::1]')

# Rules of configs/serve.py.
SETTINGS = judge_settings.VOTING_JUDGE | {
  'stage': settings.one_of('serve'),
  # A service needs a judge that writes judgements.
  'judge': settings.one_of('grm', 'llm'),
  'host': settings.NAME,
  'port': settings.integer(0, 2**16 - 1, note='0: any free port'),
  'allowed_hosts': settings.NAMES,
  'token_file': settings.TEXT,
  'limits': server_limits.SETTINGS,
}
# Requests can have another k, so the temperature has an effect.
UNUSED = judge_settings.UNUSED


def run(config: ConfigDict, workdir: str) -> None:
  """Serves until SIGTERM or SIGINT, then finishes accepted requests.

  Args:
    config: as configs/serve.py.
    workdir: not used; nothing is written.

  Raises:
    UserError: a setting is wrong.
    RuntimeError: the judge failed.
  """
  del workdir
  limits = _check(config)
  judge_config = judge_factory.make_voting_judge_config(config)
  token = _read_token(config.token_file)
  # Binding first finds a port in use before the weights are read. The socket
  # does not listen until the judge is ready.
  with _bind(config) as server_socket:
    judge = judge_factory.from_config(config, judge_config)
    # `_check` allows only kinds of judges that are a Judge with weights.
    assert isinstance(judge, Judge) and judge.weights is not None
    num_programs = judge.engine.warm_up(judge.weights)
    logging.info('compiled %d programs', num_programs)
    _serve(judge, config, limits, token, server_socket)


def _check(config: ConfigDict) -> ServerLimits:
  """Checks what does not need the weights, and returns the limits."""
  settings.check(config, SETTINGS)
  missing = [x for x in _PACKAGES if importlib.util.find_spec(x) is None]
  if missing:
    raise UserError(
      f'the package {missing[0]} is not installed; run '
      '`pip install -r requirements-serve.txt`'
    )
  if jax.process_count() > 1:
    raise UserError(
      f'a service runs in one process, not in {jax.process_count()}; start one '
      'service per host'
    )
  limits = ServerLimits(**config.limits)
  if config.k > limits.k:
    raise UserError(
      f'config.k is {config.k}, but config.limits.k is {limits.k}; set '
      'config.k to at most config.limits.k'
    )
  judge_factory.check(config)
  if config.host not in _LOOPBACK and not config.token_file:
    logging.warning(
      'config.host=%s: everyone who can reach this machine can use the '
      'service; set config.token_file to require a token',
      config.host,
    )
  return limits


def _read_token(path: str) -> str:
  if not path:
    return ''
  input_file.check(path, 'config.token_file')
  try:
    with epath.Path(path).open('rb') as file:
      data = file.read(_MAX_TOKEN_BYTES + 1)
  except OSError as error:
    raise UserError(
      f'config.token_file={path} cannot be read: {error}'
    ) from None
  # Editors of some systems begin a text file with a byte-order mark.
  token = data.decode('utf-8-sig', errors='replace').strip()
  if not token:
    raise UserError(
      f'config.token_file={path} is empty; write the token into it'
    )
  # Clients send it in a header, which holds nothing else.
  if not re.fullmatch('[!-~]+', token) or len(data) > _MAX_TOKEN_BYTES:
    raise UserError(
      f'config.token_file={path} holds a token with spaces or characters '
      f'outside ASCII, or more than {_MAX_TOKEN_BYTES} bytes; use letters, '
      'digits and punctuation in one line'
    )
  return token


def _bind(config: ConfigDict) -> socket.socket:
  """Returns a bound socket that does not listen yet."""
  try:
    family, kind, *_, address = socket.getaddrinfo(
      config.host, config.port, type=socket.SOCK_STREAM
    )[0]
    bound_socket = socket.socket(family, kind)
    # Allows a restart while connections of the old server are in TIME_WAIT.
    bound_socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound_socket.bind(address)
  except OSError as error:
    raise UserError(
      f'config.host={config.host} with config.port={config.port} cannot be '
      f'used ({error.strerror or error}); choose another address'
    ) from None
  return bound_socket


def _serve(
  judge: Judge,
  config: ConfigDict,
  limits: ServerLimits,
  token: str,
  server_socket: socket.socket,
) -> None:
  """Serves on a bound socket; see `run`."""
  # These need optional packages; `_check` has found them.
  from grm_jax.serving import (
    app,
    schemas,
    server,
    server_metrics,
    worker,
  )

  judge_worker = worker.JudgeWorker(judge.stream, limits.max_queue)
  service = app.Service(
    worker=judge_worker,
    defaults=schemas.Defaults(
      k=config.k,
      order=judge.config.order,
      temperature=judge.config.temperature,
      seed=judge.config.seed,
      voting=judge.vote_config,
      has_meta=judge.meta is not None,
    ),
    limits=server.fit_descriptors(limits),
    metrics=server_metrics.ServerMetrics(
      judge_worker,
      lambda: _engine_counts(judge),
      functools.partial(_warn_of_failures, config),
    ),
    token=token,
    about=_about(config, judge),
    allowed_hosts=_allowed_hosts(config),
  )
  http_server = server.make_server(app.make_app(service))
  _exit_on_failure(judge_worker, http_server)
  server_socket.listen()
  host, port = server_socket.getsockname()[:2]
  address = f'[{host}]:{port}' if ':' in host else f'{host}:{port}'
  training_run.print_on_host0(
    f'serving on http://{address}, API description at http://{address}/docs'
  )
  with _ignore_repeated_signals():
    http_server.run(sockets=[server_socket])
  if judge_worker.failed.is_set():
    raise RuntimeError('the judge failed; see the error above')


def _allowed_hosts(config: ConfigDict) -> tuple[str, ...]:
  """Returns host names that requests may have; () for any."""
  if config.host in _LOOPBACK:
    return (*_LOOPBACK_HOSTS, *config.allowed_hosts)
  return tuple(config.allowed_hosts)


def _about(config: ConfigDict, judge: Judge) -> dict[str, Any]:
  """Returns the description of the judge that clients can read."""
  return {
    'checkpoint': config.checkpoint,
    'meta_checkpoint': config.meta_checkpoint,
    'template': str(judge.config.template),
    'prompt_tokens': judge.engine.limits.max_prompt_tokens,
    'judgement_tokens': judge.engine.limits.max_new_tokens,
  }


def _warn_of_failures(
  config: ConfigDict, count: int, failures: int, truncated: int
) -> None:
  """Logs that most judgements so far fail, with the likely cause."""
  warning = failure_report.of_counts(
    config, count, failures=failures, truncated=truncated
  )
  if warning:
    logging.warning('%s', warning)


def _engine_counts(judge: Judge) -> Mapping[str, float]:
  stats = judge.engine.stats
  return {
    'tokens': stats.tokens,
    'row_steps': stats.row_steps,
    'prompts': stats.prompts,
    'generations': stats.generations,
  }


def _exit_on_failure(judge_worker: Any, server: Any) -> None:
  """Stops the server when the judge fails, so that it can be restarted.

  Args:
    judge_worker: a worker.JudgeWorker.
    server: a uvicorn.Server.
  """

  def wait_for_failure():
    judge_worker.failed.wait()
    server.should_exit = True

  # A daemon thread does not keep the process alive.
  threading.Thread(target=wait_for_failure, name='watch', daemon=True).start()


@contextlib.contextmanager
def _ignore_repeated_signals() -> Iterator[None]:
  """Ignores the signals that uvicorn raises again after its shutdown.

  Uvicorn has its own handlers while it runs. Afterwards it restores these ones
  and raises each signal that it received once more.
  """
  signals = (signal.SIGTERM, signal.SIGINT)
  # Not SIG_IGN, which child processes would inherit.
  handlers = {x: signal.signal(x, _do_nothing) for x in signals}
  try:
    yield
  finally:
    for number, handler in handlers.items():
      signal.signal(number, handler)


def _do_nothing(number, frame):
  """Handles a signal."""
