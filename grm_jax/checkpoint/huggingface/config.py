"""Converts Hugging Face's config.json to a ModelConfig and back.

Models with features that grm_jax does not implement are rejected.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

from grm_jax.errors import UserError
from grm_jax.model.config import LLAMA, ModelConfig


@dataclasses.dataclass(frozen=True)
class HFFamily:
  """Contents of a config.json of one model_type.

  Attributes:
    model_type: value of `model_type`.
    class_prefix: architectures are {class_prefix}ForCausalLM and
      {class_prefix}ForSequenceClassification.
    fields: ModelConfig field -> config.json field with the same value.
    constants: ModelConfig fields with the same value for every such model.
    required: config.json field -> supported values. The first is written if it
      is not None.
    token_ids: special token ids of the family's tokenizer.
  """

  model_type: str
  class_prefix: str
  fields: Mapping[str, str]
  constants: Mapping[str, Any]
  required: Mapping[str, tuple[Any, ...]]
  token_ids: Mapping[str, int]

  @property
  def language_model(self) -> str:
    """Architecture with a language-model head."""
    return f'{self.class_prefix}ForCausalLM'

  @property
  def scalar_model(self) -> str:
    """Architecture with a scalar head."""
    return f'{self.class_prefix}ForSequenceClassification'


_COMMON_FIELDS = {
  'num_layers': 'num_hidden_layers',
  'width': 'hidden_size',
  'mlp_width': 'intermediate_size',
  'num_heads': 'num_attention_heads',
  'num_kv_heads': 'num_key_value_heads',
  'vocab_size': 'vocab_size',
  'norm_eps': 'rms_norm_eps',
}
_COMMON_REQUIRED = {
  'attention_bias': (False, None),
  'rope_scaling': (None,),
}
GEMMA2 = HFFamily(
  model_type='gemma2',
  class_prefix='Gemma2',
  fields={
    **_COMMON_FIELDS,
    'head_dim': 'head_dim',
    'query_pre_attn_scalar': 'query_pre_attn_scalar',
    'window': 'sliding_window',
    'attn_softcap': 'attn_logit_softcapping',
    'final_softcap': 'final_logit_softcapping',
  },
  constants={},
  required={
    **_COMMON_REQUIRED,
    'tie_word_embeddings': (True, None),
    'use_bidirectional_attention': (False, None),
    'hidden_activation': ('gelu_pytorch_tanh', None),
  },
  token_ids={'bos_token_id': 2, 'eos_token_id': 1, 'pad_token_id': 0},
)
LLAMA_FAMILY = HFFamily(
  model_type='llama',
  class_prefix='Llama',
  fields=_COMMON_FIELDS,
  constants=LLAMA,
  # The default is tied for Gemma but not for Llama, so None is missing here.
  required={
    **_COMMON_REQUIRED,
    'tie_word_embeddings': (True,),
    'hidden_act': ('silu', None),
    'mlp_bias': (False, None),
  },
  token_ids={
    'bos_token_id': 1,
    'eos_token_id': 2,
    'pad_token_id': 2,
  },  # SmolLM2's
)


def family_of(config: ModelConfig) -> HFFamily:
  """Returns the family as which a model is exported."""
  return GEMMA2 if config.post_norms else LLAMA_FAMILY


def read_json(path: str) -> Any:
  """Returns the content of a JSON file.

  Raises:
    UserError: the file cannot be read or is not JSON.
  """
  try:
    with open(path, encoding='utf-8') as file:
      return json.load(file)
  except (OSError, ValueError) as error:
    raise UserError(
      f'cannot read {path}: {error}; give a Hugging Face model directory'
    ) from error


def read_config(directory: str) -> tuple[ModelConfig, bool]:
  """Reads `directory`/config.json.

  Returns:
    (configuration, whether the model has a scalar head).

  Raises:
    UserError: not a Gemma-2 or Llama model, a missing field, or an unsupported
      feature.
  """
  path = os.path.join(directory, 'config.json')
  fields = read_json(path)
  family = _find_family(path, fields)
  architecture = (fields.get('architectures') or [family.language_model])[0]
  if architecture not in (family.language_model, family.scalar_model):
    raise UserError(
      f'{path}: architecture {architecture}; expected {family.language_model} '
      f'or {family.scalar_model}'
    )
  missing = [x for x in family.fields.values() if x not in fields]
  if missing:
    raise UserError(f'{path} has no {", ".join(missing)}')
  _check_features(path, family, fields)
  is_scalar = architecture == family.scalar_model
  if is_scalar:
    _check_num_labels(path, fields)
  return _model_config(path, family, fields), is_scalar


def _find_family(path: str, fields: Any) -> HFFamily:
  model_type = fields.get('model_type') if isinstance(fields, dict) else None
  for family in (GEMMA2, LLAMA_FAMILY):
    if model_type == family.model_type:
      return family
  raise UserError(
    f'{path}: model_type is {model_type!r}; expected "gemma2" or "llama"'
  )


def _model_config(
  path: str, family: HFFamily, fields: Mapping[str, Any]
) -> ModelConfig:
  values = {ours: fields[theirs] for ours, theirs in family.fields.items()}
  if family is LLAMA_FAMILY:
    head_dim = fields.get('head_dim')
    values['head_dim'] = head_dim or values['width'] // values['num_heads']
    values['query_pre_attn_scalar'] = values['head_dim']
  rope_base = _rope_base(path, fields)
  return ModelConfig(**values, rope_base=rope_base, **family.constants)


def to_hf_config(
  config: ModelConfig, scalar: bool, dtype: str
) -> dict[str, Any]:
  """Returns the config.json of an exported model, for transformers to load."""
  family = family_of(config)
  fields = {
    'architectures': [family.scalar_model if scalar else family.language_model],
    'model_type': family.model_type,
    'attention_dropout': 0.0,
    'head_dim': config.head_dim,
    'initializer_range': 0.02,
    'max_position_embeddings': 8192,
    'rope_theta': config.rope_base,
    'torch_dtype': dtype,
    'use_cache': True,
    **family.token_ids,
  }
  for name, supported in family.required.items():
    if supported[0] is not None:
      fields[name] = supported[0]
  for ours, theirs in family.fields.items():
    fields[theirs] = getattr(config, ours)
  if family is GEMMA2:
    fields['layer_types'] = _layer_types(config.num_layers)
  if scalar:
    fields['id2label'] = {'0': 'LABEL_0'}
    fields['label2id'] = {'LABEL_0': 0}
  return fields


def _layer_types(num_layers: int) -> list[str]:
  pair = ['sliding_attention', 'full_attention']
  return pair * (num_layers // 2)


def _check_features(
  path: str, family: HFFamily, fields: Mapping[str, Any]
) -> None:
  for name, supported in family.required.items():
    if fields.get(name) not in supported:
      raise UserError(
        f'{path}: {name} is {fields.get(name)!r}; only {supported[0]!r} is '
        'supported'
      )
  expected = _layer_types(fields['num_hidden_layers'])
  if family is GEMMA2 and (fields.get('layer_types') or expected) != expected:
    raise UserError(
      f'{path}: layer_types must alternate sliding and full attention, '
      'starting with sliding'
    )


def _check_num_labels(path: str, fields: Mapping[str, Any]) -> None:
  labels = fields.get('id2label') or {}
  num_labels = fields.get('num_labels', len(labels) or 2)
  if num_labels != 1:
    raise UserError(f'{path}: {num_labels} labels; a scalar head has 1')


def _rope_base(path: str, fields: Mapping[str, Any]) -> float:
  rope = fields.get('rope_parameters') or {}
  if rope.get('rope_type', 'default') != 'default':
    raise UserError(
      f'{path}: rope_type is {rope["rope_type"]!r}; only "default" is supported'
    )
  return float(rope.get('rope_theta', fields.get('rope_theta', 10_000.0)))
