"""Weights between Hugging Face directories (or GGUF) and our checkpoints.

Nothing here holds a whole checkpoint beside its arrays: import reads each
device's slices straight from the files, export writes one file at a time.
"""

import importlib.metadata
import importlib.util
import os
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from grm_jax.checkpoint import gguf as gguf_file
from grm_jax.checkpoint import model_directory
from grm_jax.checkpoint.huggingface import config as huggingface_config
from grm_jax.checkpoint.huggingface import load as hf_load
from grm_jax.checkpoint.huggingface import save as hf_save
from grm_jax.errors import UserError
from grm_jax.io import atomic_io
from grm_jax.model import config as model_config
from grm_jax.model import logprobs
from grm_jax.model.batch import Batch
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.model.transformer import Transformer
from grm_jax.sharding import mesh
from grm_jax.sharding.rules import ShardingLayout

# float32 logits of the same weights by two implementations differ by less.
_TOLERANCE = 1e-3
_VERIFY_SHAPE = (2, 64)


def run(config: ConfigDict, workdir: str) -> None:
  """Converts `config.source` to `config.target`.

  Raises:
    UserError: a wrong path, a target that exists, a checkpoint that is not
      what it says it is, or logits that differ (`config.verify`).
  """
  target = config.target or (workdir and os.path.join(workdir, 'model'))
  _check_paths(config, target)
  start = time.monotonic()
  layout = mesh.from_config(config)
  model, params = _read(config, layout)
  logging.info('read %s in %.1f s', config.source, time.monotonic() - start)
  if config.direction == 'checkpoint':
    _copy_files(config, target)
    meta = {'source': config.source, 'step': 0}
    model_directory.save(target, 0, model, params, meta)
  else:
    _export(config, model, params, target)
  seconds = time.monotonic() - start
  print(f'{config.source} -> {target} ({config.to}) in {seconds:.1f} s')
  if config.verify:
    _verify(config, model, params, target)


def _check_paths(config, target):
  if config.direction not in ('checkpoint', 'huggingface'):
    raise UserError(
      f"config.direction is {config.to!r}; it can be 'checkpoint' or 'huggingface'"
    )
  if not config.source:
    raise UserError("config.source is empty; give a directory or 'random'")
  for name, path in (('source', config.source), ('target', target)):
    # These files are mapped into memory, which buckets cannot be.
    if '://' in path and (name == 'target') == (
      config.direction == 'huggingface'
    ):
      what = 'GGUF file' if _is_gguf(config) else 'Hugging Face directory'
      raise UserError(
        f'config.{name}={path}: a {what} must be local; copy it with `gcloud '
        'storage cp -r`'
      )
  if _is_gguf(config):
    if not epath.Path(config.source).is_file():
      raise UserError(f'config.source {config.source} is not there')
  elif config.source != 'random' and not epath.Path(config.source).is_dir():
    raise UserError(f'config.source {config.source} is not a directory')
  if not target:
    raise UserError('give --config.target=DIR or --workdir=DIR')
  if epath.Path(target).is_file() or _in_use(target, config.direction):
    raise UserError(
      f'config.target {target} exists; choose another or delete it'
    )


def _is_gguf(config):
  return config.direction == 'checkpoint' and config.source.endswith('.gguf')


def _in_use(target, to):
  """Whether a directory holds more than what a killed conversion leaves."""
  path = epath.Path(target)
  names = [x.name for x in path.iterdir()] if path.is_dir() else []
  if to == 'huggingface':
    return bool(names)
  left = (*model_directory.COMPANIONS, '.tmp', '.orbax-checkpoint-tmp')
  return any(not any(part in name for part in left) for name in names)


def _read(config, layout: ShardingLayout) -> tuple[Transformer, dict]:
  kind = 'float32' if config.dtype == 'source' else config.dtype
  if kind not in ('float32', 'bfloat16'):
    raise UserError(
      f"config.dtype is {config.dtype!r}; it can be 'source', 'float32' or "
      "'bfloat16'"
    )
  compute = ComputeConfig(param_dtype=kind)
  if config.source == 'random':
    size = model_config.named(config.size)
    model = Transformer(size, compute, layout, config.scalar)
    return model, model_directory.random(model, config.seed)
  if config.direction == 'huggingface':
    step = model_directory.step_of(config.checkpoint_step)
    model = model_directory.build(config.source, step, compute, layout)
    params = model_directory.load_params(
      config.source, step, model, config.dtype
    )
    return model, params
  return _import(config.source, compute, layout, config.dtype)


def _import(path, compute, layout, dtype):
  """(model, parameters) of a Hugging Face directory or a GGUF file."""
  if path.endswith('.gguf'):
    file, scalar = gguf_file.open_file(path), False
    size = gguf_file.size_of(file)
    source = gguf_file.source(file, size)
  else:
    size, scalar = huggingface_config.read_size(path)
    source = hf_load.open_source(path)
  hf_load.check_keys(source, size, scalar)
  model = Transformer(size, compute, layout, scalar)
  return model, hf_load.load_params(source, model, dtype)


def _copy_files(config, target):
  if config.source == 'random':
    model_directory.write_tiny_tokenizer(target)
  elif _is_gguf(config):
    text = gguf_file.tokenizer_json(gguf_file.open_file(config.source))
    atomic_io.write_whole(
      epath.Path(target) / model_directory.BPE_TOKENIZER, text
    )
  else:
    model_directory.copy_companions(config.source, target)


def _export(config, model, params, target):
  """Writes a Hugging Face directory beside `target`, then renames it."""
  temporary = f'{target}.tmp'
  if not jax.process_index():
    # What an export that was killed left.
    shutil.rmtree(temporary, ignore_errors=True)
  multihost_utils.sync_global_devices('cleared')
  hf_save.save_directory(temporary, params, model)
  _copy_files(config, temporary)
  if not jax.process_index():
    if os.path.isdir(target):
      os.rmdir(target)
    os.replace(temporary, target)
  multihost_utils.sync_global_devices('exported')


def _verify(config, model: Transformer, params: dict, target: str) -> None:
  """Compares float32 logits (or values) of what was read and of what is now
  on disk, and prints the largest difference.
  """
  rng = np.random.default_rng(0)
  tokens = rng.integers(3, model.size.vocab_size, _VERIFY_SHAPE)
  ours = _outputs(model, params, tokens)
  importing = config.direction == 'checkpoint'
  if importing:
    back = model_directory.load_params(target, None, model)
    found = {'the checkpoint': _outputs(model, back, tokens)}
  else:
    back = _import(target, model.compute, model.layout, 'source')
    found = {'the exported files': _outputs(*back, tokens)}
  theirs = config.source if importing else target
  if config.source != 'random' or not importing:
    found |= _transformers_outputs(theirs, model, tokens)
  for name, values in found.items():
    difference = float(np.max(np.abs(ours - values)))
    print(f'verify: largest difference to {name}: {difference:.2e}')
    if not difference <= _TOLERANCE:
      raise UserError(
        f'outputs differ from {name} by {difference:.2e}, more than '
        f'{_TOLERANCE}; do not use {target}'
      )


def _outputs(model, params, tokens):
  """float32 logits [B, M, V] of live rows, or values [B]."""
  batch = Batch(
    jnp.asarray(tokens, jnp.int32),
    jnp.full(tokens.shape[:1], tokens.shape[1], jnp.int32),
  )
  # Rows are computed on every device: verification is no time to shard them.
  layout = model.layout
  rules = dict(layout.rules) | {'prompts': (), 'logit_prompts': ()}
  rules |= {'lookup_prompts': ()}
  layout = ShardingLayout(layout.mesh, tuple(sorted(rules.items())))
  model = model.clone(compute=ComputeConfig(dtype='float32'), layout=layout)

  def function(params):
    if model.scalar:
      return logprobs.values(model, params, batch)
    hidden = model.apply({'params': params}, batch).prompt
    x = logprobs.logits(model, params['embedder']['table'], hidden)
    return x[..., : model.size.vocab_size]

  everywhere = jax.sharding.NamedSharding(
    layout.mesh, jax.sharding.PartitionSpec()
  )
  out = jax.jit(function, out_shardings=everywhere)(params)
  return np.asarray(out.addressable_data(0))


def _transformers_outputs(path, model, tokens):
  """The same by Hugging Face transformers, where it is installed."""
  needed = ['torch', 'transformers']
  if path.endswith('.gguf'):
    needed.append('accelerate')
  missing = [x for x in needed if importlib.util.find_spec(x) is None]
  if missing:
    print(f'verify: not compared with transformers: no {", ".join(missing)}')
    return {}
  import torch
  import transformers

  family = huggingface_config.family_of(model.size)
  name = family.scalar_model if model.scalar else family.language_model
  directory, gguf = path, {}
  if path.endswith('.gguf'):
    directory, file = os.path.split(path)
    directory, gguf = directory or '.', {'gguf_file': file}
  kind = getattr(transformers, name)
  theirs = kind.from_pretrained(
    directory, attn_implementation='eager', dtype=torch.float32, **gguf
  ).eval()
  with torch.no_grad():
    out = theirs(torch.tensor(tokens)).logits.numpy()
  version = importlib.metadata.version('transformers')
  return {f'transformers {version}': out[:, 0] if model.scalar else out}
