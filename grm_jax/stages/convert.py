"""Converts weights from and to Hugging Face directories, and from GGUF files.

Adapters (LoRA) are merged into their base, or converted from and to the format
of PEFT.

No process holds a whole checkpoint in host memory: import reads the slices of
each device from the files, export writes one file at a time.
"""

import contextlib
import importlib.metadata
import importlib.util
import os
import shutil
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from grm_jax import settings
from grm_jax.checkpoint import (
  adapter_base,
  gguf,
  model_directory,
  orbax_checkpoint,
)
from grm_jax.checkpoint.huggingface import config as hf_config
from grm_jax.checkpoint.huggingface import load as hf_load
from grm_jax.checkpoint.huggingface import peft
from grm_jax.checkpoint.huggingface import save as hf_save
from grm_jax.errors import UserError
from grm_jax.io import atomic_io, run_lock
from grm_jax.judgement.trained_judge import TrainedJudge
from grm_jax.model import compute_config, logprobs, lora
from grm_jax.model import config as model_config
from grm_jax.model.batch import Batch
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.model.config import ModelConfig
from grm_jax.model.transformer import Transformer
from grm_jax.sharding import distributed, mesh
from grm_jax.sharding.rules import ShardingLayout
from grm_jax.tokenizer import chat_format, chat_template
from grm_jax.unused_settings import Unused

# Maximum difference of float32 logits of the same weights in two
# implementations.
_TOLERANCE = 1e-3
_VERIFY_SHAPE = (2, 64)  # prompts, tokens

# Rules of configs/convert.py.
SETTINGS: settings.Rules = {
  'stage': settings.one_of('convert'),
  'direction': settings.one_of('checkpoint', 'huggingface', 'peft'),
  'source': settings.TEXT,
  'target': settings.TEXT,
  'base': settings.TEXT,
  'checkpoint_step': settings.STEP,
  'size': settings.optional(model_config.SIZE, 'tiny'),
  'scalar': settings.BOOLEAN,
  'seed': settings.SEED,
  'dtype': settings.one_of('source', *compute_config.DTYPES),
  'chat_template': settings.one_of('builtin', 'checkpoint'),
  'verify': settings.BOOLEAN,
  'mesh': mesh.SETTINGS,
}
UNUSED = (
  Unused(
    ('chat_template',),
    '{key}.source is not a Hugging Face directory',
    lambda config: not _has_template(config),
  ),
  Unused(
    ('checkpoint_step',),
    '{key}.source is no checkpoint',
    lambda config: not _is_checkpoint(config),
  ),
  Unused(
    ('base',),
    '{key}.source is no adapter',
    lambda config: not _is_adapter(config),
  ),
  Unused(
    ('seed',),
    '{key}.source is not random',
    lambda config: config.source != 'random',
  ),
)


def run(config: ConfigDict, workdir: str) -> None:
  """Converts `config.source` to `config.target`.

  Args:
    config: as configs/convert.py.
    workdir: folder of the target if `config.target` is empty.

  Raises:
    UserError: a path is wrong, the target exists, the checkpoint is invalid,
      or `config.verify` finds a difference.
  """
  target = config.target or (workdir and os.path.join(workdir, 'model'))
  settings.check(config, SETTINGS)
  if not target:
    raise UserError(
      'config.target and --workdir are empty; set --config.target=DIR or '
      '--workdir=DIR'
    )
  lock = target if '://' in target else os.path.realpath(target)
  with distributed.enter_on_all(run_lock.hold(f'{lock}.lock', target)):
    distributed.run_on_all(lambda: _check_paths(config, target))
    _convert(config, target)


def _convert(config: ConfigDict, target: str) -> None:
  """Converts after the checks; see `run`."""
  start_s = time.monotonic()
  layout = mesh.from_config(config)
  model, params = _read(config, target, layout)
  logging.info('read %s in %.1f s', config.source, time.monotonic() - start_s)
  if config.direction == 'checkpoint':
    _copy_files(config, target)
    _use_template(config, target)
    if model.scalar:
      _mark_scalar(config, target, model.config)
    meta = {'source': config.source, 'step': 0}
    model_directory.save(target, 0, model, params, meta)
  else:
    _export(config, model, params, target)
  seconds = time.monotonic() - start_s
  print(f'{config.source} -> {target} ({config.direction}) in {seconds:.1f} s')
  if config.verify:
    _verify(config, model, params, target)


def _check_paths(config: ConfigDict, target: str) -> None:
  if not config.source:
    raise UserError(
      "config.source is empty; set it to a directory, a GGUF file or 'random'"
    )
  random = config.source == 'random'
  if (config.size or config.scalar) and not random:
    raise UserError(
      f'config.size is {config.size!r} and config.scalar is {config.scalar}, '
      f'which only config.source=random has; config.source is {config.source}'
    )
  # The side that is not one of our checkpoints is mapped into memory.
  importing = config.direction == 'checkpoint'
  key, path = ('source', config.source) if importing else ('target', target)
  if '://' in path:
    kind = 'GGUF file' if _is_gguf(config) else 'Hugging Face directory'
    raise UserError(
      f'config.{key}={path}: a {kind} must be local; copy it with `gcloud '
      'storage cp -r`'
    )
  if _is_gguf(config):
    if not epath.Path(config.source).is_file():
      raise UserError(f'config.source={config.source} is not a file')
  elif config.source != 'random' and not epath.Path(config.source).is_dir():
    raise UserError(f'config.source={config.source} is not a directory')
  _check_adapter(config)
  if _has_template(config):
    hf_config.check_tokenizer(config.source)
    if model_directory.has_tokenizer(config.source):
      _check_chat_template(config)
  with atomic_io.wrap_read_errors(target):
    if epath.Path(target).is_file() or _is_in_use(target, config.direction):
      raise UserError(
        f'config.target={target} exists; choose another path or delete it'
      )


def _check_adapter(config: ConfigDict) -> None:
  """Raises UserError if the direction does not fit the kind of source."""
  if _is_peft(config):
    if not config.base:
      raise UserError(
        f'config.base is empty, and {config.source} is an adapter of PEFT; set '
        'it to the model directory of its base, which PEFT names '
        f'{peft.base_name(config.source)}'
      )
    return
  if not _is_checkpoint(config) or config.direction == 'huggingface':
    return
  if not _is_adapter(config):
    raise UserError(
      f'config.source={config.source} is a checkpoint without an adapter; set '
      'config.direction to huggingface'
    )
  if config.direction == 'peft' and not config.base:
    raise UserError(
      'config.base is empty; set it to the name or the path of the base in the '
      'format of Hugging Face, such as google/gemma-2-2b-it'
    )


def _is_peft(config: ConfigDict) -> bool:
  """Returns whether an adapter of PEFT is read."""
  is_import = config.direction == 'checkpoint' and bool(config.source)
  return is_import and peft.is_adapter(config.source)


def _is_checkpoint(config: ConfigDict) -> bool:
  """Returns whether one of our checkpoints is read."""
  if config.direction != 'checkpoint':
    return True
  is_other = config.source in ('', 'random') or _is_gguf(config)
  if is_other or '://' in config.source:
    return False
  return bool(orbax_checkpoint.steps(config.source))


def _is_adapter(config: ConfigDict) -> bool:
  """Returns whether an adapter is read, ours or one of PEFT."""
  if not _is_checkpoint(config):
    return _is_peft(config)
  step = model_directory.step_or_latest(config.checkpoint_step)
  with contextlib.suppress(UserError):  # reported when it is read
    return 'adapter' in orbax_checkpoint.read_json(config.source, 'model', step)
  return False


def _has_template(config: ConfigDict) -> bool:
  """Returns whether a Hugging Face model is read."""
  return config.source != 'random' and not (
    _is_gguf(config) or _is_checkpoint(config) or _is_peft(config)
  )


def _check_chat_template(config: ConfigDict) -> None:
  """Warns if the source's chat template differs from the format to be used.

  Raises:
    UserError: it is to be used, and there is none or it is not suitable.
  """
  size, scalar = hf_config.read_config(config.source)
  tokenizer = model_directory.load_tokenizer(config.source, size)
  template = chat_template.of_checkpoint(config.source)
  if config.chat_template == 'checkpoint':
    if template is None:
      raise UserError(
        f'config.chat_template=checkpoint: {config.source} has no chat '
        'template; set config.chat_template=builtin'
      )
    with_template = chat_format.with_template(tokenizer, template)
    if scalar:
      chat_format.check_response_follows(with_template)
  elif template and (text := chat_format.differences(tokenizer, template)):
    logging.warning(
      '%s has another chat template than the built-in format %r: %s. If the '
      'model was trained with its template, set '
      '--config.chat_template=checkpoint',
      *(config.source, tokenizer.chat_format.name, text),
    )


def _use_template(config: ConfigDict, target: str) -> None:
  """Stores the chat template that a model directory uses."""
  if not _has_template(config) or config.chat_template == 'builtin':
    return
  template = chat_template.of_checkpoint(config.source)
  assert template is not None  # `_check_chat_template`
  path = os.path.join(target, chat_template.FILE)
  atomic_io.write_file(path, chat_template.to_json(template))


def _is_gguf(config: ConfigDict) -> bool:
  return config.direction == 'checkpoint' and config.source.endswith('.gguf')


def _is_in_use(target: str, direction: str) -> bool:
  """Returns whether the target has more than a killed conversion leaves."""
  path = epath.Path(target)
  names = [x.name for x in path.iterdir()] if path.is_dir() else []
  if direction != 'checkpoint':
    return bool(names)
  leftovers = (*model_directory.COMPANIONS, '.tmp', '.orbax-checkpoint-tmp')
  return any(not any(part in name for part in leftovers) for name in names)


def _read(
  config: ConfigDict, target: str, layout: ShardingLayout
) -> tuple[Transformer, dict]:
  """Returns the model and the parameters of `config.source`."""
  dtype = 'float32' if config.dtype == 'source' else config.dtype
  compute = ComputeConfig(param_dtype=dtype)
  if config.source == 'random':
    model = Transformer(
      model_config.from_name(config.size), compute, layout, config.scalar
    )
    return model, model_directory.random_params(model, config.seed)
  if _is_checkpoint(config):
    return _read_checkpoint(config, compute, layout)
  if _is_peft(config):
    return _import_adapter(config, target, layout)
  return _import(config.source, compute, layout, config.dtype)


def _read_checkpoint(
  config: ConfigDict, compute: ComputeConfig, layout: ShardingLayout
) -> tuple[Transformer, dict]:
  """Reads a checkpoint of ours; merges an adapter unless PEFT is to get it."""
  step = model_directory.step_or_latest(config.checkpoint_step)
  model = model_directory.build_model(config.source, step, compute, layout)
  if model.adapter is not None and config.direction == 'peft':
    _check_peft_base(config, model.adapter)
    return model, model_directory.load_trained(config.source, step, model)
  params = model_directory.load_params(
    config.source, step, model, config.dtype, [config.base]
  )
  return model.clone(adapter=None), params


def _check_peft_base(config: ConfigDict, adapter: lora.AdapterConfig) -> None:
  """Prints the base of an adapter; it must exist in the format of PEFT.

  Raises:
    UserError: the base was trained here, and was not exported.
  """
  print(
    f'{config.source} was trained on step {adapter.base_step} of '
    f'{adapter.base} ({adapter.base_dtype})'
  )
  if adapter.base == model_directory.RANDOM or os.path.isdir(config.base):
    return
  path = adapter_base.find(config.source, adapter)
  meta = orbax_checkpoint.read_json(path, 'meta', adapter.base_step)
  if 'source' not in meta:
    raise UserError(
      f'config.base={config.base} is not the base of {config.source}, which '
      f'was trained on {path}, the model of another run; convert that with '
      'config.direction=huggingface and give its folder as config.base'
    )


def _import_adapter(
  config: ConfigDict, target: str, layout: ShardingLayout
) -> tuple[Transformer, dict]:
  """Reads an adapter of PEFT for the base config.base."""
  print(f'{config.source} names its base {peft.base_name(config.source)}')
  base = model_directory.build_model(config.base, None, ComputeConfig(), layout)
  fields = peft.read_config(config.source, base.config)
  scalar = fields.pop('scalar')
  if base.scalar and not scalar:
    raise UserError(
      f'config.base={config.base} has a scalar head, and {config.source} has '
      'none; give a base without one'
    )
  adapter = adapter_base.new_adapter(
    target,
    config.base,
    None,
    base_dtype=_base_dtype(config, base),
    **fields,
  )
  model = base.clone(adapter=adapter, scalar=scalar)
  return model, peft.load_trained(config.source, model)


def _base_dtype(config: ConfigDict, base: Transformer) -> str:
  """Returns the dtype in which an imported adapter has its base."""
  if config.dtype != 'source':
    return config.dtype
  if base.adapter is not None:
    return base.adapter.base_dtype
  index = orbax_checkpoint.read_json(config.base, 'index')
  return index['arrays']['params']['embedder/table']['dtype']


def _import(
  path: str, compute: ComputeConfig, layout: ShardingLayout, dtype: str
) -> tuple[Transformer, dict]:
  """Reads a Hugging Face directory or a GGUF file."""
  if path.endswith('.gguf'):
    file, scalar = gguf.open_file(path), False
    config = gguf.read_config(file)
    source = gguf.tensor_source(file, config)
  else:
    config, scalar = hf_config.read_config(path)
    source = hf_load.open_source(path)
  hf_load.check_keys(source, config, scalar)
  model = Transformer(config, compute, layout, scalar)
  return model, hf_load.load_params(source, model, dtype)


def _copy_files(config: ConfigDict, target: str) -> None:
  """Writes the tokenizer and the other small files of a model directory."""
  if config.source == 'random':
    model_directory.write_tiny_tokenizer(target)
  elif _is_gguf(config):
    text = gguf.tokenizer_json(gguf.open_file(config.source))
    atomic_io.write_file(
      epath.Path(target) / model_directory.BPE_TOKENIZER, text
    )
  elif _is_peft(config):
    # The tokenizer, and how the base is asked.
    model_directory.copy_companions(config.base, target)
  else:
    model_directory.copy_companions(config.source, target)


def _mark_scalar(config: ConfigDict, target: str, size: ModelConfig) -> None:
  """Stores that a scalar model of Hugging Face reads the full chat template.

  A model that was trained here and exported brings its own judge.json.
  """
  if (
    config.source == 'random'
    or not model_directory.has_tokenizer(target)
    or model_directory.read_trained_judge(target)
  ):
    return
  tokenizer = model_directory.load_tokenizer(target, size)
  model_directory.write_trained_judge(
    target,
    TrainedJudge('imported', tokenizer.chat_format.name, full_template=True),
  )


def _export(
  config: ConfigDict, model: Transformer, params: dict, target: str
) -> None:
  """Writes a Hugging Face directory next to the target, then renames it."""
  # Without a slash at the end or links: a longer name is beside the target.
  target = os.path.realpath(target)
  temporary = f'{target}.export.tmp'
  if not jax.process_index():
    # Left by an export that was killed.
    shutil.rmtree(temporary, ignore_errors=True)
  multihost_utils.sync_global_devices('cleared')
  if config.direction == 'peft':
    peft.save_directory(temporary, params, model, config.base)
  else:
    hf_save.save_directory(temporary, params, model)
  _copy_files(config, temporary)
  if not jax.process_index():
    if os.path.isdir(target):
      os.rmdir(target)  # `_check_paths` has found it empty
    os.replace(temporary, target)
  multihost_utils.sync_global_devices('exported')


def _verify(
  config: ConfigDict, model: Transformer, params: dict, target: str
) -> None:
  """Compares outputs of the source and of the target in float32.

  It also compares with Hugging Face transformers, if they are installed. It
  prints the largest differences.

  Raises:
    UserError: a difference is larger than _TOLERANCE.
  """
  rng = np.random.default_rng(0)
  # Ids below 3 are control tokens.
  tokens = rng.integers(3, model.config.vocab_size, _VERIFY_SHAPE)
  expected = _outputs(model, _whole(config, target, model, params), tokens)
  if config.direction == 'checkpoint':
    # The products of an adapter are compared with its sum in float32.
    dtype = 'float32' if model.adapter else 'source'
    written_params = model_directory.load_params(target, None, model, dtype)
    outputs = {'the checkpoint': _outputs(model, written_params, tokens)}
    hf_path = config.source if _has_template(config) or _is_gguf(config) else ''
  elif config.direction == 'peft':
    trained = peft.load_trained(target, model)
    written_params = _whole(config, target, model, trained)
    outputs = {'the exported files': _outputs(model, written_params, tokens)}
    hf_path = ''
  else:
    written_model, written_params = _import(
      target, model.compute, model.layout, 'source'
    )
    outputs = {
      'the exported files': _outputs(written_model, written_params, tokens)
    }
    hf_path = target
  if hf_path:
    outputs |= _transformers_outputs(hf_path, model, tokens)
  for name, values in outputs.items():
    difference = float(np.max(np.abs(expected - values)))
    print(f'verify: largest difference to {name}: {difference:.2e}')
    if not difference <= _TOLERANCE:  # also if it is NaN
      raise UserError(
        f'outputs differ from {name} by {difference:.2e}, more than '
        f'{_TOLERANCE}; do not use {target}'
      )


def _whole(
  config: ConfigDict, target: str, model: Transformer, params: dict
) -> dict:
  """Returns all parameters of a model, of which `params` may be an adapter."""
  if model.adapter is None:
    return params
  directory = config.source if config.direction == 'peft' else target
  frozen = model_directory.load_base(directory, model)
  return lora.attach(model.adapter, frozen, params)


def _outputs(
  model: Transformer, params: dict, tokens: np.ndarray
) -> np.ndarray:
  """Returns float32 logits [P, S, V], or values [P] of a scalar head."""
  batch = Batch(
    jnp.asarray(tokens, jnp.int32),
    jnp.full(tokens.shape[:1], tokens.shape[1], jnp.int32),
  )
  # Every device computes all prompts: there are too few of them to shard.
  layout = model.layout
  rules = dict(layout.rules) | {
    'prompts': (),
    'logit_prompts': (),
    'lookup_prompts': (),
  }
  layout = ShardingLayout(layout.mesh, tuple(sorted(rules.items())))
  model = model.clone(compute=ComputeConfig(dtype='float32'), layout=layout)

  def forward(params):
    if model.scalar:
      return logprobs.values(model, params, batch)
    hidden = model.apply({'params': params}, batch).prompt
    logits = logprobs.logits(model, params['embedder']['table'], hidden)
    # The table is padded to a multiple that can be sharded.
    return logits[..., : model.config.vocab_size]

  replicated = jax.sharding.NamedSharding(
    layout.mesh, jax.sharding.PartitionSpec()
  )
  outputs = jax.jit(forward, out_shardings=replicated)(params)
  return np.asarray(outputs.addressable_data(0))


def _transformers_outputs(
  path: str, model: Transformer, tokens: np.ndarray
) -> dict[str, np.ndarray]:
  """Returns outputs of Hugging Face transformers by name; {} without it."""
  packages = ['torch', 'transformers']
  if path.endswith('.gguf'):
    packages.append('accelerate')
  missing = [x for x in packages if importlib.util.find_spec(x) is None]
  if missing:
    print(
      'verify: not compared with transformers; not installed: '
      f'{", ".join(missing)}'
    )
    return {}
  import torch
  import transformers

  family = hf_config.family_of(model.config)
  class_name = family.scalar_model if model.scalar else family.language_model
  directory, options = path, {}
  if path.endswith('.gguf'):
    directory, file = os.path.split(path)
    directory, options = directory or '.', {'gguf_file': file}
  model_class: Any = getattr(transformers, class_name)
  hf_model = model_class.from_pretrained(
    directory, attn_implementation='eager', dtype=torch.float32, **options
  ).eval()
  with torch.no_grad():
    logits = hf_model(torch.tensor(tokens)).logits.numpy()
  version = importlib.metadata.version('transformers')
  return {f'transformers {version}': logits[:, 0] if model.scalar else logits}
