"""Hugging Face's config.json, to a Size and back, refusing what we are not."""

import json
import os
from typing import Any

from grm_jax.model.sizes import Size

LANGUAGE_MODEL = 'Gemma2ForCausalLM'
SCALAR_MODEL = 'Gemma2ForSequenceClassification'

# Fields that are one number in both worlds: ours -> theirs.
_FIELDS = {
  'num_layers': 'num_hidden_layers',
  'width': 'hidden_size',
  'mlp_width': 'intermediate_size',
  'num_heads': 'num_attention_heads',
  'num_kv_heads': 'num_key_value_heads',
  'head_dim': 'head_dim',
  'query_pre_attn_scalar': 'query_pre_attn_scalar',
  'vocab_size': 'vocab_size',
  'window': 'sliding_window',
  'attn_softcap': 'attn_logit_softcapping',
  'final_softcap': 'final_logit_softcapping',
  'norm_eps': 'rms_norm_eps',
}
# What a Gemma-2 may say besides, and the only value we implement.
_FIXED = {
  'attention_bias': (False, None),
  'tie_word_embeddings': (True, None),
  'use_bidirectional_attention': (False, None),
  'hidden_activation': ('gelu_pytorch_tanh', None),
  'rope_scaling': (None,),
}


def read_json(path: str) -> Any:
  """A JSON file's content; ValueError names the file and the fault."""
  try:
    with open(path, encoding='utf-8') as file:
      return json.load(file)
  except (OSError, ValueError) as error:
    raise ValueError(f'{path} cannot be read: {error}') from error


def read_size(directory: str) -> tuple[Size, bool]:
  """(Size, whether it is a scalar model) from `directory`/config.json.

  Raises:
    ValueError: not a Gemma-2, a field missing, or a feature we do not have.
  """
  path = os.path.join(directory, 'config.json')
  fields = read_json(path)
  if not isinstance(fields, dict) or fields.get('model_type') != 'gemma2':
    kind = fields.get('model_type') if isinstance(fields, dict) else None
    raise ValueError(f'{path}: model_type is {kind!r}, expected "gemma2"')
  names = fields.get('architectures') or [LANGUAGE_MODEL]
  if names[0] not in (LANGUAGE_MODEL, SCALAR_MODEL):
    raise ValueError(
      f'{path}: architecture {names[0]}; expected {LANGUAGE_MODEL} or '
      f'{SCALAR_MODEL}'
    )
  missing = [theirs for theirs in _FIELDS.values() if theirs not in fields]
  if missing:
    raise ValueError(f'{path} lacks {", ".join(missing)}')
  _check_features(path, fields)
  scalar = names[0] == SCALAR_MODEL
  if scalar:
    _check_one_label(path, fields)
  numbers = {ours: fields[theirs] for ours, theirs in _FIELDS.items()}
  return Size(**numbers, rope_base=_rope_base(path, fields)), scalar


def write_config(size: Size, scalar: bool, dtype: str) -> dict[str, Any]:
  """The config.json of an exported model, for transformers to load."""
  fields = {
    'architectures': [SCALAR_MODEL if scalar else LANGUAGE_MODEL],
    'model_type': 'gemma2',
    'attention_bias': False,
    'attention_dropout': 0.0,
    'bos_token_id': 2,
    'eos_token_id': 1,
    'pad_token_id': 0,
    'hidden_activation': 'gelu_pytorch_tanh',
    'initializer_range': 0.02,
    'layer_types': _layer_types(size.num_layers),
    'max_position_embeddings': 8192,
    'rope_theta': size.rope_base,
    'tie_word_embeddings': True,
    'torch_dtype': dtype,
    'use_cache': True,
  }
  for ours, theirs in _FIELDS.items():
    fields[theirs] = getattr(size, ours)
  if scalar:
    fields['id2label'] = {'0': 'LABEL_0'}
    fields['label2id'] = {'LABEL_0': 0}
  return fields


def _layer_types(num_layers):
  pair = ['sliding_attention', 'full_attention']
  return pair * (num_layers // 2)


def _check_features(path, fields):
  for name, allowed in _FIXED.items():
    if fields.get(name) not in allowed:
      raise ValueError(
        f'{path}: {name} is {fields[name]!r}; only {allowed[0]!r} is '
        'implemented'
      )
  types = fields.get('layer_types')
  if types is not None and types != _layer_types(fields['num_hidden_layers']):
    raise ValueError(
      f'{path}: layer_types do not alternate sliding and full attention, '
      'beginning with sliding'
    )


def _check_one_label(path, fields):
  labels = fields.get('id2label') or {}
  count = fields.get('num_labels', len(labels) or 2)
  if count != 1:
    raise ValueError(f'{path}: {count} labels; a scalar head has 1')


def _rope_base(path, fields):
  rope = fields.get('rope_parameters') or {}
  if rope.get('rope_type', 'default') != 'default':
    raise ValueError(
      f'{path}: rope_type is {rope["rope_type"]!r}; only "default" is '
      'implemented'
    )
  return float(rope.get('rope_theta', fields.get('rope_theta', 10_000.0)))
