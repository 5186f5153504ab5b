"""Short texts that identify the inputs of a run by their content.

A path is not an identity: its content can change between the start of a run and
its continuation, or differ between two hosts.
"""

import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from grm_jax.checkpoint import model_directory
from grm_jax.data import dataset_files, source_list
from grm_jax.io import atomic_io, input_file
from grm_jax.judgement import template, trained_judge

_CHUNK_BYTES = 1 << 24


def of_template(name: str | template.StoredTemplate, key: str) -> str:
  """Returns a template's name with a digest of its content.

  Args:
    name: see template.load; '' and 'none' stay as they are.
    key: config key of the name, for messages.
  """
  if name in ('', trained_judge.NONE):
    return str(name)
  return f'{name}, {digest(template.load(name, key=key).source)}'


def of_source(spec: str) -> str:
  """Returns a data source with a digest of the files that it names.

  Prefixes such as 'judged:' stay; paths become names of files, because moved
  files are the same input. A source without files is its own identity. Several
  sources have the identities of all of them.

  Raises:
    UserError: a file cannot be read, or a source is malformed.
  """
  prefix, files = _prefix_and_files(spec)
  # A prefix with a comma is the sources before the last one.
  if files and ',' not in prefix:
    return _of_files(spec, prefix, files)
  return ','.join(map(_of_part, source_list.parse(spec)))


def _of_part(source: source_list.Source) -> str:
  prefix, files = _prefix_and_files(source.spec)
  fraction = f'*{source.fraction:g}' if source.fraction < 1 else ''
  if not files:
    return source.spec + fraction
  return _of_files(source.spec, prefix, files) + fraction


def _of_files(spec: str, prefix: str, files: Sequence[str]) -> str:
  contents = {epath.Path(x).name: of_file(x) for x in files}
  names = ' '.join(contents)
  split = spec.partition('#')[2]
  return f'{prefix}{names}{split and "#"}{split}, {digest(contents)}'


def files_of(spec: str) -> list[str]:
  """Returns the paths of the files that a data source names."""
  return _prefix_and_files(spec)[1]


def of_items(items: Sequence[Any]) -> str:
  """Returns the number and a digest of items, such as examples, in order.

  Args:
    items: dataclasses, JSON values, or tuples of them.
  """
  sha256 = hashlib.sha256()
  for item in items:
    sha256.update(repr(item).encode('utf-8', 'backslashreplace') + b'\n')
  return f'{len(items)} items, {sha256.hexdigest()[:12]}'


def of_file(path: str) -> str:
  """Returns a digest of a file, local or gs://.

  Raises:
    UserError: it cannot be read.
  """
  input_file.check(path)
  sha256 = hashlib.sha256()
  with (
    atomic_io.wrap_read_errors(path),
    epath.Path(path).open('rb') as file,
  ):
    while chunk := file.read(_CHUNK_BYTES):
      sha256.update(chunk)
  return sha256.hexdigest()[:12]


def of_checkpoint(directory: str, step: int, resumed: str = '') -> str:
  """Returns the resolved step of a model with a digest of the model.

  Args:
    directory: a model directory, 'random', 'scratch' or ''.
    step: step of the checkpoint; -1 for the newest.
    resumed: the identity with which a training run began. Such a run continues
      from its own checkpoints: it needs the initial model no longer, which may
      have been deleted, or continued to newer steps.

  Raises:
    UserError: no such checkpoint, or it is damaged.
  """
  if resumed.startswith('step '):
    begun_step = int(resumed.split()[1].rstrip(','))
    path = epath.Path(directory) / str(begun_step)
    if step in (-1, begun_step) and not path.exists():
      return resumed
    step = begun_step if step < 0 else step
  fields = model_directory.identity(
    directory, model_directory.step_or_latest(step)
  )
  if 'step' not in fields:
    return directory
  return f'step {fields.pop("step")}, {digest(fields)}'


def of_judge(config: ConfigDict) -> dict[str, str]:
  """Returns the identities of the models and templates of a judge, by key."""
  return {
    'checkpoint': of_checkpoint(config.checkpoint, config.checkpoint_step),
    'meta_checkpoint': of_checkpoint(config.meta_checkpoint, -1),
    'value_checkpoint': of_checkpoint(config.value_checkpoint, -1),
    **of_templates(config),
  }


def of_templates(config: ConfigDict, branch: str = '') -> dict[str, str]:
  """Returns the identities of the templates in config.prompt, by key.

  Args:
    config: a config with the branch `prompt`.
    branch: its config key with a dot at its end, '' for a whole config.
  """
  return {
    f'{branch}{key}': of_template(name, f'config.{branch}{key}')
    for key, name in template_names(config).items()
  }


def template_names(config: ConfigDict) -> dict[str, str]:
  """Returns the names or paths of the templates in config.prompt, by key."""
  names = ('template', 'single', 'principles', 'meta')
  return {f'prompt.{x}': config.prompt[x] for x in names if x in config.prompt}


def of_code() -> str:
  """Returns a digest of the source files of this package."""
  root = pathlib.Path(__file__).parents[1]
  sha256 = hashlib.sha256()
  for path in sorted(root.rglob('*')):
    if path.suffix in ('.py', '.txt', '.html'):
      sha256.update(path.relative_to(root).as_posix().encode())
      sha256.update(path.read_bytes())
  return sha256.hexdigest()[:12]


def digest(value: Any) -> str:
  """Returns twelve hexadecimal digits of a JSON value."""
  return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]


def _prefix_and_files(spec: str) -> tuple[str, list[str]]:
  """Splits PREFIX:PREFIX:PATH#split; returns '' and [] without any file."""
  location = spec.partition('#')[0]
  starts = [0, *(i + 1 for i, x in enumerate(location) if x == ':')]
  for start in starts:
    path = location[start:]
    if path and not path.startswith('//'):  # the rest of gs://
      files = [x for x in dataset_files.list_files(path) if _is_file(x)]
      if files:
        return location[:start], files
  return '', []


def _is_file(path: str) -> bool:
  try:
    return epath.Path(path).is_file()
  except OSError:
    return False
