"""What is judged: the one record that crosses rooms as a Python object."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from grm_jax.errors import UserError

ROLES = ('system', 'user', 'assistant')
# Longer texts are mistakes or attacks: 50 times what a prompt can hold.
MAX_CHARS = 1_000_000


@dataclasses.dataclass(frozen=True)
class Turn:
  """One message of a conversation."""

  role: str
  text: str


@dataclasses.dataclass(frozen=True)
class JudgingExample:
  """A query, responses to it, and what is known about which is good.

  Attributes:
    id: unique within its source.
    query: the conversation; the last turn is the user's.
    responses: n >= 1 texts.
    best: index of the best response, from 0; None if unknown or n == 1.
    rewards: one number per response; for n == 1 the label (0 or 1).
    reference: an answer known to be right, '' if there is none.
    principles: what to judge by; '' lets the judge write its own.
    tags: where it is from: suite, section, subset, ...
  """

  id: str
  query: tuple[Turn, ...]
  responses: tuple[str, ...]
  best: int | None = None
  rewards: tuple[float, ...] | None = None
  reference: str = ''
  principles: str = ''
  tags: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    fault = self._fault()
    if fault:
      raise UserError(fault)

  def _fault(self):
    n = len(self.responses)
    if not n:
      return 'there are no responses'
    if not self.query or self.query[-1].role != 'user':
      return "the query's last turn must be the user's"
    if not any(turn.text.strip() for turn in self.query):
      return 'the query is empty'
    roles = [turn.role for turn in self.query if turn.role not in ROLES]
    if roles:
      return f'role {roles[0]!r} is none of {", ".join(ROLES)}'
    texts = (*self.responses, self.reference, self.principles)
    longest = max(map(len, (*texts, *(t.text for t in self.query))))
    if longest > MAX_CHARS:
      return f'a text has {longest} characters; the most is {MAX_CHARS}'
    if self.best is not None and not 0 <= self.best < n:
      return f'best is {self.best}; there are {n} responses, counted from 0'
    if self.rewards is not None and len(self.rewards) != n:
      return f'{len(self.rewards)} rewards for {n} responses'
    return None


def from_row(row: Any, number: int) -> JudgingExample:
  """The example of a user's row.

  Args:
    row: {query | messages, responses[, best, rewards, id, reference,
      principles, tags]};
      messages are [{role, content}, ...].
    number: the row's, which is its id if it has none.

  Raises:
    UserError: says what is wrong with the row.
  """
  if not isinstance(row, dict):
    raise UserError('the row is not a JSON object')
  responses = row.get('responses')
  if not isinstance(responses, list) or not _texts(responses):
    raise UserError('responses must be a list of texts')
  best, rewards = row.get('best'), row.get('rewards')
  if best is not None and type(best) is not int:
    raise UserError(f'best must be an index from 0, not {best!r}')
  if rewards is not None:
    rewards = _numbers(rewards)
  tags = row.get('tags') or {}
  # Parquet stores every tag in every row, null where a row lacks it.
  if isinstance(tags, dict):
    tags = {key: value for key, value in tags.items() if value is not None}
  if not isinstance(tags, dict) or not _texts(tags.values()):
    raise UserError('tags must be an object of texts')
  name = row.get('id')
  return JudgingExample(
    id=str(number if name is None else name),
    query=_query(row),
    responses=tuple(responses),
    best=best,
    rewards=rewards,
    reference=_text(row, 'reference'),
    principles=_text(row, 'principles'),
    tags=tags,
  )


def to_row(example: JudgingExample) -> dict[str, Any]:
  """The row that `from_row` reads as this example."""
  return {
    'id': example.id,
    'messages': [{'role': x.role, 'content': x.text} for x in example.query],
    'responses': example.responses,
    'best': example.best,
    'rewards': example.rewards,
    'reference': example.reference,
    'principles': example.principles,
    'tags': dict(example.tags),
  }


def _query(row):
  query, messages = row.get('query'), row.get('messages')
  if (query is None) == (messages is None):
    raise UserError('a row has either a query or messages')
  if messages is None:
    if not isinstance(query, str):
      raise UserError('query must be a text')
    return (Turn('user', query),)
  if not isinstance(messages, list):
    raise UserError('messages must be a list of {role, content}')
  turns = []
  for message in messages:
    parts = message if isinstance(message, dict) else {}
    role, text = parts.get('role'), parts.get('content')
    if not isinstance(role, str) or not isinstance(text, str):
      raise UserError('every message must be {role, content}, both texts')
    turns.append(Turn(role, text))
  return tuple(turns)


def _text(row, key):
  text = row.get(key) or ''
  if not isinstance(text, str):
    raise UserError(f'{key} must be a text')
  return text


def _texts(values):
  return all(isinstance(value, str) for value in values)


def _numbers(values):
  good = isinstance(values, list) and all(
    isinstance(x, int | float) and not isinstance(x, bool) for x in values
  )
  try:
    found = tuple(float(x) for x in values) if good else ()
  except OverflowError:
    good = False
  if not good or not all(map(math.isfinite, found)):
    raise UserError('rewards must be a list of finite numbers')
  return found
