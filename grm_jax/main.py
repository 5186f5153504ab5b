r"""Runs one stage of the training pipeline, or a tool.

  python -m grm_jax.main --config=configs/STAGE.py --workdir=DIR

`--config=configs/STAGE.py:tiny` runs on a laptop CPU. Every leaf of a config
can be set with `--config.key=value`, for example `--config.mesh.tensor=4`. The
comments in a config file explain its leaves.

Exit codes:

  0    The stage finished, or it stopped after SIGTERM and saved its state. The
       last line of the output tells which.
  1    An error in the program or the machine, with a traceback; or another
       process of the run has ended, with a message of one line.
  2    A user's mistake or a full disk, with a message of one line.
  3    Training computed a number that is not finite.
  134  JAX aborted this process because another process of the run is gone.
  143  SIGTERM in a stage that has no state to save.

The same command resumes the run after 134 and 143, usually after 1, and after
a full disk once there is space.
"""

import ast
import contextlib
import difflib
import glob
import importlib
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from grm_jax.errors import NonFiniteError, UserError
from grm_jax.io import terminal
from grm_jax.io.standard_output import StandardOutput


class _TupleParser(flags.ArgumentParser):
  """Parses the value of a tuple leaf: `(1, 2)`, `1,2` or `a,b`.

  The parser of ml_collections joins the values of a flag that is given several
  times. With this one the last value counts, as for all other leaves.
  """

  def parse(self, argument: Any) -> tuple[Any, ...]:
    """Returns the tuple of a text; tuples are returned unchanged."""
    if not isinstance(argument, str):
      return tuple(argument)
    if not argument.strip():
      return ()
    try:
      value = ast.literal_eval(argument)
    except (SyntaxError, ValueError):
      value = tuple(x.strip() for x in argument.split(','))
    return tuple(value) if isinstance(value, list | tuple) else (value,)

  def flag_type(self) -> str:
    """Returns the name of the type in --help."""
    return 'tuple'


class _GroupParser(flags.ArgumentParser):
  """Refuses a value for a group of leaves."""

  def parse(self, argument: Any) -> ConfigDict:
    """Returns a group unchanged, which is the default value of its flag."""
    if not isinstance(argument, ConfigDict):
      raise ValueError(
        'this is a group of settings; set one of them, as in '
        '--config.GROUP.KEY=VALUE, see docs/settings.md'
      )
    return argument


config_flags.register_flag_parser_for_type(tuple, _TupleParser())
config_flags.register_flag_parser_for_type(ConfigDict, _GroupParser())
_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Config file of a stage, see configs/.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', '', 'Directory for the outputs of the stage.'
)
flags.mark_flag_as_required('config')
# config.stage -> the module with its `run(config, workdir)`.
STAGES = {
  'sft': 'grm_jax.stages.sft.train',
  'rft': 'grm_jax.stages.rft.run',
  'grpo': 'grm_jax.stages.grpo.train',
  'reward_model': 'grm_jax.stages.reward_model.train',
  'spct': 'grm_jax.stages.spct.run',
  'solve': 'grm_jax.stages.solve',
  'score': 'grm_jax.stages.score',
  'evaluate': 'grm_jax.stages.evaluate',
  'serve': 'grm_jax.stages.serve',
  'convert': 'grm_jax.stages.convert',
  'aot': 'grm_jax.aot.compile_report',
}


def main(argv: list[str]) -> None:
  """Runs the stage that --config names.

  Args:
    argv: the arguments that are not flags, after the program's name.
  """
  if len(argv) > 1:
    _exit_with_error(
      f'unexpected argument {argv[1]!r}; set config leaves with '
      '--config.key=value'
    )
  # Imported here because it imports JAX, which reads the environment at import
  # time and is slow to import for --help.
  from grm_jax.sharding import distributed

  logging.get_absl_handler().addFilter(terminal.EscapeFilter())
  config = _CONFIG.value
  output = StandardOutput(sys.stdout)
  try:
    with contextlib.redirect_stdout(output):
      module_name = _stage_module(config.get('stage'))
      distributed.initialize()
      if distributed.is_multiprocess():
        distributed.agree(lambda: _command(config))
      stage = importlib.import_module(module_name)
      _warn_of_unused_settings(config, stage)
      stage.run(config, _WORKDIR.value)
      output.check()
  except (UserError, NonFiniteError) as error:
    logging.debug('', exc_info=True)
    _print_error(str(error))
    distributed.exit_process(2 if isinstance(error, UserError) else 3)
  except Exception as error:
    if not distributed.is_multiprocess():
      raise
    # The other processes would wait for this one: end it explicitly.
    if distributed.is_lost_peer(error):
      _print_error(
        f'another process of this run has ended ({_one_line(error)}); its log '
        'states the cause. Start all processes again to resume'
      )
    else:
      traceback.print_exc()
      _print_error(
        'this process of a multi-process run failed; start all processes again '
        'to resume'
      )
    distributed.exit_process(1)


def _command(config: ConfigDict) -> dict[str, Any]:
  """Returns what must be the same in all processes of a run."""
  from grm_jax.stages import input_identity, run_record

  settings = run_record.flatten(config)
  return {
    '--workdir': _WORKDIR.value,
    'the code of grm_jax': input_identity.of_code(),
    **{f'config.{key}': value for key, value in settings.items()},
  }


def _warn_of_unused_settings(config: ConfigDict, stage: Any) -> None:
  """Warns about given settings to which other settings leave no effect."""
  from grm_jax import unused_settings

  flag = flags.FLAGS['config']
  given = config_flags.get_override_values(flag) if flag.present else {}
  try:
    for message in unused_settings.messages(config, given, stage.UNUSED):
      logging.warning('%s', message)
  except (AttributeError, TypeError):
    logging.debug('', exc_info=True)  # the stage reports the wrong setting


def _stage_module(stage: str | None) -> str:
  """Returns the name of a stage's module.

  Raises:
    UserError: the stage is unknown.
  """
  if stage not in STAGES:
    raise UserError(
      f'config.stage is {stage!r}; it must be one of {", ".join(STAGES)}'
    )
  return STAGES[stage]


def _parse_flags(argv: list[str]) -> list[str]:
  """Parses the flags; an invalid config file or key is an error of one line."""
  output = StandardOutput(sys.stdout)
  try:
    with contextlib.redirect_stdout(output):  # --help prints and exits
      argv = flags.FLAGS.read_flags_from_files(argv)
      # A byte order mark at the beginning of a flag file.
      arguments = flags.FLAGS([x.removeprefix('\ufeff') for x in argv])
    config = _CONFIG.value
    # A config file that could not be loaded raises only on attribute access.
    config.get  # noqa: B018
  except SystemExit:
    with _exit_on_user_error():
      output.check('')
    raise
  except Exception as error:  # a config file is Python, and can raise anything
    logging.debug('', exc_info=True)
    _exit_with_error(_config_problem(argv, error) or _flag_problem(error, argv))
  if not isinstance(config, ConfigDict):
    _exit_with_error(
      f'get_config returns a {type(config).__name__}; return a '
      'ml_collections.ConfigDict'
    )
  return arguments


@contextlib.contextmanager
def _exit_on_user_error() -> Iterator[None]:
  try:
    yield
  except UserError as error:
    _exit_with_error(str(error))


def _config_problem(argv: list[str], error: Exception) -> str:
  """Returns what is wrong with the file in --config; '' for nothing."""
  value = _value_of('config', argv)
  if not value:
    return '--config is missing; give one of the files in configs/'
  path = value.partition(':')[0]
  if not os.path.isfile(path):
    close = difflib.get_close_matches(path, glob.glob('configs/*.py'), 1)
    hint = f'did you mean {close[0]}?' if close else 'give a file in configs/'
    return f'--config={path} does not exist; {hint}'
  if not path.endswith('.py'):
    return f'--config={path} is not a Python file; give a file in configs/'
  if isinstance(error, SyntaxError):
    return f'{error.filename}:{error.lineno}: {error.msg}'
  if 'get_config' in str(error) and isinstance(error, AttributeError):
    return f'{path} has no get_config; define `def get_config(arg="")` there'
  line = traceback.extract_tb(error.__traceback__)[-1]
  same_file = os.path.exists(line.filename) and os.path.samefile(
    line.filename, path
  )
  # ValueError is the answer of get_config to an unknown variant.
  if same_file and type(error) is not ValueError:
    return f'{path}:{line.lineno}: {type(error).__name__}: {_one_line(error)}'
  return ''


def _value_of(name: str, argv: list[str]) -> str:
  """Returns the value of a flag, written `--name=value` or `--name value`."""
  result = ''
  for i, argument in enumerate(argv[1:], 1):
    flag, separator, value = argument.partition('=')
    if flag in (f'-{name}', f'--{name}'):
      result = value if separator else ''.join(argv[i + 1 : i + 2])
  return result


def _flag_problem(error: Exception, argv: list[str]) -> str:
  """Returns what is wrong with the other flags."""
  message = _with_full_key(_one_line(error), argv)
  is_unknown = isinstance(error, flags.UnrecognizedFlagError)
  if is_unknown and 'Did you mean' not in message:
    message += '; set config leaves with --config.key=value'
  return message


def _with_full_key(message: str, argv: list[str]) -> str:
  """Completes the key of a message about an unknown config key.

  ml_collections names the last part only: `'tensr'` for config.mesh.tensr.
  """
  for argument in argv:
    path = argument.partition('=')[0].lstrip('-').split('.')
    for i, key in enumerate(path[1:], 1):
      if path[0] == 'config' and message.startswith(f"'{key}'"):
        suggestion = message.removeprefix(f"'{key}'").strip()
        full_key = '.'.join(path[: i + 1])
        return (
          f'{full_key} does not exist. '
          f'{suggestion or "See the config file for the available keys."}'
        )
  return message


def _one_line(error: BaseException) -> str:
  # ConfigDict wraps one error in another.
  while error.args and isinstance(error.args[0], Exception):
    error = error.args[0]
  # str(KeyError) is a repr.
  text = str(error.args[0] if isinstance(error, KeyError) else error)
  # The error of a config file comes last, after the traceback of its import.
  if 'Traceback' in text:
    text = text.strip().splitlines()[-1].removeprefix('ValueError: ')
  return ' '.join(text.split())


def _print_error(message: str) -> None:
  # One write, because other threads may write too.
  sys.stderr.write(f'error: {terminal.printable(message)}\n')


def _exit_with_error(message: str) -> NoReturn:
  _print_error(message)
  sys.exit(2)


if __name__ == '__main__':
  app.run(main, flags_parser=_parse_flags)
