"""Labels, weights and tokens of records, by hand and against the judges."""

import dataclasses
import json

import numpy as np
import pytest

from grm_jax.data import collate, tokenized_example
from grm_jax.errors import UserError
from grm_jax.judgement.example import JudgingExample, Turn, to_row
from grm_jax.judgement.judgement import JudgedExample, Judgement
from grm_jax.judgement.prompt_format import PromptFormat
from grm_jax.judgement.rejection_sampling import FilterSample
from grm_jax.judges.baselines.pairwise_rm import (
  PairJudge,
  second_responses,
  win_probabilities,
)
from grm_jax.judges.baselines.scalar_rm import ScalarJudge
from grm_jax.judges.baselines.semi_scalar import SemiScalarJudge, critique_text
from grm_jax.judges.generative import Judge, JudgeConfig
from grm_jax.judges.meta_rm import META, MetaJudge
from grm_jax.model.batch import Batch
from grm_jax.stages.reward_model import data as rm_data
from grm_jax.stages.reward_model.data import RewardDataset
from tests import test_configs
from tests.judges.fake import RuleEngine, load_tokenizer
from tests.messages import names, naming, setting

SHAPE = tokenized_example.BatchShape((600,), (64,), 2)


def example(name, *responses, **fields):
  query = (Turn('user', f'Which number is {name}?'),)
  return JudgingExample(name, query, responses, **fields)


PAIR = example('pair', 'two', 'ten', best=1)
THREE = example('three', 'a', 'bb', 'ccc', best=0)
SINGLE = example('single', 'x', rewards=(0.0,))
EXAMPLES = {x.id: x for x in (PAIR, THREE, SINGLE)}


def sample(name, order, *scores, text='', **flags):
  boxed = ', '.join(map(str, scores))
  return FilterSample(
    name, order, text or rf'Scores: \boxed{{{boxed}}}', **flags
  )


# Samples with their labels by equation 10.
JUDGED = [
  (sample('pair', (0, 1), 2, 9), 1),
  (sample('pair', (0, 1), 9, 2), 0),
  (sample('pair', (1, 0), 9, 2), 1),  # the best response stood first
  (sample('pair', (0, 1), 5, 5), 0),
  (sample('pair', (0, 1), text='I cannot tell.'), 0),
  (sample('pair', (0, 1), 1, 8, truncated=True), 0),
  (sample('three', (0, 1, 2), 8, 7, 7), 1),
  (sample('three', (2, 1, 0), 8, 7, 7), 0),
  (sample('single', (0,), 0), 1),
  (sample('single', (0,), 1), 0),
]


def dataset(judged=JUDGED):
  samples = {}
  for x, _ in judged:
    samples.setdefault(x.example_id, []).append(x)
  return RewardDataset(EXAMPLES, samples)


def make_records(
  kind, data, batch_shape=SHAPE, template=META, balance=False, **order
):
  prompt_format = PromptFormat(template, 'single')
  return rm_data.make_records(
    kind,
    data,
    prompt_format,
    load_tokenizer(),
    batch_shape,
    'these data',
    balance,
    **order,
  )


def test_labels_are_equation_10():
  labels = {
    (x.example_id, index): label
    for x in make_records('meta', dataset())
    for index, label in zip(x.text_indices, x.labels, strict=True)
  }
  expected, last = {}, {}
  for x, label in JUDGED:
    index = last[x.example_id] = last.get(x.example_id, -1) + 1
    expected[x.example_id, index] = label
  assert labels == expected


def test_a_record_has_one_order_and_at_most_r_judgements():
  records = make_records('meta', dataset())
  assert {x.tokenized.id: x.text_indices for x in records} == {
    'pair 0,1 0': (0, 1),
    'pair 0,1 1': (3, 4),
    'pair 0,1 2': (5,),
    'pair 1,0 0': (2,),
    'three 0,1,2 0': (0,),
    'three 2,1,0 0': (1,),
    'single 0 0': (0, 1),
  }


def test_both_labels_have_the_same_total_weight():
  records = make_records('meta', dataset(), balance=True)
  weights = {0: [], 1: []}
  for x in records:
    for label, weight in zip(x.labels, x.weights, strict=True):
      weights[label].append(weight)
  assert weights == {0: [1.0] * 6, 1: [6 / 4] * 4}


def test_judgements_have_weight_one_as_in_the_paper():
  records = make_records('meta', dataset())
  assert {w for x in records for w in x.weights} == {1.0}


class RecordingScorer:
  """Stands for ScalarScorer: records its inputs."""

  prompts, prompt_buckets, max_new_tokens = 3, (600,), 64

  def __init__(self, value=None):
    self.items, self.value = [], value or (lambda prompt, text: 0.0)

  def rejection_reason(self, item):
    return None

  def score(self, items):
    self.items += [
      (tuple(prompt), [tuple(x) for x in texts]) for prompt, texts in items
    ]
    return [
      np.array([self.value(prompt, text) for text in texts], np.float32)
      for prompt, texts in items
    ]


def tokens(record):
  tokenized = record.tokenized
  texts = [tuple(x.tolist()) for x in tokenized.generations]
  return tuple(tokenized.prompt.tolist()), texts


LONG = 'This judgement is far too long. ' * 20


@pytest.mark.parametrize('template', [META, 'practice_meta'])
def test_tokens_are_those_of_the_meta_judge(template):
  judged = [*JUDGED, (sample('pair', (1, 0), text=LONG), 0)]
  scorer = RecordingScorer()
  for name, samples in dataset(judged).samples.items():
    judgements = [Judgement(x.order, x.text, 1, 'stop', None) for x in samples]
    judge = MetaJudge(scorer, load_tokenizer(), template)
    judge.rate(JudgedExample(EXAMPLES[name], tuple(judgements)))
  by_prompt = {}
  for record in make_records('meta', dataset(judged), template=template):
    prompt, texts = tokens(record)
    by_prompt.setdefault(prompt, []).extend(texts)
  assert list(by_prompt.items()) == scorer.items
  lengths = {len(text) for texts in by_prompt.values() for text in texts}
  assert max(lengths) == 64  # LONG is cut to what fits


def test_bradley_terry_tokens_are_those_of_the_scalar_judge():
  scorer = RecordingScorer()
  list(ScalarJudge(scorer, load_tokenizer()).judge([PAIR, THREE]))
  (pair_prompt, pair_texts), (three_prompt, three_texts) = scorer.items
  one, two, three = make_records(
    'bradley_terry', RewardDataset(EXAMPLES_OF_SEVERAL, {})
  )
  assert tokens(one) == (pair_prompt, [pair_texts[1], pair_texts[0]])
  # The best response with the others, R at a time.
  assert tokens(two) == (three_prompt, three_texts[:2])
  assert tokens(three) == (three_prompt, [three_texts[0], three_texts[2]])
  assert [x.labels for x in (one, two, three)] == [(1, 0)] * 3
  assert [x.text_indices for x in (one, two, three)] == [(1, 0), (0, 1), (0, 2)]
  # Each example has the same weight, however many pairs it has.
  assert [x.weights[1] for x in (one, two, three)] == [2.0, 1.0, 1.0]


CRITIQUES = {
  'pair/0': ['Too small.', 'Wrong.'],
  'pair/1': ['Right.', 'Good.'],
  'three/0': ['Short.'],
  'three/1': ['Longer.', 'Not read: the others have one critique.'],
  'three/2': ['Long.'],
}


def test_critique_tokens_are_those_of_the_semi_scalar_judge():
  scorer, tokenizer = RecordingScorer(), load_tokenizer()
  critic = Judge(
    RuleEngine(), 'weights', tokenizer, JudgeConfig('critic', reads='critique')
  )
  judge = SemiScalarJudge(critic, scorer, tokenizer)
  judge.inner = WritesCritiques(critic)
  judged = list(judge.judge([PAIR], 2))
  assert len(judged[0].samples) == 2
  (prompt, first), (other_prompt, second) = scorer.items
  assert prompt == other_prompt
  one, two, *three = make_records('critique', critiqued())
  # The j-th critique of the best response, 1, and of the other.
  assert tokens(one) == (prompt, [second[0], first[0]])
  assert tokens(two) == (prompt, [second[1], first[1]])
  assert [x.labels for x in (one, two)] == [(1, 0)] * 2
  assert [x.text_indices for x in three] == [(0, 1), (0, 2)]
  end = tokenizer.end_of_turn_id
  encode = tokenizer.encode
  assert list(second[0]) == [*encode('ten'), end, *encode('Right.'), end]


class WritesCritiques:
  """Stands for the critique model: writes CRITIQUES."""

  def __init__(self, judge):
    self.tokenizer, self.config, self.engine = (
      judge.tokenizer,
      judge.config,
      judge.engine,
    )

  def judge(self, examples, k, progress=''):
    for x in examples:
      samples = [
        Judgement((0,), text, 1, 'stop', ()) for text in CRITIQUES[x.id][:k]
      ]
      yield JudgedExample(x, tuple(samples))


def critiqued():
  samples = {
    name: [FilterSample(name, (0,), text) for text in texts]
    for name, texts in CRITIQUES.items()
  }
  return RewardDataset(EXAMPLES_OF_SEVERAL, samples)


def test_a_response_without_a_critique_is_skipped(caplog):
  data = critiqued()
  del data.samples['three/1']
  with caplog.at_level('WARNING'):
    records = make_records('critique', data)
  assert {x.example_id for x in records} == {'pair'}
  assert any(names(x, 'three', 'config.samples') for x in caplog.messages)


def test_a_long_critique_is_cut_and_a_long_response_shortened():
  tokenizer = load_tokenizer()
  text = critique_text('word ' * 100, LONG, tokenizer, 160)
  assert text.shortened and len(text.tokens) <= 160
  critique = [*tokenizer.encode(LONG)[:79], tokenizer.end_of_turn_id]
  assert list(text.tokens[-80:]) == critique
  with pytest.raises(UserError, match=naming(500, 160)):
    critique_text('word ' * 100, LONG, tokenizer, 160, 'refuse')


def test_critiques_are_read_by_the_ids_of_responses(tmp_path):
  rows = [
    {'id': name, 'text': text}
    for name, texts in CRITIQUES.items()
    for text in texts
  ]
  path = tmp_path / 'samples.jsonl'
  path.write_text('\n'.join(map(json.dumps, rows)))
  rows = tmp_path / 'rows.jsonl'
  examples = [to_row(x) for x in EXAMPLES_OF_SEVERAL.values()]
  rows.write_text('\n'.join(map(json.dumps, examples)))
  config = test_configs.load(test_configs.ROOT / 'configs/reward_model.py')
  config.update(kind='critique', data=str(rows), samples=str(path))
  config.evaluation.holdout_fraction = 0.5
  dataset, held_out = rm_data.read(config)
  for part in (dataset, held_out):
    (name,) = part.examples
    assert {x.split('/')[0] for x in part.samples} == {name}


EXAMPLES_OF_SEVERAL = {x.id: x for x in (PAIR, THREE)}


def test_pair_tokens_are_those_of_the_pair_judge_in_both_orders():
  scorer = RecordingScorer()
  list(PairJudge(scorer, load_tokenizer()).judge([PAIR, THREE]))
  scored = {(prompt, text) for prompt, texts in scorer.items for text in texts}
  assert len(scored) == 2 + 6
  labels = {}
  for x in make_records('pair', RewardDataset(EXAMPLES_OF_SEVERAL, {})):
    prompt, texts = tokens(x)
    for text, label, weight, index in zip(
      texts, x.labels, x.weights, x.text_indices, strict=True
    ):
      assert (prompt, text) in scored
      labels[x.tokenized.id, index] = label, weight
  assert labels == {
    ('pair 1 0', 0): (1, 2.0),
    ('pair 0 0', 1): (0, 2.0),
    ('three 0 0', 1): (1, 1.0),
    ('three 0 0', 2): (1, 1.0),
    ('three 1 0', 0): (0, 1.0),
    ('three 2 0', 0): (0, 1.0),
  }


@pytest.mark.parametrize('order', ['random', 'fixed'])
def test_pairs_can_be_read_in_a_single_order(order):
  """Training and judging read the same single order of each pair."""
  scorer = RecordingScorer()
  judge = PairJudge(scorer, load_tokenizer(), order=order, seed=3)
  list(judge.judge([PAIR, THREE]))
  scored = {(prompt, text) for prompt, texts in scorer.items for text in texts}
  assert len(scored) == 1 + 3
  data = RewardDataset(EXAMPLES_OF_SEVERAL, {})
  records = make_records('pair', data, order=order, seed=3)
  pairs = [(tokens(x)[0], text) for x in records for text in tokens(x)[1]]
  assert len(pairs) == 1 + 2 and set(pairs) <= scored
  if order == 'fixed':
    labels = {x.tokenized.id: (x.labels, x.text_indices) for x in records}
    assert labels == {
      'pair 0 0': ((0,), (1,)),
      'three 0 0': ((1, 1), (1, 2)),
    }


def test_second_responses():
  assert second_responses('balanced', 3, 0, 'x') == [[1, 2], [0, 2], [0, 1]]
  assert second_responses('fixed', 3, 0, 'x') == [[1, 2], [2], []]
  pairs = [second_responses('random', 2, 0, str(i)) for i in range(100)]
  assert all(x in ([[1], []], [[], [0]]) for x in pairs)
  firsts = [first for first, _ in pairs]
  assert 30 < firsts.count([1]) < 70


def test_a_single_order_gives_both_responses_a_probability():
  # The first of three beats the second with 1/2 and the third with 3/4.
  logits = [np.log([1.0, 3.0]), np.zeros(1)]
  found = win_probabilities(logits, [[1, 2], [2], []])
  assert found == pytest.approx([5 / 8, 1 / 2, 3 / 8])


def test_the_pair_judge_averages_probabilities():
  """The value is the difference in length: the longer one is better."""

  def value(prompt, text):
    first = load_tokenizer().decode(prompt).split('[Start of Response 1]\n')[1]
    first = first.split('\n[End')[0]
    return len(first) - len(load_tokenizer().decode(text[:-1]))

  judged = PairJudge(RecordingScorer(value), load_tokenizer()).judge(
    [THREE, SINGLE, PAIR]
  )
  three, single, pair = judged
  (judgement,) = three.samples
  up, far = (1 / (1 + np.exp(-x)) for x in (1.0, 2.0))
  expected = [(2 - up - far) / 2, 1 / 2, (up + far) / 2]
  assert judgement.scores == pytest.approx(expected)
  assert pair.samples[0].scores == pytest.approx((1 / 2, 1 / 2))
  assert single.id == 'single' and single.reason


def test_a_preference_for_the_first_cancels_out():
  both = [[1], [0]]
  assert win_probabilities([np.full(1, 3.0)] * 2, both) == [0.5, 0.5]
  # Three responses; the first of a pair wins in all but one.
  found = win_probabilities(
    [np.full(2, 9.0), np.array([9.0, -9.0]), np.full(2, 9.0)],
    second_responses('balanced', 3, 0, 'x'),
  )
  assert found == pytest.approx([1 / 2, 1 / 4, 3 / 4], abs=1e-3)


def test_records_that_do_not_fit_are_skipped(caplog):
  wide = example('wide', 'x' * 400, 'y', best=0)
  data = RewardDataset({'wide': wide, 'pair': PAIR}, {})
  with caplog.at_level('WARNING'):
    records = make_records('bradley_terry', data)
  assert [x.example_id for x in records] == ['pair']
  assert records[0].weights == (1.0, 1.0)
  assert any(
    names(x, 'wide 0', 'config.batch.generation_buckets')
    for x in caplog.messages
  )
  with pytest.raises(
    ValueError, match=naming('these data', 'config.batch.generation_buckets')
  ):
    make_records('bradley_terry', RewardDataset({'wide': wide}, {}))


@pytest.mark.parametrize('label, word', [(1, 'wrong'), (0, 'right')])
def test_all_labels_are_equal(label, word):
  equal = [x for x in JUDGED if x[1] == label]
  with pytest.raises(UserError, match=naming('these data', len(equal), word)):
    make_records('meta', dataset(equal))


def test_labels_of_a_process():
  balanced = make_records('meta', dataset(), balance=True)
  records = {x.tokenized.id: x for x in balanced}
  items = [
    collate.BatchItem(records[name].tokenized, 0, indices)
    for name, indices in (
      ('single 0 0', (0, 1)),
      ('pair 0,1 2', (0,)),
      ('pair 0,1 0', (1,)),
    )
  ] + [collate.BatchItem(None, 0, ())]
  info = collate.batch_info(items, SHAPE)
  local_indices = np.array([0, 2, 3])
  tokens = collate.build_batch(items, SHAPE, local_indices)
  batch = rm_data.make_reward_batch(tokens, info, records, local_indices)
  assert isinstance(batch.batch, Batch) and batch.batch is tokens
  assert batch.labels.tolist() == [[1, 0], [0, 0], [0, 0]]
  assert batch.weights.tolist() == [[1.5, 1], [1, 0], [0, 0]]
  assert batch.labels.dtype == batch.weights.dtype == np.float32


def test_the_digest_depends_on_labels_and_weights():
  records = make_records('meta', dataset())
  digest = rm_data.label_digest(records)
  assert digest == rm_data.label_digest(make_records('meta', dataset()))
  num_texts = len(records[0].labels)
  for change in ({'labels': (0,) * num_texts}, {'weights': (2.0,) * num_texts}):
    changed = [dataclasses.replace(records[0], **change), *records[1:]]
    assert rm_data.label_digest(changed) != digest


def config(folder, **changes):
  loaded = test_configs.load(
    test_configs.ROOT / 'configs/reward_model.py', 'tiny'
  )
  settings = {
    'data': f'{folder}/rows.jsonl',
    'samples': f'{folder}/a.jsonl,{folder}/b.jsonl',
    'evaluation.holdout_fraction': 0.0,
  }
  loaded.update_from_flattened_dict(settings | changes)
  return loaded


@pytest.fixture
def folder(tmp_path):
  """Writes ten pairs with five queries, and two files of judgements."""
  rows = [
    {
      'id': f'e{i}',
      'query': f'Query {i % 5}',
      'responses': [f'a{i}', f'b{i}'],
      'best': 0,
    }
    for i in range(10)
  ]
  rows.append({'id': 'unknown', 'query': 'q', 'responses': ['a', 'b']})
  write(tmp_path / 'rows.jsonl', rows)
  write(
    tmp_path / 'a.jsonl',
    [
      {'id': f'e{i}', 'text': f'a{i}', 'hinted': hinted}
      for i in range(10)
      for hinted in (False, True)
    ],
  )
  write(
    tmp_path / 'b.jsonl',
    [{'id': f'e{i}', 'text': f'b{i}', 'order': [1, 0]} for i in range(5)],
  )
  return tmp_path


def write(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def test_unhinted_samples_of_all_files(folder):
  data, held_out = rm_data.read(config(folder))
  assert held_out is None
  assert sorted(data.examples) == [f'e{i}' for i in range(10)]
  texts = {
    name: [(x.text, x.order) for x in samples]
    for name, samples in data.samples.items()
  }
  assert texts['e3'] == [('a3', (0, 1)), ('b3', (1, 0))]
  assert texts['e7'] == [('a7', (0, 1))]
  assert sum(map(len, texts.values())) == 15


@pytest.mark.parametrize('kind', ['meta', 'bradley_terry'])
def test_no_query_is_in_both_splits(folder, kind):
  samples = {} if kind == 'meta' else {'samples': ''}
  data, held_out = rm_data.read(
    config(folder, kind=kind, **samples, **{'evaluation.holdout_fraction': 0.4})
  )
  queries, held_out_queries = (
    {x.query[0].text for x in split.examples.values()}
    for split in (data, held_out)
  )
  assert len(queries) == 3 and len(held_out_queries) == 2
  assert not queries & held_out_queries
  assert len(data.examples) == 6 and len(held_out.examples) == 4
  for split in (data, held_out):
    assert split.samples.keys() == (
      split.examples.keys() if kind == 'meta' else set()
    )


def test_separate_held_out_data(folder):
  write(folder / 'held.jsonl', [{'id': 'e2', 'text': 'other'}])
  settings = {
    'evaluation.data': f'{folder}/rows.jsonl',
    'evaluation.samples': f'{folder}/held.jsonl',
    'evaluation.holdout_fraction': 0.4,
  }
  data, held_out = rm_data.read(config(folder, **settings))
  assert len(data.samples) == 10
  assert [(k, len(x)) for k, x in held_out.samples.items()] == [('e2', 1)]


@pytest.mark.parametrize(
  'changes, words',
  [
    (
      {'evaluation.holdout_fraction': 0.95},
      (*setting('evaluation.holdout_fraction', 0.95), 5),
    ),
    ({'samples': 'nowhere.jsonl'}, ['nowhere.jsonl']),
    ({'samples': '{}/other.jsonl'}, ['other.jsonl', 'nobody']),
    ({'samples': '{}/hinted.jsonl'}, ['hinted.jsonl', 'hinted']),
    ({'data': '{}/unknown.jsonl'}, ['config.data', 'unknown.jsonl']),
    (
      {'kind': 'pair', 'samples': '', 'data': '{}/single.jsonl'},
      ['config.data', 'single.jsonl'],
    ),
  ],
)
def test_mistakes(folder, changes, words):
  write(folder / 'other.jsonl', [{'id': 'nobody', 'text': 'a'}])
  write(folder / 'hinted.jsonl', [{'id': 'e1', 'text': 'a', 'hinted': True}])
  row = {'id': 'x', 'query': 'q', 'responses': ['a', 'b']}
  write(folder / 'unknown.jsonl', [row])
  write(folder / 'single.jsonl', [row | {'responses': ['a'], 'rewards': [1.0]}])
  changes = {
    key: value.replace('{}', str(folder)) if isinstance(value, str) else value
    for key, value in changes.items()
  }
  with pytest.raises(UserError, match=naming(*words)) as caught:
    rm_data.read(config(folder, **changes))
  assert '\n' not in str(caught.value)
