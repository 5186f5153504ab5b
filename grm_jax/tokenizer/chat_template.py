"""Chat templates of checkpoints: the Jinja text of tokenizer_config.json.

A template is rendered with a mark in place of each content, and only its own
text is searched for control tokens. Contents therefore cannot become control
ids, whatever they spell. The ids are otherwise those of `apply_chat_template`
in transformers, for contents without outer white space.
"""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
from etils import epath
from jinja2 import sandbox

from grm_jax.errors import UserError

FILE = 'chat_format.json'
# Where transformers store a template.
_SOURCE_FILE, _SOURCE_CONFIG = 'chat_template.jinja', 'tokenizer_config.json'
# Private characters, which no template contains.
_MARK = '\ue000{}\ue001'
_MARKS = re.compile('\ue000(\\d+)\ue001')


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
  """A Jinja chat template.

  Attributes:
    source: its text.
    special_tokens: (variable, token) of bos_token, eos_token and so on.
  """

  source: str
  special_tokens: tuple[tuple[str, str], ...] = ()

  @property
  def name(self) -> str:
    """Identifies the template."""
    content = json.dumps([self.source, self.special_tokens])
    return f'template {hashlib.sha256(content.encode()).hexdigest()[:12]}'

  def render(
    self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool
  ) -> str:
    """Returns the text of a conversation.

    Raises:
      UserError: the template has an error, or refuses the conversation.
    """
    try:
      return self._compiled.render(
        messages=[dict(x) for x in messages],
        add_generation_prompt=add_generation_prompt,
        tools=None,
        documents=None,
        **dict(self.special_tokens),
      )
    except Exception as error:  # an expression can raise anything
      message = ' '.join(str(error).split())
      raise UserError(f'the chat template fails: {message}') from error

  @functools.cached_property
  def _compiled(self) -> jinja2.Template:
    environment = sandbox.ImmutableSandboxedEnvironment(
      trim_blocks=True,
      lstrip_blocks=True,
      extensions=[jinja2.ext.loopcontrols],
    )
    environment.globals['raise_exception'] = _raise
    environment.globals['strftime_now'] = lambda unused: _raise(
      'it writes the date, so prompts would change from day to day'
    )
    return environment.from_string(self.source)


def _raise(message: str) -> None:
  raise ValueError(message)


def parts(
  template: ChatTemplate,
  messages: Sequence[Mapping[str, str]],
  add_generation_prompt: bool,
) -> list[tuple[str, bool]]:
  """Returns (text, whether it is a content) in the order of the prompt.

  Raises:
    UserError: the template fails, or leaves a content out.
  """
  marked = [
    {**message, 'content': _MARK.format(i)}
    for i, message in enumerate(messages)
  ]
  # Odd elements are the numbers of the marks.
  pieces = _MARKS.split(template.render(marked, add_generation_prompt))
  if sorted(map(int, pieces[1::2])) != list(range(len(messages))):
    raise UserError(
      'the chat template does not write each message exactly once'
    )
  return [
    (messages[int(x)]['content'], True) if i % 2 else (x, False)
    for i, x in enumerate(pieces)
  ]


def of_checkpoint(directory: str) -> ChatTemplate | None:
  """Returns the template in a Hugging Face directory; None if it has none.

  Raises:
    UserError: tokenizer_config.json is not JSON, or has several templates
      without a default.
  """
  config = _read_json(directory, _SOURCE_CONFIG) or {}
  path = epath.Path(directory) / _SOURCE_FILE
  source: Any = path.read_text() if path.exists() else None
  source = source or config.get('chat_template')
  if isinstance(source, list):  # [{name, template}]
    source = {x['name']: x['template'] for x in source}.get('default')
  if not isinstance(source, str):
    return None
  tokens = {
    name: value.get('content', '') if isinstance(value, dict) else value
    for name, value in config.items()
    if name.endswith('_token')
  }
  strings = {k: x for k, x in tokens.items() if isinstance(x, str)}
  return ChatTemplate(source, tuple(sorted(strings.items())))


def read(directory: str) -> ChatTemplate | None:
  """Returns the template that a model directory uses; None for none.

  Raises:
    UserError: the file is damaged.
  """
  content = _read_json(directory, FILE)
  if content is None:
    return None
  try:
    tokens = tuple(sorted(content['special_tokens'].items()))
    return ChatTemplate(content['template'], tokens)
  except (KeyError, TypeError, AttributeError) as error:
    raise UserError(
      f'{epath.Path(directory) / FILE} is damaged ({error}); convert the '
      'checkpoint again'
    ) from error


def to_json(template: ChatTemplate) -> str:
  """Returns the content of FILE."""
  fields = {
    'template': template.source,
    'special_tokens': dict(template.special_tokens),
  }
  return json.dumps(fields, indent=2) + '\n'


def _read_json(directory: str, name: str) -> dict[str, Any] | None:
  path = epath.Path(directory) / name
  if not path.exists():
    return None
  try:
    content = json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise UserError(f'{path} cannot be read: {error}') from error
  if not isinstance(content, dict):
    raise UserError(f'{path} is not a JSON object')
  return content
