"""Chat formats: messages to ids. No other file knows how turns are written.

Sources: the chat templates of google/gemma-2-*-it, which has no system role (a
system text is joined to the first user turn), and of
HuggingFaceTB/SmolLM2-*-Instruct (ChatML). SmolLM2's default system text is left
out, because a judge's instructions are in the prompt. A model directory can
have a template of its own instead, see chat_template.py.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence

from grm_jax.errors import UserError
from grm_jax.tokenizer import chat_template
from grm_jax.tokenizer.chat_template import ChatTemplate
from grm_jax.tokenizer.tokenizer import Tokenizer

_ROLES = {
  'system': 'system',
  'user': 'user',
  'assistant': 'model',
  'model': 'model',
}


def render(
  tokenizer: Tokenizer,
  messages: Sequence[Mapping[str, str]],
  add_generation_prompt: bool = True,
) -> list[int]:
  r"""Renders a conversation to ids: ChatFormat.prefix_ids, then each turn.

  A turn of Gemma is <start_of_turn>{user or model}\n{content}<end_of_turn>\n,
  with outer whitespace stripped from the content. Other models have their own
  ids and role names. Contents cannot create control ids.

  Args:
    tokenizer: from tokenizer.load.
    messages: {"role": ..., "content": ...} in order; other keys are ignored.
      Roles are user, assistant (or model), and, for the first message only,
      system. A system text is a turn of its own if the format has a system
      role; otherwise it precedes the first user text, with a blank line between
      them.
    add_generation_prompt: whether to end with <start_of_turn>model\n, ready for
      a generation, instead of after the last <end_of_turn>\n.

  Returns:
    The ids.

  Raises:
    UserError: a role is unknown, or the turns do not alternate user, model,
      user. Turns are counted from 1, system included.
    ValueError: a message has a wrong type or lacks a field, there are no
      messages, or a generation prompt would follow a turn of the model.
  """
  turns = _read_turns(messages)
  joined = _join_system(turns)
  _check_alternation(joined, add_generation_prompt)
  chat_format = tokenizer.chat_format
  written = turns if chat_format.has_system_role else joined
  if chat_format.template:
    return _from_template(tokenizer, written, add_generation_prompt)
  ids = list(chat_format.prefix_ids)
  for _, role, content in written:
    ids += _turn_start(tokenizer, role)
    ids += tokenizer.encode(content)
    ids += turn_end(tokenizer, full_template=True)
  if add_generation_prompt:
    ids += _turn_start(tokenizer, 'model')
  return ids


def _from_template(
  tokenizer: Tokenizer,
  turns: Sequence[tuple[int, str, str]],
  add_generation_prompt: bool,
) -> list[int]:
  template = tokenizer.chat_format.template
  assert template is not None
  messages = [
    {'role': 'assistant' if role == 'model' else role, 'content': content}
    for _, role, content in turns
  ]
  return _encode_parts(
    tokenizer, chat_template.parts(template, messages, add_generation_prompt)
  )


def _encode_parts(
  tokenizer: Tokenizer, parts: Sequence[tuple[str, bool]]
) -> list[int]:
  """Encodes what lies between two control tokens as one text.

  Args:
    tokenizer: from tokenizer.load.
    parts: (text, whether it is a content); control tokens in contents are text.
  """
  controls, pattern = _control_tokens(tokenizer)
  ids: list[int] = []
  run = ''
  for text, is_content in parts:
    pieces = [text] if is_content else pattern.split(text)
    run += pieces[0]
    for name, following in zip(pieces[1::2], pieces[2::2], strict=True):
      ids += [*tokenizer.encode(run), controls[name]]
      run = following
  return ids + tokenizer.encode(run)


@functools.lru_cache(8)
def _control_tokens(
  tokenizer: Tokenizer,
) -> tuple[dict[str, int], re.Pattern[str]]:
  """Returns the ids of control tokens by name, and what matches a name."""
  codec = tokenizer.codec
  controls = {codec.id_to_piece(i): i for i in codec.control_ids}
  names = sorted(controls, key=len, reverse=True)
  return controls, re.compile(f'({"|".join(map(re.escape, names))})')


def with_template(tokenizer: Tokenizer, template: ChatTemplate) -> Tokenizer:
  """Returns the tokenizer with a chat template in place of its own format.

  Raises:
    UserError: the template does not write a conversation of two turns.
  """
  piece = tokenizer.codec.id_to_piece
  tokens = {
    'bos_token': piece(tokenizer.bos_id),
    'eos_token': piece(tokenizer.eos_id),
    **dict(template.special_tokens),
  }
  template = ChatTemplate(template.source, tuple(sorted(tokens.items())))
  pair = [{'role': x, 'content': x} for x in ('user', 'assistant')]
  chat_template.parts(template, pair, add_generation_prompt=False)
  system = {'role': 'system', 'content': 'text'}
  try:
    chat_template.parts(template, [system, pair[0]], add_generation_prompt=True)
    has_system_role = True
  except UserError:
    has_system_role = False
  chat_format = dataclasses.replace(
    tokenizer.chat_format,
    name=template.name,
    has_system_role=has_system_role,
    template=template,
  )
  return dataclasses.replace(tokenizer, chat_format=chat_format)


def check_response_follows(tokenizer: Tokenizer) -> None:
  """Checks that a prompt with a response is the template's conversation.

  Scalar reward models read a prompt up to the model's turn once, and then each
  response.

  Raises:
    UserError: they have other tokens together than apart.
  """
  user, answer = ({'role': x, 'content': x} for x in ('user', 'assistant'))
  expected = render(tokenizer, [user, answer], add_generation_prompt=False)
  response = model_turn(tokenizer, answer['content'], full_template=True)
  if render(tokenizer, [user]) + response != expected:
    raise UserError(
      'by the chat template, a prompt and a response have other tokens '
      'together than apart, so a reward model cannot read the prompt once for '
      'all responses; use config.chat_template=builtin'
    )


_CONVERSATIONS = (
  ('user',),
  ('user', 'assistant', 'user'),
  ('system', 'user'),
)


def differences(tokenizer: Tokenizer, template: ChatTemplate) -> str:
  """Returns where a template and the tokenizer's own format differ, or ''."""
  try:
    other = with_template(tokenizer, template)
  except UserError as error:
    return str(error)
  for roles in _CONVERSATIONS:
    messages = [{'role': x, 'content': f'({x})'} for x in roles]
    texts = [
      x.decode(render(x, messages), show_control=True)
      for x in (other, tokenizer)
    ]
    if texts[0] != texts[1]:
      return f'it writes {texts[0]!r}, and the built-in format {texts[1]!r}'
  return ''


def render_user(tokenizer: Tokenizer, text: str) -> list[int]:
  """Renders one user turn and the start of the model's turn.

  Args:
    tokenizer: from tokenizer.load.
    text: the user's message.

  Returns:
    The ids.

  Raises:
    ValueError: text is not a str.
  """
  return render(tokenizer, [{'role': 'user', 'content': text}])


def model_turn(
  tokenizer: Tokenizer,
  text: str,
  full_template: bool = False,
  limit: int | None = None,
) -> list[int]:
  """Returns a text of the model with the end of its turn.

  It follows a prompt that ends with the beginning of the turn.

  Args:
    tokenizer: from tokenizer.load.
    text: a generation or a response.
    full_template: whether to remove outer white space from the text, and to end
      with the last token of the full template. Otherwise the text is as the
      model writes it.
    limit: maximum number of ids; a longer text is cut.
  """
  ids = tokenizer.encode(text.strip() if full_template else text)
  end = turn_end(tokenizer, full_template)
  if limit is not None:
    ids = ids[: max(0, limit - len(end))]
  return [*ids, *end]


def turn_end(tokenizer: Tokenizer, full_template: bool) -> list[int]:
  """Returns the ids that end a turn, up to the newline of the full template."""
  template = tokenizer.chat_format.template
  if template and full_template:
    pair = [{'role': x, 'content': ''} for x in ('user', 'assistant')]
    last = chat_template.parts(template, pair, add_generation_prompt=False)[-1]
    return _encode_parts(tokenizer, [last])
  newline = tokenizer.encode('\n') if full_template else []
  return [tokenizer.end_of_turn_id, *newline]


def _turn_start(tokenizer: Tokenizer, role: str) -> list[int]:
  name = tokenizer.chat_format.model_role if role == 'model' else role
  return [tokenizer.start_of_turn_id, *tokenizer.encode(f'{name}\n')]


def _read_turns(
  messages: Sequence[Mapping[str, str]],
) -> list[tuple[int, str, str]]:
  """Returns (turn number, role, stripped content) per message."""
  if not isinstance(messages, (list, tuple)):
    raise ValueError(
      f'messages are a {type(messages).__name__}; give a list of '
      '{"role": ..., "content": ...}'
    )
  if not messages:
    raise ValueError('messages are empty; give at least turn 1, of the user')
  return [_read_turn(i, message) for i, message in enumerate(messages, 1)]


def _read_turn(number: int, message: Mapping[str, str]) -> tuple[int, str, str]:
  if not isinstance(message, Mapping):
    raise ValueError(
      f'turn {number} is a {type(message).__name__}; give a dict with role '
      'and content'
    )
  for key in ('role', 'content'):
    if key not in message:
      raise ValueError(f'turn {number} has no {key}; give role and content')
    if not isinstance(message[key], str):
      raise ValueError(
        f'turn {number} has a {key} of type {type(message[key]).__name__}; '
        'give a str'
      )
  role = message['role']
  if role not in _ROLES:
    raise UserError(
      f'turn {number} has the unknown role {role!r}; use user, assistant '
      '(or model), or system in turn 1'
    )
  return number, _ROLES[role], message['content'].strip()


def _join_system(
  turns: list[tuple[int, str, str]],
) -> list[tuple[int, str, str]]:
  """Joins a system text in turn 1 to the user turn that follows it."""
  for number, role, _ in turns[1:]:
    if role == 'system':
      raise UserError(
        f'turn {number} is a system turn, but only turn 1 can be one; move its '
        'text to turn 1 or into a user turn'
      )
  if turns[0][1] != 'system':
    return turns
  system = turns[0][2]
  if len(turns) == 1:
    raise UserError(
      'turn 1, a system turn, is the only turn; add a user turn after it'
    )
  # If this turn is not the user's, _check_alternation raises the error.
  number, role, content = turns[1]
  joined = f'{system}\n\n{content}'.strip()
  return [(number, role, joined), *turns[2:]]


def _check_alternation(
  turns: list[tuple[int, str, str]], add_generation_prompt: bool
) -> None:
  """Raises an error unless turns are user, model, user, ..."""
  expected = 'user'
  previous = None
  for number, role, _ in turns:
    if role != expected:
      place = 'the first' if previous is None else f'after a {previous} turn'
      raise UserError(
        f'turn {number} is a {role} turn, {place}; expected {expected}: turns '
        'alternate user and model, beginning with user; join adjacent turns of '
        'one role, or add the missing turn'
      )
    previous, expected = role, 'model' if role == 'user' else 'user'
  if add_generation_prompt and previous == 'model':
    raise ValueError(
      f'turn {turns[-1][0]}, the last, is a model turn, and a generation '
      'prompt would add another; add a user turn, or pass '
      'add_generation_prompt=False'
    )
