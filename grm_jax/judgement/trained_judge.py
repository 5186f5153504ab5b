"""The prompts and limits of a judge that its model directory stores.

A judge that reads another prompt than in training fails without an error: its
scores do not parse, or have no meaning. Training therefore writes a
TrainedJudge as judge.json beside the tokenizer, with the texts of the
templates, and judging uses it unless a config overrides it. A converted model
has no judge.json; it gets the defaults of the stage.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from grm_jax.errors import UserError
from grm_jax.judgement import template as templates
from grm_jax.judgement.prompt_format import PromptFormat, is_score_range
from grm_jax.judgement.template import StoredTemplate

FILE = 'judge.json'
# Increased by every change of the content or its meaning.
FORMAT_VERSION = 1
# What a model is trained as, and its description in messages.
KINDS = {
  'grm': 'a generative judge',
  'llm': 'an LLM-as-a-Judge',
  'critic': 'a critique model',
  'meta': 'a meta RM',
  'scalar': 'a scalar reward model',
  'pair': 'a pairwise reward model',
  'critique': 'a value model of critiques',
  # A model with a scalar head from Hugging Face, which may be a meta RM.
  'imported': 'an imported reward model',
}
# The kinds that generate, by what is read in their generations, and the
# templates of models that store none.
GENERATIVE = {'scores': 'grm', 'best': 'llm', 'critique': 'critic'}
_TEMPLATES = {'scores': 'pointwise', 'best': 'best', 'critique': 'critic'}
_WITHOUT_TEMPLATE = ('scalar', 'critique', 'imported')
NONE = 'none'  # value of config.prompt.single: no template of its own
DEFAULT_LENGTH = 1024  # tokens of a generation


@dataclasses.dataclass(frozen=True)
class TrainedJudge:
  """The prompts and limits with which a model was trained.

  Attributes:
    kind: what it was trained as, one of KINDS. A 'grm' writes a score for each
      response, an 'llm' names the best response, and a 'critic' writes about
      one response.
    chat_format: name of the tokenizer's chat format.
    template: template of its prompts; None for the kinds 'scalar' and
      'critique', which read conversations, and 'imported'.
    single: template of prompts with one response; None if `template` serves
      for them.
    principles: template that writes principles; None if `template` has none.
    score_range: lowest and highest score.
    single_score_range: the same in answers to `single`.
    max_new_tokens: length of the longest generation.
    full_template: whether a scalar head reads its value at the last token of
      the full chat template, with outer white space of the response removed,
      as in transformers. Otherwise it reads it at the end of the turn.
  """

  kind: str
  chat_format: str
  template: StoredTemplate | None = None
  single: StoredTemplate | None = None
  principles: StoredTemplate | None = None
  score_range: tuple[int, int] = (1, 10)
  single_score_range: tuple[int, int] = (0, 1)
  max_new_tokens: int = DEFAULT_LENGTH
  full_template: bool = False

  @property
  def reads(self) -> str:
    """PromptFormat.reads of its generations; '' if it does not generate."""
    return next((x for x, kind in GENERATIVE.items() if kind == self.kind), '')


def of_training(
  prompt_format: PromptFormat,
  chat_format: str,
  max_new_tokens: int,
  kind: str = '',
  principles: str = 'principles',
) -> TrainedJudge:
  """Returns the settings of a model that is trained with this format.

  Args:
    prompt_format: its prompts and, for '' as `kind`, its kind.
    chat_format: see TrainedJudge.
    max_new_tokens: see TrainedJudge.
    kind: see TrainedJudge; '' for a model that generates.
    principles: template that writes principles.
  """
  loaded = prompt_format.template_for(2)
  has_principles = 'principles' in loaded.used_variables
  return TrainedJudge(
    kind or GENERATIVE[prompt_format.reads],
    chat_format,
    templates.stored(prompt_format.template),
    templates.stored(prompt_format.single) if prompt_format.single else None,
    templates.stored(principles) if has_principles else None,
    prompt_format.score_range,
    prompt_format.single_score_range,
    max_new_tokens,
  )


def to_json(settings: TrainedJudge) -> str:
  """Returns the content of FILE."""
  content = {'format_version': FORMAT_VERSION, **dataclasses.asdict(settings)}
  return json.dumps(content, indent=2) + '\n'


def from_json(text: str | bytes, path: str) -> TrainedJudge:
  """Returns the settings in the content of FILE.

  Args:
    text: the content.
    path: path of the file, for messages.

  Raises:
    UserError: the file is damaged or has another format version.
  """
  try:
    content = json.loads(text)
    version = content.pop('format_version')
    judge = _from_fields(content) if version == FORMAT_VERSION else None
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    raise UserError(
      f'{path} does not describe a judge ({error}); copy it again from where '
      'the model was trained'
    ) from error
  if judge is None:
    raise UserError(
      f'{path} has format version {version}, this code reads version '
      f'{FORMAT_VERSION}; use the version of grm_jax that wrote it, or train '
      'the model again'
    )
  return judge


def _from_fields(fields: Mapping[str, Any]) -> TrainedJudge:
  values: dict[str, Any] = dict(fields)
  for name in ('template', 'single', 'principles'):
    values[name] = values[name] and StoredTemplate(**values[name])
    if values[name]:
      templates.load(values[name])  # raises UserError if it is invalid
  for name in ('score_range', 'single_score_range'):
    values[name] = tuple(values[name])
    if not is_score_range(values[name]):
      raise ValueError(f'{name} is {values[name]!r}')
  judge = TrainedJudge(**values)
  if judge.kind not in KINDS:
    raise ValueError(f'kind is {judge.kind!r}')
  if type(judge.max_new_tokens) is not int or judge.max_new_tokens < 1:
    raise ValueError(f'max_new_tokens is {judge.max_new_tokens!r}')
  if type(judge.full_template) is not bool:
    raise ValueError(f'full_template is {judge.full_template!r}')
  if judge.kind not in _WITHOUT_TEMPLATE and judge.template is None:
    raise ValueError('template is missing')
  return judge


def prompt_format(
  stored: TrainedJudge | None,
  model: str,
  *,
  template: str | StoredTemplate = '',
  single: str | StoredTemplate = '',
  score_range: Sequence[int] = (),
  single_score_range: Sequence[int] = (),
  reads: str = '',
  default_single: str = '',
  key: str = 'config.prompt',
  warns: bool = True,
  **fields: Any,
) -> PromptFormat:
  """Returns the format of prompts: given values, else those of the model.

  Args:
    stored: settings of the model; None if it stores none.
    model: its directory, for messages.
    template: name or path, '' for the model's.
    single: the same for one response; NONE to use `template`.
    score_range: lowest and highest score, () for the model's.
    single_score_range: the same in answers to `single`.
    reads: see PromptFormat; '' for the model's, or 'scores' if it stores none.
    default_single: template for one response of a model that stores none.
    key: config key of these values.
    warns: whether to warn about a given value that differs from the model's.
    **fields: further fields of PromptFormat.

  Raises:
    UserError: a template cannot be loaded, or a value is wrong.
  """
  reads = reads or (stored.reads if stored else '') or 'scores'
  defaults = {
    'template': _TEMPLATES.get(reads, ''),  # PromptFormat reports bad `reads`
    'single': default_single,
    'score_range': (1, 10),
    'single_score_range': (0, 1),
  }
  if stored and stored.reads != reads:
    if stored.reads and warns:
      _warn_of_kind(stored, model, reads)
    stored = None  # also of the scalar model that a critic shares
  if stored:
    defaults = {name: getattr(stored, name) or '' for name in defaults}
  given = {
    'template': template,
    'single': single,
    'score_range': tuple(score_range),
    'single_score_range': tuple(single_score_range),
  }
  chosen: dict[str, Any] = {
    name: value or defaults[name] for name, value in given.items()
  }
  # Only a score can judge a single response.
  if chosen['single'] == NONE or reads != 'scores':
    chosen['single'] = ''
  result = PromptFormat(**chosen, reads=reads, key=key, **fields)
  result.check()
  if stored and warns:
    for name, value in given.items():
      if value:
        _compare(f'{key}.{name}', chosen[name], defaults[name], model)
  return result


def generation_length(
  stored: TrainedJudge | None,
  model: str,
  value: int,
  key: str = 'config.sampling.max_new_tokens',
  default: int = DEFAULT_LENGTH,
) -> int:
  """Returns the maximum length of a generation: `value`, or the model's for 0.

  Warns if the value differs from the model's. A model that stores none has the
  default.
  """
  if stored is None or not stored.reads:
    return value or default
  if value:
    _compare(key, value, stored.max_new_tokens, model)
  return value or stored.max_new_tokens


def principles_template(
  stored: TrainedJudge | None,
  model: str,
  value: str | StoredTemplate,
  key: str = 'config.prompt.principles',
) -> str | StoredTemplate:
  """Returns the template that writes principles: `value`, or the model's."""
  default = stored.principles if stored else None
  if value and default:
    _compare(key, value, default, model)
  return value or default or 'principles'


def meta_template(
  stored: TrainedJudge | None,
  model: str,
  value: str | StoredTemplate,
  default: str,
) -> str | StoredTemplate:
  """Returns the template of a meta RM: `value`, or the model's.

  Raises:
    UserError: the model was trained as something else.
  """
  check_kind(stored, model, 'meta', 'config.meta_checkpoint')
  if stored is None or stored.template is None:
    return value or default
  if value:
    _compare('config.prompt.meta', value, stored.template, model)
  return value or stored.template


def check_kind(
  stored: TrainedJudge | None, model: str, kind: str, key: str
) -> None:
  """Raises UserError for a model that was trained to judge in another way."""
  if stored and stored.kind not in (kind, 'imported'):
    raise UserError(
      f'{key}: {model} was trained as {KINDS[stored.kind]}, not as '
      f'{KINDS[kind]}; give a model of this kind, or set config.judge to the '
      'kind of this model'
    )


def _warn_of_kind(stored: TrainedJudge, model: str, reads: str) -> None:
  _warn_once(
    f'{model} was trained as {KINDS[stored.kind]}, but it is used as '
    f'{KINDS[GENERATIVE[reads]]}: its judgements may fail to parse; give a '
    'model that was trained for this use'
  )


def _compare(key: str, value: Any, trained: Any, model: str) -> None:
  """Warns if a given value differs from the one of the model."""
  if key.rpartition('.')[2] in ('template', 'single', 'principles', 'meta'):
    if (value and templates.source(value)) == (
      trained and templates.source(trained)
    ):
      return
    if str(value) == str(trained):
      value = f'{value} (its text has changed since training)'
  elif value == trained:
    return
  _warn_once(
    f'{key} is {value or NONE}, but {model} was trained with '
    f'{trained or NONE}: its judgements may fail to parse or mean nothing; '
    f'{_as_trained(key)} to use the value of the model'
  )


def _as_trained(key: str) -> str:
  """Returns what makes a setting use the value of the model."""
  if key.endswith('max_new_tokens'):
    return f'set {key}=0'
  if key.endswith('generation_buckets'):
    return f'let {key} end at that length'
  return f'leave {key} empty'


@functools.cache
def _warn_once(message: str) -> None:
  # A stage resolves its settings several times.
  logging.warning('%s', message)
