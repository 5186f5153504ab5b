"""General instruction data: conversations whose last turn is the target.

  tulu3          rows {id, messages, source} (allenai/tulu-3-sft-mixture)
  no_robots      rows {prompt_id, messages, category, prompt}
                 (HuggingFaceH4/no_robots)
  openassistant  rows {message_id, parent_id, role, text, rank, deleted, ...},
                 one per message of a tree (OpenAssistant/oasst1 and oasst2)

In the trees, every assistant message that people ranked first among its
siblings, or that has none, is a target after the messages that lead to it.
"""

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Mapping

from absl import logging

from grm_jax.data import dataset_files
from grm_jax.data.dataset_files import SkippedRow
from grm_jax.judgement.example import ROLES, Turn
from grm_jax.judgement.judgement import ExampleError
from grm_jax.judgement.preference_rows import SourceRow

_OPENASSISTANT_ROLES = {'prompter': 'user', 'assistant': 'assistant'}


@dataclasses.dataclass(frozen=True)
class Instruction:
  """A conversation and the answer to learn.

  Attributes:
    id: unique within its dataset.
    turns: the conversation; the last turn is the user's.
    answer: the assistant's answer.
  """

  id: str
  turns: tuple[Turn, ...]
  answer: str


@dataclasses.dataclass(frozen=True)
class _Message:
  """A message of an OpenAssistant tree."""

  id: str
  parent_id: str | None
  turn: Turn
  rank: int | None


def read(name: str, path: str) -> Iterator[Instruction | ExampleError]:
  """Yields the instructions of a dataset, and an error per bad row.

  Logs how many rows yield none, by reason.

  Args:
    name: one of NAMES.
    path: see dataset_files.adapt_rows.

  Raises:
    UserError: a file cannot be read.
  """
  skipped: collections.Counter[str] = collections.Counter()
  for item in _items(name, path):
    if isinstance(item, SkippedRow):
      skipped[item.reason] += 1
    else:
      yield item
  for reason, count in skipped.items():
    logging.info('%s:%s: %d rows are no target: %s', name, path, count, reason)


def _items(
  name: str, path: str
) -> Iterator[Instruction | SkippedRow | ExampleError]:
  if name == 'openassistant':
    return _openassistant(dataset_files.adapt_rows(path, _message))
  return dataset_files.adapt_rows(path, _ADAPTERS[name])


def _tulu3(row: SourceRow) -> Iterator[Instruction]:
  yield _conversation(row, f'tulu3/{row.text_field("id")}')


def _no_robots(row: SourceRow) -> Iterator[Instruction]:
  yield _conversation(row, f'no_robots/{row.text_field("prompt_id")}')


_ADAPTERS = {'tulu3': _tulu3, 'no_robots': _no_robots}
NAMES = ('openassistant', *_ADAPTERS)


def _conversation(row: SourceRow, id: str) -> Instruction:
  turns = [
    Turn(x.choice_field('role', ROLES), x.text_field('content'))
    for x in row.object_list_field('messages')
  ]
  *before, last = turns
  if last.role != 'assistant' or not before or before[-1].role != 'user':
    raise row.error('messages must end with a user and an assistant message')
  return Instruction(id, tuple(before), last.text)


def _message(row: SourceRow) -> Iterator[_Message | SkippedRow]:
  for key in ('deleted', 'review_result'):
    if row.fields.get(key) not in (None, True, False):
      raise row.error(f'{key} must be true or false')
  if row.fields.get('deleted') or row.fields.get('review_result') is False:
    yield SkippedRow('the message was deleted or rejected')
    return
  role = row.choice_field('role', _OPENASSISTANT_ROLES)
  has_parent = row.field('parent_id') is not None
  has_rank = row.fields.get('rank') is not None
  yield _Message(
    row.text_field('message_id'),
    row.text_field('parent_id') if has_parent else None,
    Turn(_OPENASSISTANT_ROLES[role], row.text_field('text')),
    row.int_field('rank') if has_rank else None,
  )


def _openassistant(
  items: Iterable[_Message | SkippedRow | ExampleError],
) -> Iterator[Instruction | SkippedRow | ExampleError]:
  messages: dict[str, _Message] = {}
  for item in items:
    if isinstance(item, _Message):
      messages[item.id] = item
    else:
      yield item
  num_answers: collections.Counter[str | None] = collections.Counter(
    x.parent_id for x in messages.values() if x.parent_id is not None
  )
  for message in messages.values():
    is_only_one = num_answers[message.parent_id] <= 1
    is_first = message.rank == 0 or (message.rank is None and is_only_one)
    if message.turn.role == 'assistant' and is_first:
      yield _instruction(message, messages)


def _instruction(
  message: _Message, messages: Mapping[str, _Message]
) -> Instruction | SkippedRow | ExampleError:
  """Returns a message as the answer to the messages that lead to it."""
  turns: list[Turn] = []
  parent_id = message.parent_id
  while parent_id is not None:
    parent = messages.get(parent_id)
    if parent is None:
      return SkippedRow('a message before it was deleted or rejected')
    if len(turns) > len(messages):
      reason = f'message {message.id} is its own ancestor'
      return ExampleError(message.id, reason)
    turns.insert(0, parent.turn)
    parent_id = parent.parent_id
  if not turns or turns[-1].role != 'user':
    return ExampleError(message.id, f'message {message.id} answers no prompt')
  return Instruction(
    f'openassistant/{message.id}', tuple(turns), message.turn.text
  )
