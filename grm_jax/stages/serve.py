"""The stage serve: a judge behind HTTP, until SIGTERM."""

import contextlib
import importlib.util
import signal
import socket
import threading
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from grm_jax.errors import UserError
from grm_jax.judges import factory as judge_factory
from grm_jax.judges.generative import Judge
from grm_jax.serving.limits import ServerLimits
from grm_jax.training import run as training_run

_NEEDED = ('fastapi', 'uvicorn', 'prometheus_client')
_LOOPBACK = ('127.0.0.1', 'localhost', '::1')
# As browsers and clients write them.
_LOOPBACK_NAMES = ('127.0.0.1', 'localhost', '[::1]')


def run(config: ConfigDict, workdir: str) -> None:
  """Serves until SIGTERM or SIGINT; what was taken is answered before.

  Args:
    config: as configs/serve.py.
    workdir: not used: nothing is written.

  Raises:
    UserError: a setting is wrong.
    RuntimeError: the judge has failed.
  """
  allowed = _check(config)
  settings = judge_factory.make_voting_judge_config(config)
  token = _token(config.token_file)
  # A port that is taken should not wait for weights. Nobody is let in yet.
  with _bind(config) as bound:
    judge = judge_factory.from_config(config, settings)
    count = judge.engine.warm_up(judge.weights)
    logging.info('%d programs compiled', count)
    _serve(judge, config, allowed, token, bound)


def _check(config: ConfigDict) -> ServerLimits:
  """The limits, if nothing is wrong that is seen before weights are read."""
  missing = [x for x in _NEEDED if importlib.util.find_spec(x) is None]
  if missing:
    raise UserError(
      f'{missing[0]} is not installed; the service needs '
      '`pip install -r requirements-serve.txt`'
    )
  if jax.process_count() > 1:
    raise UserError('a service is one process; start one for each host')
  if config.judge not in ('grm', 'llm'):
    raise UserError(
      f'config.judge is {config.judge!r}; a service has a judge that writes: '
      "'grm' or 'llm'"
    )
  allowed = ServerLimits(**config.limits)
  training_run.check_minimum(('k', config.k, 0))
  allowed.check_samples(config.k)
  if not 0 <= config.port < 2**16:
    raise UserError(f'config.port is {config.port}; 0 is any free one')
  if config.host not in _LOOPBACK and not config.token_file:
    logging.warning(
      'config.host=%s: whoever reaches this machine can use the service; '
      'config.token_file asks them for a token',
      config.host,
    )
  return allowed


def _token(path: str) -> str:
  if not path:
    return ''
  try:
    found = epath.Path(path).read_text().strip()
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(
      f'config.token_file={path} cannot be read: {error}'
    ) from None
  if not found:
    raise UserError(f'config.token_file={path} is empty')
  return found


def _bind(config: ConfigDict) -> socket.socket:
  """A socket of this address that does not listen yet."""
  try:
    family, kind, *_, address = socket.getaddrinfo(
      config.host, config.port, type=socket.SOCK_STREAM
    )[0]
    made = socket.socket(family, kind)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(address)
  except OSError as error:
    raise UserError(
      f'config.host={config.host} and config.port={config.port} cannot be '
      f'used: {error.strerror or error}'
    ) from None
  return made


def _serve(
  judge: Judge,
  config: ConfigDict,
  allowed: ServerLimits,
  token: str,
  bound: socket.socket,
) -> None:
  """Serves with this judge on a bound socket; see `run`."""
  import uvicorn

  from grm_jax.serving import app, schemas, server_metrics, worker

  settings = judge.config
  made = worker.JudgeWorker(judge.stream, allowed.max_queue)
  service = app.Service(
    worker=made,
    defaults=schemas.Defaults(
      k=config.k,
      order=settings.order,
      temperature=settings.temperature,
      seed=settings.seed,
      voting=settings.vote_config(),
      has_meta=judge.meta is not None,
    ),
    limits=allowed,
    metrics=server_metrics.ServerMetrics(made, lambda: _counts(judge)),
    token=token,
    about=_about(config, judge),
    allowed_hosts=_hosts(config),
  )
  server = uvicorn.Server(
    uvicorn.Config(
      app.make_app(service),
      log_level='warning',
      access_log=False,
      timeout_graceful_shutdown=int(allowed.timeout_s) + 1,
    )
  )
  _until_failure(made, server)
  bound.listen()
  host, port = bound.getsockname()[:2]
  address = f'[{host}]:{port}' if ':' in host else f'{host}:{port}'
  training_run.print_on_host0(
    f'serving on http://{address}, described at http://{address}/docs'
  )
  with _quiet_signals():
    server.run(sockets=[bound])
  if made.failed.is_set():
    raise RuntimeError('the judge has failed, see above')


def _hosts(config) -> tuple[str, ...]:
  """Names that requests may call the server by; () for any."""
  if config.host in _LOOPBACK:
    return (*_LOOPBACK_NAMES, *config.allowed_hosts)
  return tuple(config.allowed_hosts)


def _about(config, judge) -> dict[str, Any]:
  return {
    'checkpoint': config.checkpoint,
    'meta_checkpoint': config.meta_checkpoint,
    'template': judge.config.template,
    'prompt_tokens': judge.engine.limits.max_prompt_tokens,
    'judgement_tokens': judge.engine.limits.max_new_tokens,
  }


def _counts(judge) -> Mapping[str, float]:
  stats = judge.engine.stats
  return {
    'tokens': stats.tokens,
    'row_steps': stats.row_steps,
    'prompts': stats.prompts,
    'generations': stats.generations,
  }


def _until_failure(desk, server) -> None:
  """A judge that has failed ends the server: what restarts it must see it."""

  def watch():
    desk.failed.wait()
    server.should_exit = True

  threading.Thread(target=watch, name='watch', daemon=True).start()


@contextlib.contextmanager
def _quiet_signals():
  """Uvicorn raises a signal again after it has stopped in good order for it."""
  kinds = (signal.SIGTERM, signal.SIGINT)
  before = {kind: signal.signal(kind, _ignored) for kind in kinds}
  try:
    yield
  finally:
    for kind, handler in before.items():
      signal.signal(kind, handler)


def _ignored(number, frame):
  """Does nothing."""
