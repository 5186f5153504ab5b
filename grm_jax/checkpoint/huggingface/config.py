"""Hugging Face's config.json, to a Size and back, refusing what we are not."""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

from grm_jax.errors import UserError
from grm_jax.model.config import LLAMA, ModelConfig


@dataclasses.dataclass(frozen=True)
class HFFamily:
  """What a config.json of one model_type says.

  Attributes:
    kind: its model_type.
    name: its architectures are {name}ForCausalLM and
      {name}ForSequenceClassification.
    fields: one number in both worlds: ours -> theirs.
    given: of our Size, what such a model always is.
    fixed: what it may say besides -> the values that we implement. The first
      is written where it is not None.
    ids: of its own tokenizer.
  """

  kind: str
  name: str
  fields: Mapping[str, str]
  given: Mapping[str, Any]
  fixed: Mapping[str, tuple[Any, ...]]
  ids: Mapping[str, int]

  @property
  def language_model(self) -> str:
    return f'{self.name}ForCausalLM'

  @property
  def scalar_model(self) -> str:
    return f'{self.name}ForSequenceClassification'


_BOTH = {
  'num_layers': 'num_hidden_layers',
  'width': 'hidden_size',
  'mlp_width': 'intermediate_size',
  'num_heads': 'num_attention_heads',
  'num_kv_heads': 'num_key_value_heads',
  'vocab_size': 'vocab_size',
  'norm_eps': 'rms_norm_eps',
}
_FIXED = {
  'attention_bias': (False, None),
  'rope_scaling': (None,),
}
GEMMA2 = HFFamily(
  kind='gemma2',
  name='Gemma2',
  fields={
    **_BOTH,
    'head_dim': 'head_dim',
    'query_pre_attn_scalar': 'query_pre_attn_scalar',
    'window': 'sliding_window',
    'attn_softcap': 'attn_logit_softcapping',
    'final_softcap': 'final_logit_softcapping',
  },
  given={},
  fixed={
    **_FIXED,
    'tie_word_embeddings': (True, None),
    'use_bidirectional_attention': (False, None),
    'hidden_activation': ('gelu_pytorch_tanh', None),
  },
  ids={'bos_token_id': 2, 'eos_token_id': 1, 'pad_token_id': 0},
)
LLAMA_FAMILY = HFFamily(
  kind='llama',
  name='Llama',
  fields=_BOTH,
  given=LLAMA,
  # Unlike Gemma's, a Llama that does not say so is not tied.
  fixed={
    **_FIXED,
    'tie_word_embeddings': (True,),
    'hidden_act': ('silu', None),
    'mlp_bias': (False, None),
  },
  ids={'bos_token_id': 1, 'eos_token_id': 2, 'pad_token_id': 2},  # SmolLM2's
)


def family_of(size: ModelConfig) -> HFFamily:
  """The family that a model of this size is written as."""
  return GEMMA2 if size.post_norms else LLAMA_FAMILY


def read_json(path: str) -> Any:
  """A JSON file's content; UserError names the file and the fault."""
  try:
    with open(path, encoding='utf-8') as file:
      return json.load(file)
  except (OSError, ValueError) as error:
    raise UserError(f'{path} cannot be read: {error}') from error


def read_size(directory: str) -> tuple[ModelConfig, bool]:
  """(Size, whether it is a scalar model) from `directory`/config.json.

  Raises:
    UserError: neither a Gemma-2 nor a Llama, a field missing, or a feature
      that we do not have.
  """
  path = os.path.join(directory, 'config.json')
  fields = read_json(path)
  family = _family(path, fields)
  names = fields.get('architectures') or [family.language_model]
  if names[0] not in (family.language_model, family.scalar_model):
    raise UserError(
      f'{path}: architecture {names[0]}; expected {family.language_model} or '
      f'{family.scalar_model}'
    )
  missing = [x for x in family.fields.values() if x not in fields]
  if missing:
    raise UserError(f'{path} lacks {", ".join(missing)}')
  _check_features(path, family, fields)
  scalar = names[0] == family.scalar_model
  if scalar:
    _check_one_label(path, fields)
  return _size(path, family, fields), scalar


def _family(path, fields) -> HFFamily:
  kind = fields.get('model_type') if isinstance(fields, dict) else None
  for family in (GEMMA2, LLAMA_FAMILY):
    if kind == family.kind:
      return family
  raise UserError(
    f'{path}: model_type is {kind!r}, expected "gemma2" or "llama"'
  )


def _size(path, family, fields) -> ModelConfig:
  numbers = {ours: fields[theirs] for ours, theirs in family.fields.items()}
  if family is LLAMA_FAMILY:
    heads = numbers['width'] // numbers['num_heads']
    numbers['head_dim'] = fields.get('head_dim') or heads
    numbers['query_pre_attn_scalar'] = numbers['head_dim']
  rope_base = _rope_base(path, fields)
  return ModelConfig(**numbers, rope_base=rope_base, **family.given)


def write_config(size: ModelConfig, scalar: bool, dtype: str) -> dict[str, Any]:
  """The config.json of an exported model, for transformers to load."""
  family = family_of(size)
  fields = {
    'architectures': [family.scalar_model if scalar else family.language_model],
    'model_type': family.kind,
    'attention_dropout': 0.0,
    'head_dim': size.head_dim,
    'initializer_range': 0.02,
    'max_position_embeddings': 8192,
    'rope_theta': size.rope_base,
    'torch_dtype': dtype,
    'use_cache': True,
    **family.ids,
  }
  for name, allowed in family.fixed.items():
    if allowed[0] is not None:
      fields[name] = allowed[0]
  for ours, theirs in family.fields.items():
    fields[theirs] = getattr(size, ours)
  if family is GEMMA2:
    fields['layer_types'] = _layer_types(size.num_layers)
  if scalar:
    fields['id2label'] = {'0': 'LABEL_0'}
    fields['label2id'] = {'LABEL_0': 0}
  return fields


def _layer_types(num_layers):
  pair = ['sliding_attention', 'full_attention']
  return pair * (num_layers // 2)


def _check_features(path, family, fields):
  for name, allowed in family.fixed.items():
    if fields.get(name) not in allowed:
      raise UserError(
        f'{path}: {name} is {fields.get(name)!r}; only {allowed[0]!r} is '
        'implemented'
      )
  expected = _layer_types(fields['num_hidden_layers'])
  if family is GEMMA2 and (fields.get('layer_types') or expected) != expected:
    raise UserError(
      f'{path}: layer_types do not alternate sliding and full attention, '
      'beginning with sliding'
    )


def _check_one_label(path, fields):
  labels = fields.get('id2label') or {}
  count = fields.get('num_labels', len(labels) or 2)
  if count != 1:
    raise UserError(f'{path}: {count} labels; a scalar head has 1')


def _rope_base(path, fields):
  rope = fields.get('rope_parameters') or {}
  if rope.get('rope_type', 'default') != 'default':
    raise UserError(
      f'{path}: rope_type is {rope["rope_type"]!r}; only "default" is '
      'implemented'
    )
  return float(rope.get('rope_theta', fields.get('rope_theta', 10_000.0)))
