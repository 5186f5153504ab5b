"""The judging example: the record that every part of the program exchanges."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from grm_jax.errors import UserError
from grm_jax.judgement import row_values

ROLES = ('system', 'user', 'assistant')
# A longer text is a mistake or an attack: it is 50 times what a prompt can
# hold.
MAX_CHARS = 1_000_000


@dataclasses.dataclass(frozen=True)
class Turn:
  """One message of a conversation.

  Attributes:
    role: one of ROLES.
    text: content of the message.
  """

  role: str
  text: str


@dataclasses.dataclass(frozen=True)
class JudgingExample:
  """A query, C candidate responses to it, and what is known about them.

  Attributes:
    id: unique within its source; random draws depend on it.
    query: the conversation; the last turn is the user's.
    responses: [C] texts, C >= 1.
    best: index of the best response; None if it is unknown or C = 1.
    rewards: [C], one number per response; for C = 1 the label (0 or 1).
    reference: a correct answer; '' if there is none.
    principles: principles to judge by; with '' the judge writes its own.
    tags: origin of the example: suite, section, subset and others.
    has_integer_id: whether the row stated the id as an integer.

  Raises:
    UserError: the fields do not make a valid example.
  """

  id: str
  query: tuple[Turn, ...]
  responses: tuple[str, ...]
  best: int | None = None
  rewards: tuple[float, ...] | None = None
  reference: str = ''
  principles: str = ''
  tags: Mapping[str, str] = dataclasses.field(default_factory=dict)
  has_integer_id: bool = dataclasses.field(default=False, compare=False)

  def __post_init__(self):
    problem = self._query_problem() or self._response_problem()
    if problem:
      raise UserError(problem)

  @property
  def stated_id(self) -> str | int:
    """The id with the type that it has in the row."""
    return int(self.id) if self.has_integer_id else self.id

  def _query_problem(self) -> str:
    for turn in self.query:
      if turn.role not in ROLES:
        return (
          f'role is {turn.role!r:.60}; it must be one of {", ".join(ROLES)}'
        )
    if not self.query or self.query[-1].role != 'user':
      return 'the last turn of the query must have the role user'
    if not any(turn.text.strip() for turn in self.query):
      return 'the query is empty'
    return ''

  def _response_problem(self) -> str:
    n = len(self.responses)
    if not n:
      return 'the example has no responses'
    texts = [*self.responses, self.reference, self.principles]
    longest = max(map(len, (*texts, *(turn.text for turn in self.query))))
    if longest > MAX_CHARS:
      return f'a text has {longest} characters; the maximum is {MAX_CHARS}'
    if self.best is not None and not 0 <= self.best < n:
      return f'best is {self.best}; it must be an index from 0 of {n} responses'
    if self.rewards is not None and len(self.rewards) != n:
      return f'{len(self.rewards)} rewards for {n} responses'
    return ''


def single_responses(example: JudgingExample) -> list[JudgingExample]:
  """Returns one unlabelled example per response, with ids ID/0, ID/1, ..."""
  return [
    dataclasses.replace(
      example,
      id=f'{example.id}/{i}',
      responses=(response,),
      best=None,
      rewards=None,
      has_integer_id=False,
    )
    for i, response in enumerate(example.responses)
  ]


def from_row(row: Any, number: int) -> JudgingExample:
  """Returns the example in a user's row.

  Args:
    row: an object with `responses` and either `query` (a string) or `messages`
      ([{role, content}, ...]); optionally best, rewards, id, reference,
      principles and tags.
    number: the row number, see `id_of_row`.

  Raises:
    UserError: the row is invalid; the message names the field.
  """
  if not isinstance(row, dict):
    raise UserError('the row is not a JSON object')
  if row.get('responses') is None:
    raise row_values.missing_field('responses', row)
  responses = row['responses']
  if not isinstance(responses, list) or not _are_strings(responses):
    raise UserError('responses must be a list of strings')
  best, rewards = row.get('best'), row.get('rewards')
  if best is not None and (best := row_values.integer(best)) is None:
    raise UserError(f'best must be an index from 0, not {row["best"]!r:.60}')
  id = id_of_row(row, number)
  return JudgingExample(
    id=str(id),
    query=_query(row),
    responses=tuple(responses),
    best=best,
    rewards=None if rewards is None else _finite_numbers(rewards),
    reference=_optional_text(row, 'reference'),
    principles=_optional_text(row, 'principles'),
    tags=_tags(row),
    has_integer_id=isinstance(id, int),
  )


def id_of_row(row: Mapping[str, Any], number: int) -> str | int:
  """Returns the id that a row states, or 'row 3' for row 3 without an id.

  Raises:
    UserError: the id is neither a text nor an integer.
  """
  id = row.get('id')
  if id is None:
    return f'row {number}'
  if isinstance(id, str):
    return id
  integer = row_values.integer(id)
  if integer is None:
    raise UserError(f'id must be a text or an integer, not {id!r:.60}')
  return integer


def to_row(example: JudgingExample) -> dict[str, Any]:
  """Returns the row that `from_row` reads as this example."""
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


def _query(row: Mapping[str, Any]) -> tuple[Turn, ...]:
  query, messages = row.get('query'), row.get('messages')
  if query is None and messages is None:
    raise row_values.missing_field('query or messages', row)
  if query is not None and messages is not None:
    raise UserError('a row must have either query or messages, not both')
  if messages is None:
    if not isinstance(query, str):
      raise UserError('query must be a string')
    return (Turn('user', query),)
  if not isinstance(messages, list):
    raise UserError('messages must be a list of {role, content}')
  turns = []
  for message in messages:
    fields = message if isinstance(message, dict) else {}
    role, text = fields.get('role'), fields.get('content')
    if not isinstance(role, str) or not isinstance(text, str):
      raise UserError('every message must be {role, content}, both strings')
    turns.append(Turn(role, text))
  return tuple(turns)


def _tags(row: Mapping[str, Any]) -> dict[str, str]:
  tags = {} if row.get('tags') is None else row['tags']
  # Parquet stores every tag in every row, with null where a row lacks it.
  if isinstance(tags, dict):
    tags = {key: value for key, value in tags.items() if value is not None}
  if not isinstance(tags, dict) or not _are_strings(tags.values()):
    raise UserError('tags must be an object of strings')
  return tags


def _optional_text(row: Mapping[str, Any], key: str) -> str:
  text = row.get(key)
  if text is None:
    return ''
  if not isinstance(text, str):
    raise UserError(f'{key} must be a string')
  return text


def _are_strings(values: Iterable[Any]) -> bool:
  return all(isinstance(value, str) for value in values)


def _finite_numbers(values: Any) -> tuple[float, ...]:
  numbers = (
    [row_values.finite_number(x) for x in values]
    if isinstance(values, list)
    else [None]
  )
  if None in numbers:
    raise UserError(f'rewards is {values!r:.60}, not a list of finite numbers')
  return tuple(x for x in numbers if x is not None)
