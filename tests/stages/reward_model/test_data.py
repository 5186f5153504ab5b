"""Labels, weights and tokens of scalar training, by hand and as judges read."""

import dataclasses
import json

import numpy as np
import pytest

from grm_jax.data import collate, tokenized_example
from grm_jax.errors import UserError
from grm_jax.judgement.example import JudgingExample, Turn
from grm_jax.judgement.judgement import JudgedExample, Judgement
from grm_jax.judgement.prompt_format import PromptFormat
from grm_jax.judgement.rejection_sampling import FilterSample
from grm_jax.judges.baselines.pairwise_rm import PairJudge, chances
from grm_jax.judges.baselines.scalar_rm import META, MetaJudge, ScalarJudge
from grm_jax.model.batch import Batch
from grm_jax.stages.reward_model import data as rm_data
from grm_jax.stages.reward_model.data import RewardDataset
from tests import test_configs
from tests.judges.fake import words
from tests.messages import names, naming, setting

LIMITS = tokenized_example.limits((600,), (64,), 2)


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


# With what they are worth by equation 10.
JUDGED = [
  (sample('pair', (0, 1), 2, 9), 1),
  (sample('pair', (0, 1), 9, 2), 0),
  (sample('pair', (1, 0), 9, 2), 1),  # the best was shown first
  (sample('pair', (0, 1), 5, 5), 0),
  (sample('pair', (0, 1), text='I cannot tell.'), 0),
  (sample('pair', (0, 1), 1, 8, truncated=True), 0),
  (sample('three', (0, 1, 2), 8, 7, 7), 1),
  (sample('three', (2, 1, 0), 8, 7, 7), 0),
  (sample('single', (0,), 0), 1),
  (sample('single', (0,), 1), 0),
]


def data(judged=JUDGED):
  found = {}
  for one, _ in judged:
    found.setdefault(one.example, []).append(one)
  return RewardDataset(EXAMPLES, found)


def rows_of(kind, given, limits=LIMITS, template=META):
  forms = PromptFormat(template, 'single')
  return rm_data.rows_of(kind, given, forms, words(), limits, 'these data')


def test_labels_are_equation_10():
  labels = {
    (x.example, place): label
    for x in rows_of('meta', data())
    for place, label in zip(x.places, x.labels, strict=True)
  }
  expected, seen = {}, {}
  for one, label in JUDGED:
    place = seen[one.example] = seen.get(one.example, -1) + 1
    expected[one.example, place] = label
  assert labels == expected


def test_a_record_has_one_order_and_at_most_r_judgements():
  found = {x.record.id: x.places for x in rows_of('meta', data())}
  assert found == {
    'pair 0,1 0': (0, 1),
    'pair 0,1 1': (3, 4),
    'pair 0,1 2': (5,),
    'pair 1,0 0': (2,),
    'three 0,1,2 0': (0,),
    'three 2,1,0 0': (1,),
    'single 0 0': (0, 1),
  }


def test_both_labels_weigh_the_same_in_total():
  made = rows_of('meta', data())
  weights = {0: [], 1: []}
  for x in made:
    for label, weight in zip(x.labels, x.weights, strict=True):
      weights[label].append(weight)
  assert weights == {0: [1.0] * 6, 1: [6 / 4] * 4}
  # Held-out rows, or others, are weighed by their own counts.
  few = rm_data.balanced(made[:1], 'few')
  assert few[0].weights == (1.0, 1.0)


class Seen:
  """In place of Values: keeps what is to be valued."""

  prompts, buckets, size = 3, (600,), 64

  def __init__(self, value=None):
    self.items, self.value = [], value or (lambda prompt, text: 0.0)

  def fault(self, item):
    return None

  def of(self, items):
    self.items += [
      (tuple(prompt), [tuple(x) for x in texts]) for prompt, texts in items
    ]
    return [
      np.array([self.value(prompt, text) for text in texts], np.float32)
      for prompt, texts in items
    ]


def tokens(row):
  record = row.record
  own = [tuple(x.tolist()) for x in record.generations]
  return tuple(record.prompt.tolist()), own


LONG = 'This judgement goes on and on. ' * 20


@pytest.mark.parametrize('template', [META, 'practice_meta'])
def test_the_tokens_are_those_that_the_meta_judge_reads(template):
  judged = [*JUDGED, (sample('pair', (1, 0), text=LONG), 0)]
  seen = Seen()
  for name, own in data(judged).samples.items():
    samples = [Judgement(x.order, x.text, 1, 'stop', None) for x in own]
    judge = MetaJudge(seen, words(), template)
    judge.rate(JudgedExample(EXAMPLES[name], tuple(samples)))
  ours = {}
  for row in rows_of('meta', data(judged), template=template):
    prompt, texts = tokens(row)
    ours.setdefault(prompt, []).extend(texts)
  assert list(ours.items()) == seen.items
  lengths = {len(text) for texts in ours.values() for text in texts}
  assert max(lengths) == 64  # LONG was cut to what fits


def test_bradley_terry_reads_what_the_scalar_judge_reads():
  seen = Seen()
  list(ScalarJudge(seen, words()).judge([PAIR, THREE]))
  (pair_prompt, pair_texts), (three_prompt, three_texts) = seen.items
  one, two, three = rows_of(
    'bradley_terry', RewardDataset(EXAMPLES_OF_SEVERAL, {})
  )
  assert tokens(one) == (pair_prompt, [pair_texts[1], pair_texts[0]])
  # The best stands beside each of the others, R at a time.
  assert tokens(two) == (three_prompt, three_texts[:2])
  assert tokens(three) == (three_prompt, [three_texts[0], three_texts[2]])
  assert [x.labels for x in (one, two, three)] == [(1, 0)] * 3
  assert [x.places for x in (one, two, three)] == [(1, 0), (0, 1), (0, 2)]
  # Each example counts once, however many pairs it has.
  assert [x.weights[1] for x in (one, two, three)] == [2.0, 1.0, 1.0]


EXAMPLES_OF_SEVERAL = {x.id: x for x in (PAIR, THREE)}


def test_pairs_are_read_in_both_orders_as_the_pair_judge_does():
  seen = Seen()
  list(PairJudge(seen, words()).judge([PAIR, THREE]))
  read = {(prompt, text) for prompt, texts in seen.items for text in texts}
  assert len(read) == 2 + 6
  made = rows_of('pair', RewardDataset(EXAMPLES_OF_SEVERAL, {}))
  ours = {}
  for row in made:
    prompt, texts = tokens(row)
    for text, label, weight, place in zip(
      texts, row.labels, row.weights, row.places, strict=True
    ):
      assert (prompt, text) in read
      ours[row.record.id, place] = label, weight
  assert ours == {
    ('pair 1 0', 0): (1, 2.0),
    ('pair 0 0', 1): (0, 2.0),
    ('three 0 0', 1): (1, 1.0),
    ('three 0 0', 2): (1, 1.0),
    ('three 1 0', 0): (0, 1.0),
    ('three 2 0', 0): (0, 1.0),
  }


def test_a_pair_judge_sums_what_is_likely():
  """Values by the length of responses: the longer one is better."""

  def value(prompt, text):
    first = words().decode(prompt).split('[Start of Response 1]\n')[1]
    first = first.split('\n[End')[0]
    return len(first) - len(words().decode(text[:-1]))

  judged = PairJudge(Seen(value), words()).judge([THREE, SINGLE, PAIR])
  three, single, pair = judged
  (found,) = three.samples
  up, far = (1 / (1 + np.exp(-x)) for x in (1.0, 2.0))
  expected = [(2 - up - far) / 2, 1 / 2, (up + far) / 2]
  assert found.scores == pytest.approx(expected)
  assert pair.samples[0].scores == pytest.approx((1 / 2, 1 / 2))
  assert single.id == 'single' and single.reason


def test_a_preference_for_the_first_evens_out():
  assert chances([np.array([3.0]), np.array([3.0])]) == [0.5, 0.5]
  # Of three, all say that the first of a pair is better but once.
  found = chances([np.full(2, 9.0), np.array([9.0, -9.0]), np.full(2, 9.0)])
  assert found == pytest.approx([1 / 2, 1 / 4, 3 / 4], abs=1e-3)


def test_what_does_not_fit_is_left_out(caplog):
  wide = example('wide', 'x' * 400, 'y', best=0)
  given = RewardDataset({'wide': wide, 'pair': PAIR}, {})
  with caplog.at_level('WARNING'):
    found = rows_of('bradley_terry', given)
  assert [x.example for x in found] == ['pair']
  assert found[0].weights == (1.0, 1.0)
  assert any(
    names(x, 'wide 0', 'config.batch.generation_buckets')
    for x in caplog.messages
  )
  with pytest.raises(
    ValueError, match=naming('these data', 'config.batch.generation_buckets')
  ):
    rows_of('bradley_terry', RewardDataset({'wide': wide}, {}))


@pytest.mark.parametrize('label, word', [(1, 'wrong'), (0, 'right')])
def test_nothing_to_tell_apart(label, word):
  alike = [x for x in JUDGED if x[1] == label]
  with pytest.raises(UserError, match=naming('these data', len(alike), word)):
    rows_of('meta', data(alike))


def test_labels_beside_the_tokens_of_a_process():
  made = rows_of('meta', data())
  table = {x.record.id: x for x in made}
  items = [
    collate.BatchItem(table[name].record, 0, chosen)
    for name, chosen in (
      ('single 0 0', (0, 1)),
      ('pair 0,1 2', (0,)),
      ('pair 0,1 0', (1,)),
    )
  ] + [collate.BatchItem(None, 0, ())]
  meta = collate.describe(items, LIMITS)
  mine = np.array([0, 2, 3])
  given = collate.pad(items, LIMITS, mine)
  found = rm_data.batch(given, meta, table, mine)
  assert isinstance(found.batch, Batch) and found.batch is given
  assert found.labels.tolist() == [[1, 0], [0, 0], [0, 0]]
  assert found.weights.tolist() == [[1.5, 1], [1, 0], [0, 0]]
  assert found.labels.dtype == found.weights.dtype == np.float32


def test_the_digest_sees_labels_and_weights():
  made = rows_of('meta', data())
  first = rm_data.digest(made)
  assert first == rm_data.digest(rows_of('meta', data()))
  for change in (
    {'labels': (0,) * len(made[0].labels)},
    {'weights': (2.0,) * len(made[0].labels)},
  ):
    other = [dataclasses.replace(made[0], **change), *made[1:]]
    assert rm_data.digest(other) != first


def config(folder, **changes):
  made = test_configs.load(
    test_configs.ROOT / 'configs/reward_model.py', 'tiny'
  )
  given = {
    'data': f'{folder}/rows.jsonl',
    'samples': f'{folder}/a.jsonl,{folder}/b.jsonl',
    'evaluation.holdout_fraction': 0.0,
  }
  made.update_from_flattened_dict(given | changes)
  return made


@pytest.fixture
def folder(tmp_path):
  """Ten pairs of five queries, and two files of judgements of them."""
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
  found, held = rm_data.read(config(folder))
  assert held is None
  assert sorted(found.examples) == [f'e{i}' for i in range(10)]
  texts = {
    name: [(x.text, x.order) for x in own]
    for name, own in found.samples.items()
  }
  assert texts['e3'] == [('a3', (0, 1)), ('b3', (1, 0))]
  assert texts['e7'] == [('a7', (0, 1))]
  assert sum(map(len, texts.values())) == 15


@pytest.mark.parametrize('kind', ['meta', 'bradley_terry'])
def test_no_query_is_on_both_sides(folder, kind):
  samples = {} if kind == 'meta' else {'samples': ''}
  found, held = rm_data.read(
    config(folder, kind=kind, **samples, **{'evaluation.holdout_fraction': 0.4})
  )
  sides = [
    {x.query[0].text for x in side.examples.values()} for side in (found, held)
  ]
  assert len(sides[0]) == 3 and len(sides[1]) == 2
  assert not sides[0] & sides[1]
  assert len(found.examples) == 6 and len(held.examples) == 4
  for side in (found, held):
    assert side.samples.keys() == (
      side.examples.keys() if kind == 'meta' else set()
    )


def test_held_out_data_of_its_own(folder):
  write(folder / 'held.jsonl', [{'id': 'e2', 'text': 'other'}])
  given = {
    'evaluation.data': f'{folder}/rows.jsonl',
    'evaluation.samples': f'{folder}/held.jsonl',
    'evaluation.holdout_fraction': 0.4,
  }
  found, held = rm_data.read(config(folder, **given))
  assert len(found.samples) == 10
  assert [(k, len(own)) for k, own in held.samples.items()] == [('e2', 1)]


@pytest.mark.parametrize(
  'changes, words_',
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
def test_mistakes(folder, changes, words_):
  write(folder / 'other.jsonl', [{'id': 'nobody', 'text': 'a'}])
  write(folder / 'hinted.jsonl', [{'id': 'e1', 'text': 'a', 'hinted': True}])
  row = {'id': 'x', 'query': 'q', 'responses': ['a', 'b']}
  write(folder / 'unknown.jsonl', [row])
  write(folder / 'single.jsonl', [row | {'responses': ['a'], 'rewards': [1.0]}])
  changes = {
    key: value.replace('{}', str(folder)) if isinstance(value, str) else value
    for key, value in changes.items()
  }
  with pytest.raises(UserError, match=naming(*words_)) as caught:
    rm_data.read(config(folder, **changes))
  assert '\n' not in str(caught.value)
