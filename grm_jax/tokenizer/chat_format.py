"""A model's chat form: messages in, ids out. The only place that knows it.

Sources: the chat templates that come with google/gemma-2-*-it, which has no
system role (a system text is joined to the first user turn here), and with
HuggingFaceTB/SmolLM2-*-Instruct (ChatML), whose default system text is left
out: a judge's instructions stand in the prompt.
"""

from collections.abc import Mapping, Sequence

from grm_jax.errors import UserError
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
  r"""Renders a conversation to ids: Turns.opening, then each turn.

  A turn is <start_of_turn>{user or model}\n{content}<end_of_turn>\n with the
  content stripped of outer whitespace, by the tokenizer's own ids and names.
  Contents cannot create control ids.

  Args:
    tokenizer: from tokenizer.load.
    messages: {"role": ..., "content": ...} in order; other keys are ignored.
      Roles are user, assistant (or model), and system in first place only. A
      system text stands before the first user text with a blank line between,
      or is a turn where Turns.system says so.
    add_generation_prompt: True ends with <start_of_turn>model\n, ready for a
      generation; False ends after the last <end_of_turn>\n.

  Returns:
    The ids.

  Raises:
    UserError: a role is unknown, or the turns do not alternate user, model,
      user. Turns are counted from 1, system included.
    ValueError: a message has a wrong type or lacks a field; there is none; a
      generation prompt is asked for after a turn of the model.
  """
  turns = _read(messages)
  joined = _join_system(turns)
  _check_alternation(joined, add_generation_prompt)
  ids = list(tokenizer.turns.opening)
  for _, role, content in turns if tokenizer.turns.system else joined:
    ids += _open_turn(tokenizer, role)
    ids += tokenizer.encode(content)
    ids += [tokenizer.end_of_turn, *tokenizer.encode('\n')]
  if add_generation_prompt:
    ids += _open_turn(tokenizer, 'model')
  return ids


def render_user(tokenizer: Tokenizer, text: str) -> list[int]:
  """Renders one user turn, ready for a generation.

  Args:
    tokenizer: from tokenizer.load.
    text: what the user says.

  Returns:
    The ids.

  Raises:
    ValueError: text is not a str.
  """
  return render(tokenizer, [{'role': 'user', 'content': text}])


def _open_turn(tokenizer: Tokenizer, role: str) -> list[int]:
  name = tokenizer.turns.model if role == 'model' else role
  return [tokenizer.start_of_turn, *tokenizer.encode(f'{name}\n')]


def _read(messages: Sequence[Mapping[str, str]]) -> list[tuple[int, str, str]]:
  """Messages as (turn number, role, stripped content), types checked."""
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
      '(or model), or system in first place'
    )
  return number, _ROLES[role], message['content'].strip()


def _join_system(
  turns: list[tuple[int, str, str]],
) -> list[tuple[int, str, str]]:
  """Joins a system text in first place to the user turn that follows it."""
  for number, speaker, _ in turns[1:]:
    if speaker == 'system':
      raise UserError(
        f'turn {number} is a system turn, which can only be turn 1; move its '
        'text there or into a user turn'
      )
  if turns[0][1] != 'system':
    return turns
  system = turns[0][2]
  if len(turns) == 1:
    raise UserError(
      "turn 1 is a system turn and no turn follows; add the user's turn"
    )
  # Should this turn not be the user's, _check_alternation refuses it.
  number, speaker, content = turns[1]
  joined = f'{system}\n\n{content}'.strip()
  return [(number, speaker, joined), *turns[2:]]


def _check_alternation(
  turns: list[tuple[int, str, str]], add_generation_prompt: bool
) -> None:
  expected = 'user'
  before = None
  for number, speaker, _ in turns:
    if speaker != expected:
      place = 'the first' if before is None else f'after a {before} turn'
      raise UserError(
        f'turn {number} is a {speaker} turn, {place}; expected {expected}: '
        'turns alternate user and model, beginning with user; join '
        'neighbours of one role, or add the missing turn'
      )
    before, expected = speaker, 'model' if speaker == 'user' else 'user'
  if add_generation_prompt and before == 'model':
    raise ValueError(
      f'turn {turns[-1][0]}, the last, is a model turn and a generation '
      'prompt would open another; add a user turn, or pass '
      'add_generation_prompt=False'
    )
