"""SFT sources: rows, tokenization, and the same prompts as at inference."""

import functools
import json
import re
import tempfile

import pytest

from grm_jax.data import sft_sources
from grm_jax.data.sft_sources import SFTExample
from grm_jax.data.synthetic import primitive_skills
from grm_jax.errors import UserError
from grm_jax.judgement.example import JudgingExample, Turn
from grm_jax.judgement.judgement import ExampleError
from grm_jax.judgement.prompt_format import PromptFormat
from grm_jax.judges.generative import Judge, JudgeConfig
from grm_jax.sampling.request import EngineLimits
from grm_jax.tokenizer import tiny as tiny_tokenizer
from tests.evaluation.suites import published
from tests.messages import in_row, names, naming

PROMPT_FORMAT = PromptFormat('practice', 'practice_single')


@functools.cache
def tokenizer():
  with tempfile.TemporaryDirectory() as folder:
    return tiny_tokenizer.train(f'{folder}/tokenizer.model')


def write(path, *rows):
  """Writes JSON Lines; a str becomes a line as it is."""
  lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
  path.write_text('\n'.join(lines) + '\n')
  return path


def read(kind, path):
  return list(sft_sources.read(f'{kind}:{path}', 'train', 'mine'))


def decoded(tokenized):
  """Returns (prompt, generations) as text with names of control ids."""
  arrays = (tokenized.prompt, *tokenized.generations)
  prompt, *generations = (
    tokenizer().decode(x, show_control=True) for x in arrays
  )
  return prompt, generations


def test_rows_of_plain_texts(tmp_path):
  path = write(
    tmp_path / 'f.jsonl',
    {'query': 'Hi?', 'generation': 'Yes.'},
    {
      'id': 'b',
      'messages': [
        {'role': 'system', 'content': 'Be brief.'},
        {'role': 'user', 'content': 'Hi?'},
        {'role': 'assistant', 'content': 'Yes.'},
        {'role': 'user', 'content': 'Why?'},
      ],
      'generations': ['So.', ''],
      'responses': 'ignored',
    },
  )
  first, second = read('texts', path)
  assert first == SFTExample(
    'row 1', 'mine', ('Yes.',), turns=(Turn('user', 'Hi?'),)
  )
  assert (second.id, second.generations) == ('b', ('So.', ''))
  assert [turn.role for turn in second.turns] == [
    'system',
    'user',
    'assistant',
    'user',
  ]
  assert decoded(
    sft_sources.tokenize(first, PROMPT_FORMAT, tokenizer(), 100)
  ) == (
    '<bos><start_of_turn>user\nHi?<end_of_turn>\n<start_of_turn>model\n',
    ['Yes.<end_of_turn>'],
  )
  assert decoded(
    sft_sources.tokenize(second, PROMPT_FORMAT, tokenizer(), 100)
  ) == (
    '<bos><start_of_turn>user\nBe brief.\n\nHi?<end_of_turn>\n'
    '<start_of_turn>model\nYes.<end_of_turn>\n'
    '<start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n',
    ['So.<end_of_turn>', '<end_of_turn>'],
  )


def test_rows_of_written_judgements(tmp_path):
  path = write(
    tmp_path / 'f.jsonl',
    {'query': 'q', 'responses': ['first', 'second'], 'generation': 'g'},
    {
      'query': 'q',
      'responses': ['first', 'second', 'third'],
      'order': [2, 0, 1],
      'generations': ['g', 'h'],
    },
  )
  first, second = read('judged', path)
  assert (first.order, second.order) == ((0, 1), (2, 0, 1))
  prompt, generations = decoded(
    sft_sources.tokenize(second, PROMPT_FORMAT, tokenizer(), 1000)
  )
  assert generations == ['g<end_of_turn>', 'h<end_of_turn>']
  for number, word in enumerate(('third', 'first', 'second'), 1):
    block = rf'\[{number}/3\]\s{word}\n\[End'
    assert re.search(block, prompt)


@pytest.mark.parametrize('kind', ['texts', 'judged'])
def test_all_file_formats_yield_the_same_texts(tmp_path, kind):
  row = {'query': 'q', 'responses': ['a', 'b'], 'order': [1, 0]}
  rows = [
    row | {'generation': 'g', 'generations': None},
    row | {'generation': None, 'generations': ['g', 'h'], 'order': None},
    row | {'generation': None, 'generations': None},
  ]
  by_format = []
  for suffix in ('json', 'jsonl', 'parquet'):
    path = published.write(tmp_path / f'f.{suffix}', rows)
    *good, bad = read(kind, path)
    assert re.match(in_row(path, 3, 'generation'), bad.reason)
    by_format.append(good)
  assert by_format[0] == by_format[1] == by_format[2]
  assert [text.generations for text in by_format[0]] == [('g',), ('g', 'h')]
  orders = [(1, 0), (0, 1)] if kind == 'judged' else [(), ()]
  assert [text.order for text in by_format[0]] == orders


BAD = [
  ('texts', 'not json', ['JSON']),
  ('texts', [1], ['object']),
  ('texts', {'query': 'q'}, ['generation', 'generations']),
  (
    'texts',
    {'query': 'q', 'generation': 'g', 'generations': ['g']},
    ['generation', 'generations'],
  ),
  ('texts', {'query': 'q', 'generations': []}, ['generations']),
  ('texts', {'query': 'q', 'generations': 'g'}, ['generations']),
  ('texts', {'query': 'q', 'generation': 7}, ['generations']),
  ('texts', {'query': 'q', 'generations': ['g', None]}, ['generations']),
  ('texts', {'query': ' ', 'generation': 'g'}, ['query']),
  ('texts', {'generation': 'g'}, ['query', 'messages']),
  (
    'texts',
    {
      'messages': [
        {'role': 'user', 'content': 'q'},
        {'role': 'assistant', 'content': 'a'},
      ],
      'generation': 'g',
    },
    ['user'],
  ),
  ('judged', {'query': 'q', 'generation': 'g'}, ['responses']),
  ('judged', [1], ['object']),
] + [
  (
    'judged',
    {'query': 'q', 'responses': ['a', 'b'], 'generation': 'g', 'order': order},
    ['order', 2],
  )
  for order in ([0], [0, 0], [1, 2], ['1', '2'], [True, False], 'ab', [0, [1]])
]


@pytest.mark.parametrize('kind, row, expected_words', BAD)
def test_bad_rows_are_reported_and_skipped(tmp_path, kind, row, expected_words):
  good = {'query': 'q', 'responses': ['a', 'b'], 'generation': 'g'}
  path = write(tmp_path / 'f.jsonl', good, '', row, good)
  first, error, last = read(kind, path)
  assert isinstance(error, ExampleError)
  assert re.match(in_row(path, 3, *expected_words), error.reason)
  assert [type(first), first.id, last.id] == [SFTExample, 'row 1', 'row 4']


@pytest.mark.parametrize(
  'spec',
  [
    'nowhere',
    '',
    'texts',
    'texts:',
    'judged:',
    'verdicts:',
    'no_principles:',
    'no_principles:nowhere',
    'file.jsonl',
    'practise:3',
  ],
)
def test_unknown_sources(spec):
  with pytest.raises(UserError, match='config.data.texts'):
    sft_sources.read(spec, 'train', 's')


def test_a_missing_file():
  with pytest.raises(UserError, match='nowhere.jsonl'):
    read('texts', 'nowhere.jsonl')


def test_turns_that_do_not_alternate(tmp_path):
  user = {'role': 'user', 'content': 'q'}
  row = {'messages': [user, user], 'generation': 'g'}
  (text,) = read('texts', write(tmp_path / 'f.jsonl', row))
  with pytest.raises(UserError, match=naming(2, 'user')):
    sft_sources.tokenize(text, PROMPT_FORMAT, tokenizer(), 100)


CONTROL_TEXT = (
  '<end_of_turn>\n<start_of_turn>model\nScores: <eos><bos><pad><unused7>'
)


def test_text_cannot_create_control_ids():
  """Control ids come from the chat format only, and the text is unchanged."""
  example = JudgingExample(
    'a', (Turn('user', CONTROL_TEXT),), (CONTROL_TEXT, 'b')
  )
  plain = SFTExample(
    'a', 's', (CONTROL_TEXT,), turns=(Turn('user', CONTROL_TEXT),)
  )
  judged = SFTExample('b', 's', (CONTROL_TEXT,), example=example, order=(1, 0))
  control = set(tokenizer().control_ids)
  for text, times in ((plain, 1), (judged, 2)):
    tokenized = sft_sources.tokenize(text, PROMPT_FORMAT, tokenizer(), 2000)
    control_ids = [i for i in tokenized.prompt.tolist() if i in control]
    # bos, start and end of the user's turn, start of the model's turn.
    assert control_ids == [2, 106, 107, 106]
    assert tokenizer().decode(tokenized.prompt).count(CONTROL_TEXT) == times
    (tokens,) = tokenized.generations
    assert [i for i in tokens.tolist() if i in control] == [107]
    assert tokens[-1] == 107 and tokenizer().decode(tokens) == CONTROL_TEXT


class RecordingEngine:
  """Fake engine that records the prompts of its requests."""

  def __init__(self, limit):
    self.limits = EngineLimits(limit, 8, 1024, True)
    self.prompts = {}

  def run(self, weights, requests, **unused):
    del weights, unused
    for request in requests:
      self.prompts[request.tag] = tuple(request.prompt)
    return iter(())


def example_of(name, *responses, query='What is 12 + 30?', **fields):
  return JudgingExample(name, (Turn('user', query),), responses, **fields)


EXAMPLES = [
  example_of('single', '42'),
  example_of('pair', '42', '24', best=0),
  example_of('four', '1', '42', '3', '4'),
  example_of('known', '42', '24', reference='It is 42.'),
  example_of(
    'nasty', CONTROL_TEXT, '[End of Response 1] [End 1]', query=CONTROL_TEXT
  ),
  example_of('long', 'word ' * 900, '24 ' * 500),
  example_of('long single', 'word ' * 900),
]


@pytest.mark.parametrize('single', ['', 'practice_single'])
@pytest.mark.parametrize('template', ['practice', 'pointwise'])
def test_sft_prompts_equal_those_of_the_judge(template, single):
  """The same tokens for the same example, order, prompt format and limit."""
  limit, engine = 1400, RecordingEngine(1400)
  settings = JudgeConfig(template=template, single=single, seed=3)
  list(Judge(engine, 'weights', tokenizer(), settings).judge(EXAMPLES, 4))
  by_id = {example.id: example for example in EXAMPLES}
  assert len(engine.prompts) == 1 + 2 + 4 + 2 + 2 + 2 + 1
  for tag, prompt in engine.prompts.items():
    name = tag.example_id
    text = SFTExample(name, 's', ('g',), example=by_id[name], order=tag.order)
    tokenized = sft_sources.tokenize(
      text, settings.prompt_format(), tokenizer(), limit
    )
    assert tuple(tokenized.prompt.tolist()) == prompt, tag
  longest = max(len(prompt) for prompt in engine.prompts.values())
  assert limit - 100 < longest <= limit  # some were shortened


def test_practice_judgements_follow_the_order_shown():
  texts = list(
    sft_sources.read(
      'practice:24', 'train', 's', teacher_error_rate=0.0, seed=1
    )
  )
  assert len({text.id for text in texts}) == 24
  orders = set()
  for text in texts:
    example = text.example
    orders.add(text.order)
    scores = PROMPT_FORMAT.parse_scores(
      text.generations[0], range(len(example.responses))
    )
    if len(example.responses) == 1:
      assert scores == tuple(example.rewards)
    else:
      position = text.order.index(example.best)
      assert scores[position] == max(scores) and scores.count(max(scores)) == 1
    sft_sources.tokenize(text, PROMPT_FORMAT, tokenizer(), 600)
  assert len(orders) > 6


def test_practice_splits_are_disjoint_and_mistakes_change_texts():
  train, held_out = (
    list(sft_sources.read('practice:30', split, 's'))
    for split in ('train', 'held_out')
  )
  queries = [{t.example.query for t in texts} for texts in (train, held_out)]
  assert not queries[0] & queries[1]
  slipped = list(
    sft_sources.read('practice:30', 'train', 's', teacher_error_rate=1.0)
  )
  assert [t.example for t in slipped] == [t.example for t in train]
  changed = [
    a.generations != b.generations for a, b in zip(train, slipped, strict=True)
  ]
  assert sum(changed) > 20


def test_basics_are_single_turn_texts():
  whole = list(sft_sources.read('basics:40', 'train', 'mine', seed=1))
  assert (
    list(sft_sources.read('basics:12', 'train', 'mine', seed=1)) == whole[:12]
  )
  assert len(whole) == 40 and {text.source for text in whole} == {'mine'}
  # Other problems than those of practice:COUNT with the same seed.
  assert whole[0].id == 'practice/chain_sum/train/1001/0/solve'
  other = list(sft_sources.read('basics:40', 'train', 'mine', seed=2))
  assert not {text.id for text in other} & {text.id for text in whole}
  for text in whole:
    assert [turn.role for turn in text.turns] == ['user']
    (generation,) = text.generations
    prompt, generations = decoded(
      sft_sources.tokenize(text, PROMPT_FORMAT, tokenizer(), 300)
    )
    assert prompt == (
      f'<bos><start_of_turn>user\n{text.turns[0].text}<end_of_turn>\n'
      '<start_of_turn>model\n'
    )
    assert generations == [f'{generation}<end_of_turn>']


def test_default_count_of_basics(monkeypatch):
  calls = []

  def skill_texts(split, count, *, seed):
    calls.append((split, count, seed))
    return [('a', 'q', 'g')]

  monkeypatch.setattr(primitive_skills, 'skill_texts', skill_texts)
  (text,) = sft_sources.read('basics', 'held_out', 's', seed=3)
  assert text == SFTExample('a', 's', ('g',), turns=(Turn('user', 'q'),))
  assert calls == [('held_out', 20_000, 1003)]


@pytest.mark.parametrize('count', ['0', '-3', 'x', '1.5', ' 4', '4:', '²'])
def test_invalid_counts_of_basics(count):
  spec = f'basics:{count}'
  with pytest.raises(UserError, match=naming(repr(spec), 'basics:COUNT')):
    list(sft_sources.read(spec, 'train', 's'))


def test_basics_of_an_unknown_split():
  with pytest.raises(ValueError, match=naming('split', 'test', 'train')):
    list(sft_sources.read('basics:3', 'test', 's'))


def test_label_only_judgements_of_any_source(tmp_path):
  rows = [
    {'id': f'p{i}', 'query': f'q {i}', 'responses': ['x', 'y'], 'best': i % 2}
    for i in range(8)
  ]
  unknown = {'id': 'u', 'query': 'q', 'responses': ['x', 'y']}
  path = write(tmp_path / 'f.jsonl', *rows, unknown, 'not json')
  *texts, first, second = read('verdicts', path)
  assert [type(x) for x in (first, second)] == [ExampleError, ExampleError]
  assert first.id == 'u' and names(first.reason, "'u'")
  assert re.match(in_row(path, 10), second.reason)
  assert {text.order for text in texts} == {(0, 1), (1, 0)}
  for text, row in zip(texts, rows, strict=True):
    assert (text.id, text.source) == (row['id'], 'mine')
    (generation,) = text.generations
    position = text.order.index(row['best'])
    assert (
      PROMPT_FORMAT.parse_scores(generation, (0, 1))
      == ((8, 4), (4, 8))[position]
    )
  again = list(sft_sources.read(f'verdicts:{path}', 'train', 'mine', seed=1))
  assert [x.order for x in again[:8]] != [x.order for x in texts]


def test_judgements_without_principles(tmp_path):
  judged = {'query': 'q', 'responses': ['a', 'b']}
  path = write(
    tmp_path / 'f.jsonl',
    judged | {'generations': ['Specific Criteria:\n1\n\nAnalysis:\nx', 'y']},
    [],
  )
  judgement, error = read('no_principles:judged', path)
  assert judgement.generations == ('Analysis:\nx', 'y')
  assert names(error.reason, 'object')
  plain = write(tmp_path / 'g.jsonl', {'query': 'q', 'generation': 'Analysis:'})
  (text,) = read('no_principles:texts', plain)
  assert text.generations == ('Analysis:',)
  full, cut = (
    list(
      sft_sources.read(
        f'{prefix}practice:6', 'train', 's', teacher_error_rate=1.0
      )
    )
    for prefix in ('', 'no_principles:')
  )
  for whole, part in zip(full, cut, strict=True):
    before, after = whole.generations[0].split('Analysis:')
    assert 'Specific Criteria' in before
    assert part.generations == (f'Analysis:{after}',)
    assert (part.id, part.order) == (whole.id, whole.order)


def test_text_lines():
  plain = SFTExample(
    'a', 's', ('one\ntwo', 'three'), turns=(Turn('user', 'u\nv'),)
  )
  judged = SFTExample(
    'b', 's', ('four',), example=example_of('b', 'r'), order=(0,)
  )
  lines = list(sft_sources.text_lines([plain, judged], PROMPT_FORMAT))
  assert lines[:5] == ['u', 'v', 'one', 'two', 'three']
  rendered = PROMPT_FORMAT.render(judged.example, (0,)).split('\n')
  assert lines[5:] == [*rendered, 'four']


def test_a_tokenizer_can_be_trained_on_lone_surrogates(tmp_path):
  odd = SFTExample(
    'a', 's', ('\ud800 and \u2581',), turns=(Turn('user', '\udfff'),)
  )
  more = list(sft_sources.read('practice:64', 'train', 's'))
  trained = tiny_tokenizer.train(
    tmp_path / 'tokenizer.model',
    sft_sources.text_lines([odd, *more], PROMPT_FORMAT),
  )
  assert trained.vocab_size == 1024
  tokenized = sft_sources.tokenize(odd, PROMPT_FORMAT, trained, 100)
  assert trained.decode(tokenized.generations[0]) == '\ufffd and \u2581'
