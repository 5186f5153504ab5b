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

from grm_jax.errors import UserError
from grm_jax.model import gguf_file, head, sizes
from grm_jax.model.batch import Batch
from grm_jax.model.compute import Compute
from grm_jax.model.gemma import Gemma
from grm_jax.model.huggingface import config as huggingface_config
from grm_jax.model.huggingface import reading, writing
from grm_jax.parallel import files, mesh
from grm_jax.parallel.rules import Layout
from grm_jax.training import pretrained

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
  if config.to == 'checkpoint':
    _copy_files(config, target)
    meta = {'source': config.source, 'step': 0}
    pretrained.save(target, 0, model, params, meta)
  else:
    _export(config, model, params, target)
  seconds = time.monotonic() - start
  print(f'{config.source} -> {target} ({config.to}) in {seconds:.1f} s')
  if config.verify:
    _verify(config, model, params, target)


def _check_paths(config, target):
  if config.to not in ('checkpoint', 'huggingface'):
    raise UserError(
      f"config.to is {config.to!r}; it can be 'checkpoint' or 'huggingface'"
    )
  if not config.source:
    raise UserError("config.source is empty; give a directory or 'random'")
  for name, path in (('source', config.source), ('target', target)):
    # These files are mapped into memory, which buckets cannot be.
    if '://' in path and (name == 'target') == (config.to == 'huggingface'):
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
  if epath.Path(target).is_file() or _in_use(target, config.to):
    raise UserError(
      f'config.target {target} exists; choose another or delete it'
    )


def _is_gguf(config):
  return config.to == 'checkpoint' and config.source.endswith('.gguf')


def _in_use(target, to):
  """Whether a directory holds more than what a killed conversion leaves."""
  path = epath.Path(target)
  names = [x.name for x in path.iterdir()] if path.is_dir() else []
  if to == 'huggingface':
    return bool(names)
  left = (*pretrained.COMPANIONS, '.tmp', '.orbax-checkpoint-tmp')
  return any(not any(part in name for part in left) for name in names)


def _read(config, layout: Layout) -> tuple[Gemma, dict]:
  kind = 'float32' if config.dtype == 'source' else config.dtype
  if kind not in ('float32', 'bfloat16'):
    raise UserError(
      f"config.dtype is {config.dtype!r}; it can be 'source', 'float32' or "
      "'bfloat16'"
    )
  compute = Compute(param_dtype=kind)
  if config.source == 'random':
    size = sizes.named(config.size)
    model = Gemma(size, compute, layout, config.scalar)
    return model, pretrained.random(model, config.seed)
  if config.to == 'huggingface':
    step = pretrained.step_of(config.step)
    model = pretrained.build(config.source, step, compute, layout)
    params = pretrained.load_params(config.source, step, model, config.dtype)
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
    source = reading.open_source(path)
  reading.check_keys(source, size, scalar)
  model = Gemma(size, compute, layout, scalar)
  return model, reading.load_params(source, model, dtype)


def _copy_files(config, target):
  if config.source == 'random':
    pretrained.write_tiny_tokenizer(target)
  elif _is_gguf(config):
    text = gguf_file.tokenizer_json(gguf_file.open_file(config.source))
    files.write_whole(epath.Path(target) / pretrained.BPE_TOKENIZER, text)
  else:
    pretrained.copy_companions(config.source, target)


def _export(config, model, params, target):
  """Writes a Hugging Face directory beside `target`, then renames it."""
  temporary = f'{target}.tmp'
  if not jax.process_index():
    # What an export that was killed left.
    shutil.rmtree(temporary, ignore_errors=True)
  multihost_utils.sync_global_devices('cleared')
  writing.save_directory(temporary, params, model)
  _copy_files(config, temporary)
  if not jax.process_index():
    if os.path.isdir(target):
      os.rmdir(target)
    os.replace(temporary, target)
  multihost_utils.sync_global_devices('exported')


def _verify(config, model: Gemma, params: dict, target: str) -> None:
  """Compares float32 logits (or values) of what was read and of what is now
  on disk, and prints the largest difference."""
  rng = np.random.default_rng(0)
  tokens = rng.integers(3, model.size.vocab_size, _VERIFY_SHAPE)
  ours = _outputs(model, params, tokens)
  importing = config.to == 'checkpoint'
  if importing:
    back = pretrained.load_params(target, None, model)
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
  layout = Layout(layout.mesh, tuple(sorted(rules.items())))
  model = model.clone(compute=Compute(dtype='float32'), layout=layout)

  def function(params):
    if model.scalar:
      return head.values(model, params, batch)
    hidden = model.apply({'params': params}, batch).prompt
    x = head.logits(model, params['embedder']['table'], hidden)
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
