"""Converts Hugging Face's config.json to a ModelConfig and back.

Models with features that grm_jax does not implement are rejected, and so are
fields that are not known here: they may change what the model computes.
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
  'is_causal': (None, True),
  'is_decoder': (None, False, True),  # causal in any case
  'partial_rotary_factor': (None, 1.0),
}
# Fields that no output depends on: of training, generation, or other programs.
_IGNORED = frozenset(
  (
    *('_attn_implementation', '_name_or_path', 'architectures', 'auto_map'),
    *('attention_dropout', 'bos_token_id', 'cache_implementation', 'dtype'),
    *('eos_token_id', 'id2label', 'initializer_range', 'is_llama_config'),
    *('label2id', 'max_position_embeddings', 'model_type', 'num_labels'),
    *('pad_token_id', 'pretraining_tp', 'problem_type', 'tokenizer_class'),
    *('torch_dtype', 'transformers.js_config', 'transformers_version'),
    *('unsloth_fixed', 'unsloth_version', 'use_cache', 'unk_token_id'),
    *('return_dict', 'finetuning_task', 'task_specific_params'),
  )
)
# Flags that transformers wrote into every file; true is refused.
_OFF = frozenset(
  (
    *('add_cross_attention', 'do_sample', 'early_stopping'),
    *('is_encoder_decoder', 'output_attentions'),
    *('output_hidden_states', 'output_scores', 'remove_invalid_values'),
    *('return_dict_in_generate', 'tie_encoder_decoder', 'torchscript'),
    *('use_bfloat16', 'rope_interleaved'),
  )
)
# ModelConfig fields that can be None, and those that need not be integers.
_OPTIONAL = ('window', 'attn_softcap', 'final_softcap', 'head_dim')
_REAL = ('norm_eps', 'query_pre_attn_scalar', 'attn_softcap', 'final_softcap')
_MAX_NUMBER = 1e30
_ROPE_FIELDS = ('rope_theta', 'rope_parameters', 'rope_scaling')
_ROPE_KEYS = ('rope_type', 'type', 'rope_theta', 'partial_rotary_factor')
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
    # transformers does not read it.
    'hidden_act': (None, 'gelu_pytorch_tanh', 'gelu'),
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
    # transformers does not read it.
    'hidden_activation': (None, 'silu', 'gelu_pytorch_tanh'),
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
  architectures = fields.get('architectures') or [family.language_model]
  architecture = architectures[0] if isinstance(architectures, list) else None
  if architecture not in (family.language_model, family.scalar_model):
    raise UserError(
      f'{path}: architectures is {architectures!r}; expected '
      f'{family.language_model} or {family.scalar_model}'
    )
  missing = [x for x in family.fields.values() if x not in fields]
  if missing:
    raise UserError(f'{path} has no {", ".join(missing)}')
  _check_sizes(path, family, fields)
  _check_features(path, family, fields)
  is_scalar = architecture == family.scalar_model
  if is_scalar:
    _check_num_labels(path, fields)
  return _model_config(path, family, fields), is_scalar


def check_tokenizer(directory: str) -> None:
  """Checks that the tokenizer of a model is one that can be read.

  Raises:
    UserError: config.json cannot be read, or a Gemma-2 model has only a
      tokenizer.json.
  """
  path = os.path.join(directory, 'config.json')
  family = _find_family(path, read_json(path))
  has_model, has_json = (
    os.path.exists(os.path.join(directory, name))
    for name in ('tokenizer.model', 'tokenizer.json')
  )
  if family is GEMMA2 and has_json and not has_model:
    raise UserError(
      f'{directory} has a tokenizer.json but no tokenizer.model, which Gemma-2 '
      'needs; download tokenizer.model from the model that these weights come '
      'from, such as google/gemma-2-2b-it, into this directory'
    )


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
    fields['layer_types'] = _layer_types(family, config.num_layers)
  if scalar:
    fields['id2label'] = {'0': 'LABEL_0'}
    fields['label2id'] = {'LABEL_0': 0}
  return fields


def _layer_types(family: HFFamily, num_layers: int) -> list[str]:
  pair = ['sliding_attention', 'full_attention']
  if family is LLAMA_FAMILY:
    pair = ['full_attention'] * 2
  # An odd number is reported by ModelConfig.
  return (pair * num_layers)[:num_layers]


def _check_features(
  path: str, family: HFFamily, fields: Mapping[str, Any]
) -> None:
  for name, supported in family.required.items():
    if not _is_one_of(fields.get(name), supported):
      raise UserError(
        f'{path}: {name} is {fields.get(name)!r}; only {supported[0]!r} is '
        'supported'
      )
  expected = _layer_types(family, fields['num_hidden_layers'])
  if (fields.get('layer_types') or expected) != expected:
    raise UserError(
      f'{path}: layer_types is {fields["layer_types"]!r}; only '
      f'{expected[:2]!r}, repeated, is supported'
    )
  window = fields.get('sliding_window')
  if family is GEMMA2 and fields.get('sliding_window_size', window) != window:
    raise UserError(
      f'{path}: sliding_window_size is {fields["sliding_window_size"]!r} and '
      f'sliding_window is {window!r}; set both to the same value'
    )
  _check_unknown(path, family, fields)


def _is_one_of(value: Any, supported: tuple[Any, ...]) -> bool:
  """Returns whether a value is supported; 1 and 0 are not true and false."""
  return any(
    value == x and isinstance(value, bool) == isinstance(x, bool)
    for x in supported
  )


def _check_unknown(
  path: str, family: HFFamily, fields: Mapping[str, Any]
) -> None:
  """Raises UserError for a field that may change what the model computes."""
  known = {*family.fields.values(), *family.required, *_ROPE_FIELDS}
  known |= {*_IGNORED, 'head_dim', 'layer_types'}
  known |= {'sliding_window_size'} if family is GEMMA2 else set()
  unknown = {
    name: value
    for name, value in fields.items()
    # Not given, or one of the flags of transformers that are off.
    if name not in known
    and not (value is None or value in ('', [], {}))
    and not (value is False and name in _OFF)
  }
  if unknown:
    name, value = min(unknown.items())
    raise UserError(
      f'{path}: {name} is {value!r}, which is not supported; use a model '
      'without it. If it does not change the outputs, remove it from a copy of '
      'the file'
    )


def _check_sizes(
  path: str, family: HFFamily, fields: Mapping[str, Any]
) -> None:
  """Raises UserError for a number that is not one, or not positive."""
  for ours, theirs in (*family.fields.items(), ('head_dim', 'head_dim')):
    value: Any = fields.get(theirs)
    is_required = family is GEMMA2 and ours == 'head_dim'
    if value is None and ours in _OPTIONAL and not is_required:
      continue
    kinds = int | float if ours in _REAL else int
    is_number = isinstance(value, kinds) and not isinstance(value, bool)
    if not (is_number and 0 < value <= _MAX_NUMBER):
      kind = 'number' if ours in _REAL else 'integer'
      raise UserError(
        f'{path}: {theirs} is {value!r}; it must be a positive {kind}'
      )


def _check_num_labels(path: str, fields: Mapping[str, Any]) -> None:
  labels = fields.get('id2label') or {}
  if not isinstance(labels, dict):
    raise UserError(f'{path}: id2label is {labels!r}; it must be an object')
  num_labels = fields.get('num_labels', len(labels) or 2)
  if num_labels != 1:
    raise UserError(f'{path}: {num_labels} labels; a scalar head has 1')


def _rope_base(path: str, fields: Mapping[str, Any]) -> float:
  """Returns the base of the rotary frequencies, without any scaling.

  transformers has read scaling from `rope_scaling` and `rope_parameters`, with
  the type under `rope_type` and `type`, or one such dict per layer type.
  """
  given = {
    x: fields[x]
    for x in _ROPE_FIELDS[1:]
    if x in fields and not (fields[x] is None or fields[x] == {})
  }
  if len(given) == 2 and given['rope_scaling'] != given['rope_parameters']:
    raise UserError(
      f'{path}: rope_scaling is {given["rope_scaling"]!r} and rope_parameters '
      f'is {given["rope_parameters"]!r}; keep one of them'
    )
  rope: dict[str, Any] = {}
  for name, rope in given.items():
    _check_rope(path, name, rope)
  base = rope.get('rope_theta', fields.get('rope_theta', 10_000.0))
  is_number = isinstance(base, int | float) and not isinstance(base, bool)
  if not (is_number and 0 < base <= _MAX_NUMBER):
    raise UserError(
      f'{path}: rope_theta is {base!r}; it must be a positive number'
    )
  return float(base)


def _check_rope(path: str, name: str, rope: Any) -> None:
  """Raises UserError for anything but an unscaled rotary embedding."""
  if not isinstance(rope, dict):
    raise UserError(f'{path}: {name} is {rope!r}; it must be an object')
  for key, value in sorted(rope.items()):
    is_type = key in ('rope_type', 'type')
    if key not in _ROPE_KEYS or (is_type and value != 'default'):
      raise UserError(
        f'{path}: {name} has {key} {value!r}; only the rope_type "default" is '
        'supported'
      )
  if not _is_one_of(rope.get('partial_rotary_factor'), (None, 1.0)):
    raise UserError(
      f'{path}: {name} has partial_rotary_factor '
      f'{rope["partial_rotary_factor"]!r}; only 1.0 is supported'
    )
