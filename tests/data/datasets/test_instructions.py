"""General instruction data in the published formats of three datasets."""

import json

import pytest

from grm_jax.data import sft_sources
from grm_jax.judgement.example import Turn
from grm_jax.judgement.judgement import ExampleError
from tests.messages import names

CHAT = [
  {'role': 'system', 'content': 'Be brief.'},
  {'role': 'user', 'content': 'Hi?'},
  {'role': 'assistant', 'content': 'Hi.'},
  {'role': 'user', 'content': 'And you?'},
  {'role': 'assistant', 'content': 'Fine.'},
]
TURNS = tuple(Turn(x['role'], x['content']) for x in CHAT[:-1])
TULU3 = {'id': 'flan_v2_1', 'messages': CHAT, 'source': 'ai2-adapt-dev/flan_v2'}
NO_ROBOTS = {
  'prompt': 'Hi?',
  'prompt_id': '0' * 8,
  'messages': CHAT,
  'category': 'Chat',
}


def message(id, parent, role, text, rank=None, **fields):
  return {
    'message_id': id,
    'parent_id': parent,
    'role': role,
    'text': text,
    'rank': rank,
    'lang': 'en',
    'deleted': False,
    'review_result': True,
    'message_tree_id': 'a',
  } | fields


TREE = [
  message('a', None, 'prompter', 'Why?'),
  message('b', 'a', 'assistant', 'Because.', 0),
  message('c', 'a', 'assistant', 'Who knows.', 1),
  message('d', 'b', 'prompter', 'Really?'),
  message('e', 'd', 'assistant', 'Yes.'),  # alone and not ranked
  message('f', 'c', 'prompter', 'Rude.'),
  message('g', 'f', 'assistant', 'Sorry.', 1.0),
  message('h', 'f', 'assistant', 'So what?', 0.0, deleted=True),
  message('i', None, 'prompter', 'Spam', review_result=False),
  message('j', 'i', 'assistant', 'No.', 0),
]


def read(tmp_path, name, rows):
  path = tmp_path / 'rows.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return list(sft_sources.read(f'{name}:{path}', 'train', 'general'))


@pytest.mark.parametrize(
  'name, row, id',
  [
    ('tulu3', TULU3, 'tulu3/flan_v2_1'),
    ('no_robots', NO_ROBOTS, 'no_robots/00000000'),
  ],
)
def test_the_last_answer_of_a_conversation_is_the_target(
  tmp_path, name, row, id
):
  (example,) = read(tmp_path, name, [row])
  assert (example.id, example.source) == (id, 'general')
  assert example.turns == TURNS
  assert example.generations == ('Fine.',)


def test_answers_ranked_first_are_targets(tmp_path):
  examples = {x.id: x for x in read(tmp_path, 'openassistant', TREE)}
  assert list(examples) == ['openassistant/b', 'openassistant/e']
  first, second = examples.values()
  assert first.turns == (Turn('user', 'Why?'),)
  assert first.generations == ('Because.',)
  assert [x.text for x in second.turns] == ['Why?', 'Because.', 'Really?']
  assert second.generations == ('Yes.',)


@pytest.mark.parametrize(
  'name, row, words',
  [
    ('tulu3', {'id': 'a'}, ['messages']),
    ('tulu3', TULU3 | {'messages': []}, ['messages']),
    ('tulu3', TULU3 | {'messages': CHAT[:-1]}, ['assistant']),
    ('tulu3', TULU3 | {'messages': CHAT[-1:]}, ['user']),
    (
      'no_robots',
      NO_ROBOTS | {'messages': [{'role': 'tool', 'content': 'x'}]},
      ['role', "'tool'"],
    ),
    ('no_robots', TULU3, ['prompt_id']),
    ('openassistant', TREE[0] | {'role': 'user'}, ['role', "'user'"]),
    ('openassistant', TREE[0] | {'text': None}, ['text']),
    ('openassistant', TREE[0] | {'deleted': 'False'}, ['deleted']),
    ('openassistant', message('x', 'x', 'assistant', 'y'), ['x']),
    ('openassistant', message('x', None, 'assistant', 'y'), ['x']),
  ],
)
def test_bad_rows_are_named(tmp_path, name, row, words):
  good = TREE[:2] if name == 'openassistant' else []
  results = read(tmp_path, name, [*good, row])
  (error,) = (x for x in results if isinstance(x, ExampleError))
  assert names(error.reason, *words)
  assert len(results) - 1 == bool(good)
