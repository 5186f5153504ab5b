"""Reads and writes adapters in the format of the library PEFT.

A directory has adapter_config.json and adapter_model.safetensors. The tensors
of a kernel are lora_A [rank, inputs] and lora_B [outputs, rank]. A scalar head
is stored with them, as a module that is trained as a whole.
"""

import dataclasses
import json
import os
from typing import Any

import jax
from safetensors import SafetensorError
from safetensors.numpy import save_file

from grm_jax import settings
from grm_jax.checkpoint.huggingface import load, save
from grm_jax.checkpoint.huggingface.config import read_json
from grm_jax.checkpoint.huggingface.param_mapping import (
  ParamMapping,
  param_mappings,
)
from grm_jax.errors import UserError
from grm_jax.io import atomic_io
from grm_jax.model import init as model_init
from grm_jax.model import lora
from grm_jax.model.config import ModelConfig
from grm_jax.model.transformer import Transformer

CONFIG = 'adapter_config.json'
_WEIGHTS = 'adapter_model.safetensors'
_PREFIX = 'base_model.model.'
_RANK = 'Z'  # letter of the rank in a ParamMapping
_HEAD = 'score'  # name of the scalar head
# Settings of PEFT that are read, or do not change what an adapter computes. Any
# other one must be off.
_KNOWN = frozenset(
  [
    *('peft_type', 'r', 'lora_alpha', 'use_rslora', 'target_modules'),
    *('modules_to_save', 'init_lora_weights', 'lora_dropout', 'task_type'),
    *('base_model_name_or_path', 'revision', 'inference_mode', 'auto_mapping'),
    *('peft_version', 'megatron_core', 'qalora_group_size', 'eva_config'),
  ]
)
# Initial values that leave the base as it is.
_INITIALIZATIONS = (True, False, 'gaussian', 'orthogonal', 'eva')
_CURE = 'merge the adapter with PEFT and convert the merged model'


def is_adapter(directory: str) -> bool:
  """Returns whether a directory has an adapter of PEFT, and no model."""
  names = [os.path.join(directory, x) for x in (CONFIG, 'config.json')]
  return [os.path.exists(x) for x in names] == [True, False]


def save_directory(
  directory: str, trained: dict, model: Transformer, base: str
) -> None:
  """Writes an adapter; all processes call, the first one writes.

  Args:
    directory: created if it does not exist.
    trained: the trained parameters.
    model: a model with an adapter.
    base: name or path of the base in the format of Hugging Face.

  Raises:
    UserError: the directory cannot be written.
  """
  assert model.adapter is not None
  tensors = dict(save.hf_tensors(trained, model, _mappings(model)))
  if jax.process_index():
    return
  with atomic_io.wrap_os_errors(directory):
    os.makedirs(directory, exist_ok=True)
  path = os.path.join(directory, _WEIGHTS)
  try:
    save_file(tensors, path, metadata={'format': 'pt'})
  except (OSError, SafetensorError) as error:
    raise atomic_io.cannot_write(path, error) from error
  fields = {
    'peft_type': 'LORA',
    'task_type': 'SEQ_CLS' if model.scalar else 'CAUSAL_LM',
    'base_model_name_or_path': base,
    'r': model.adapter.rank,
    'lora_alpha': model.adapter.alpha,
    'lora_dropout': 0.0,
    'target_modules': sorted(_modules(model.config, model.adapter.targets)),
    'modules_to_save': [_HEAD] if model.scalar else None,
    'bias': 'none',
    'inference_mode': True,
  }
  atomic_io.write_file(
    os.path.join(directory, CONFIG), json.dumps(fields, indent=2)
  )


def read_config(directory: str, config: ModelConfig) -> dict[str, Any]:
  """Returns rank, alpha and targets of an adapter, and whether it has a head.

  Args:
    directory: of the adapter.
    config: configuration of the base.

  Raises:
    UserError: the adapter has a part that lora.py does not compute.
  """
  path = os.path.join(directory, CONFIG)
  fields = read_json(path)
  if not isinstance(fields, dict) or fields.get('peft_type') != 'LORA':
    raise UserError(f'{path}: peft_type is not LORA; {_CURE}')
  for name, value in fields.items():
    if name not in _KNOWN and value not in (None, False, 'none', {}, []):
      raise UserError(f'{path}: {name} is {value!r}, not supported; {_CURE}')
  initial = fields.get('init_lora_weights', True)
  if initial not in _INITIALIZATIONS:
    raise UserError(
      f'{path}: init_lora_weights is {initial!r}, which changes the base; save '
      'the adapter with path_initial_model_for_weight_conversion'
    )
  rank: Any = fields.get('r')
  alpha: Any = fields.get('lora_alpha')
  settings.check_value(rank, settings.integer(1), f'{path}: r')
  settings.check_value(alpha, lora.ALPHA, f'{path}: lora_alpha')
  if fields.get('use_rslora'):
    alpha *= rank**0.5  # its scale is alpha / sqrt(rank)
  return {
    'rank': rank,
    'alpha': float(alpha),
    'targets': _targets(fields, path, config),
    'scalar': _has_head(fields, path),
  }


def base_name(directory: str) -> str:
  """Returns the name of the base that an adapter of PEFT was trained on."""
  fields = read_json(os.path.join(directory, CONFIG))
  return str(fields.get('base_model_name_or_path'))


def load_trained(directory: str, model: Transformer) -> dict:
  """Returns the parameters of an adapter, in the shardings of the model.

  Args:
    directory: of the adapter.
    model: a model with the adapter's configuration.

  Raises:
    UserError: a tensor is missing, unknown, or has another shape.
  """
  source = load.open_source(directory, [_WEIGHTS])
  mappings = _mappings(model)
  load.check_tensors(source, model.config, mappings)
  abstract = model_init.abstract_trained(model)
  return load.read_params(source, model.config, mappings, abstract, 'float32')


def _mappings(model: Transformer) -> tuple[ParamMapping, ...]:
  """Returns the trained parameters and their tensors."""
  assert model.adapter is not None
  result = []
  for mapping in param_mappings(model.config, model.scalar):
    *_, name = mapping.path
    key = _PREFIX + mapping.hf_key.removesuffix('.weight')
    if mapping.path == ('value_head', 'kernel'):
      result.append(dataclasses.replace(mapping, hf_key=f'{key}.weight'))
    if name not in model.adapter.targets:
      continue
    for factor, dims in zip(
      'ab', lora.factors(name, tuple(mapping.dims), _RANK), strict=True
    ):
      # hf_dims of a kernel are (outputs, inputs).
      outputs, inputs = mapping.hf_dims
      result.append(
        ParamMapping(
          (*mapping.path, factor),
          f'{key}.lora_{factor.upper()}.weight',
          ''.join(dims),
          (_RANK, inputs) if factor == 'a' else (outputs, _RANK),
          mapping.layer,
          rank=model.adapter.rank,
        )
      )
  return tuple(result)


def _modules(config: ModelConfig, targets: tuple[str, ...]) -> dict[str, str]:
  """Returns names of PEFT's modules -> names of kernels, such as q_proj."""
  return {
    mapping.hf_key.split('.')[-2]: mapping.path[-1]
    for mapping in param_mappings(config, scalar=False)
    if mapping.path[-1] in targets
  }


def _targets(fields, path: str, config: ModelConfig) -> tuple[str, ...]:
  """Returns the kernels that an adapter changes, in the order of TARGETS."""
  modules = fields.get('target_modules')
  known = _modules(config, lora.TARGETS)
  if not isinstance(modules, list) or not {*modules} <= {*known}:
    raise UserError(
      f'{path}: target_modules is {modules!r}; supported are lists of '
      f'{", ".join(known)}; {_CURE}'
    )
  names = {known[x] for x in modules}
  return tuple(x for x in lora.TARGETS if x in names)


def _has_head(fields, path: str) -> bool:
  """Returns whether a scalar head is stored; checks that nothing else is."""
  # PEFT also lists 'classifier', the name of the head of other models.
  saved = {*(fields.get('modules_to_save') or [])}
  if saved - {_HEAD, 'classifier'}:
    raise UserError(
      f'{path}: modules_to_save is {sorted(saved)}; only {_HEAD!r}, a scalar '
      f'head, is supported; {_CURE}'
    )
  return _HEAD in saved
