r"""Runs one stage of the method.

  python -m grm_jax.main --config=configs/STAGE.py --workdir=DIR

`--config=configs/STAGE.py:tiny` is a version that runs on a laptop CPU. Any
leaf of a config is changed with `--config.key=value`, for example
`--config.mesh.tensor=4`. The comments in a config file explain its leaves.

Ends with 0: done, or asked to stop by SIGTERM and saved (the last line says
which); 1: a fault of the program or a machine; 2: a mistake in what was given,
or a full disk, one line says which; 3: training met a loss that is not finite;
134, by JAX: another process of the run is gone; 143: SIGTERM where nothing is
to be saved. The same command goes on after 134 and 143, mostly after 1, and
where there is room again.
"""

import importlib
import sys
import traceback

from absl import app, flags, logging
from ml_collections import config_flags

from grm_jax.errors import NonFiniteError, UserError

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'File with the settings of a stage, see configs/.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', '', 'Directory for what the stage writes.'
)
flags.mark_flag_as_required('config')
# config.stage -> the module that runs it.
STAGES = {
  'sft': 'grm_jax.stages.sft.train',
  'rft': 'grm_jax.stages.rft.run',
  'grpo': 'grm_jax.stages.grpo.train',
  'reward_model': 'grm_jax.stages.reward_model.train',
  'spct': 'grm_jax.stages.spct.run',
  'score': 'grm_jax.stages.score',
  'evaluate': 'grm_jax.stages.evaluate',
  'serve': 'grm_jax.stages.serve',
  'convert': 'grm_jax.stages.convert',
  'aot': 'grm_jax.aot.compile_report',
}
_WITH_OTHERS = (
  'this process of several ends; if another one ended before it, that is the '
  'cause, and its log tells why. Start all of them again: the run goes on'
)


def main(argv: list[str]) -> None:
  """Runs the stage that --config names; a mistake ends with one line."""
  if len(argv) > 1:
    _fail(f'unexpected argument {argv[1]!r}; settings are --config.key=value')
  # JAX reads its environment on import, and --help should not wait for it.
  from grm_jax.sharding import distributed

  try:
    distributed.initialize()
    stage = importlib.import_module(STAGES[_CONFIG.value.stage])
    stage.run(_CONFIG.value, _WORKDIR.value)
  except (UserError, NonFiniteError) as error:
    logging.debug('', exc_info=True)
    _say(str(error))
    distributed.exit_process(2 if isinstance(error, UserError) else 3)
  except Exception:  # whatever it is, others may wait for this one
    if not distributed.is_multiprocess():
      raise
    traceback.print_exc()
    _say(_WITH_OTHERS)
    distributed.exit_process(1)


def _parse(argv: list[str]) -> list[str]:
  """Flags, with a one-line error where the config or a key is wrong."""
  try:
    rest = flags.FLAGS(argv)
    # A file that could not be loaded raises on first use only.
    _CONFIG.value.stage  # noqa: B018
    return rest
  except (
    flags.Error,
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
    OSError,
  ) as error:
    _fail(_with_path(_one_line(error), argv))


def _with_path(text: str, argv: list[str]) -> str:
  """A message that begins with an unknown key, with all of its path."""
  for argument in argv:
    path = argument.partition('=')[0].lstrip('-').split('.')
    for i, key in enumerate(path[1:], 1):
      if path[0] == 'config' and text.startswith(f"'{key}'"):
        rest = text.removeprefix(f"'{key}'").strip()
        name = '.'.join(path[: i + 1])
        return f'there is no {name}. {rest or "See the config file."}'
  return text


def _one_line(error: Exception) -> str:
  # ConfigDict wraps one error in another; str(KeyError) is a repr; and a
  # config file's own error comes last, after the traceback that led to it.
  while error.args and isinstance(error.args[0], Exception):
    error = error.args[0]
  text = str(error.args[0] if isinstance(error, KeyError) else error)
  if 'Traceback' in text:
    text = text.strip().splitlines()[-1]
  return ' '.join(text.split())


def _say(message: str) -> None:
  # In one piece, for other threads may be writing too.
  sys.stderr.write(f'error: {message}\n')


def _fail(message: str) -> None:
  _say(message)
  sys.exit(2)


if __name__ == '__main__':
  app.run(main, flags_parser=_parse)
