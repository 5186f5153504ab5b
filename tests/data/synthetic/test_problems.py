"""Problems: verifiers, self-contained questions, disjoint splits."""

import itertools

import pytest

from grm_jax.data.synthetic import problems, task_format
from grm_jax.data.synthetic.problems import FAMILIES, SPLITS, Problem
from grm_jax.data.synthetic.task_format import Task
from tests.messages import naming


def take(family, split, count, seed=0, settings=None):
  stream = problems.problems(family, split, seed, settings)
  return list(itertools.islice(stream, count))


# Entries in the form of reasoning-gym, right answers and wrong answers.
VERDICTS = [
  ('chain_sum', '19', {}, ['19', '+19', '19.0'], ['18', '91', '19 + 0', '']),
  ('gcd', '6', {}, ['6'], ['3', '12', '16', '6 6']),
  ('letter_counting', '2', {}, ['2'], ['1', '12', 'two']),
  (
    'number_format',
    '10.053',
    {'solution': 10.053},
    ['10.05', '10.053'],
    ['9.90', '1.05', '10.5', '100.5'],
  ),
  (
    'number_sorting',
    "['7.0', '12.0', '40.0']",
    {'direction': 'ascending'},
    ['7, 12, 40', '7, 13, 40'],  # the verifier has a tolerance of 1
    ['12, 7, 40', '7, 12', '40, 12, 7', '7, 12, 42', 'seven'],
  ),
  (
    'number_filtering',
    "['7', '3']",
    {},
    ['7, 3'],
    ['3, 7', '7', '7, 3, 9', '9'],
  ),
  (
    'spell_backward',
    'pmal',
    {},
    ['p m a l', 'pmal'],
    ['l a m p', 'p m a', 'p m a l l', 'p m a i'],
  ),
  (
    'word_sorting',
    'fig, pear, plum',
    {'sorted_words': ['fig', 'pear', 'plum']},
    ['fig, pear, plum'],
    ['fig, plum, pear', 'fig, pear', 'fig, pear, pear', 'plum, pear, fig'],
  ),
]


@pytest.mark.parametrize('family, answer, data, right, wrong', VERDICTS)
def test_verify(family, answer, data, right, wrong):
  problem = Problem(
    Task(family, ('1', '2')), answer, {'answer': answer, 'metadata': data}
  )
  for text in right:
    assert problems.verify(problem, text), text
  for text in wrong:
    assert not problems.verify(problem, text), text


@pytest.mark.parametrize('family', FAMILIES)
def test_questions_are_self_contained(family):
  for problem in take(family, 'train', 400):
    task = task_format.parse(family, problem.question)
    assert task == problem.task
    assert task_format.solve(task) == problem.answer
    assert problems.verify(problem, problem.answer)
    assert len(problem.question) < 80
    assert len(problem.answer) < 20


@pytest.mark.parametrize('family', FAMILIES)
def test_splits_are_disjoint(family):
  items = {
    split: {
      tuple(sorted(problem.task.items))
      for seed in (0, 1)
      for problem in take(family, split, 120, seed)
    }
    for split in SPLITS
  }
  for first, second in itertools.combinations(SPLITS, 2):
    assert not items[first] & items[second]


def test_the_split_does_not_depend_on_the_order_of_items():
  items = ('12', '40', '7', '33')
  splits = {
    problems.split_of(Task('number_sorting', order, criterion))
    for order in itertools.permutations(items)
    for criterion in ('smallest', 'largest')
  }
  assert len(splits) == 1


@pytest.mark.parametrize(
  'family, suits',
  [
    # No partial sum above 9 or below 0.
    ('chain_sum', lambda t: 0 <= int(t.items[0]) <= 9),
    ('number_format', lambda t: len({int(float(x)) for x in t.items}) == 3),
    ('number_format', lambda t: all(len(set(x)) == len(x) for x in t.items)),
    ('number_sorting', lambda t: len(set(t.items)) == len(t.items)),
    ('spell_backward', lambda t: len(set(t.items)) == len(t.items)),
  ],
)
def test_problems_are_suitable_for_a_small_model(family, suits):
  tasks = [problem.task for problem in take(family, 'train', 100)]
  assert all(map(suits, tasks))
  if family == 'chain_sum':
    for task in tasks:
      ends = range(1, len(task.items) + 1, 2)
      totals = [
        sum(task_format.terms(Task(family, task.items[:i]))) for i in ends
      ]
      assert min(totals) >= 0 and max(totals) <= 9


def test_split_fractions():
  names = [
    problems.split_of(Task('gcd', (str(a), str(b))))
    for a in range(2, 61)
    for b in range(a + 1, 61)
  ]
  assert set(names) == set(SPLITS)
  assert abs(names.count('train') / len(names) - 0.7) < 0.05
  assert abs(names.count('held_out') / len(names) - 0.15) < 0.04


# Number of new problems of a stream in (train, another split), if below 400:
# few words are this short, few sums stay below 10, there are 120 sets of three
# digits, few short words have a letter four times, and few numbers have 6 as
# their divisor.
NEW = {
  'chain_sum': (400, 150),
  'number_sorting': (400, 100),
  'number_filtering': (400, 200),
  'letter_counting': (130, 20),
  'spell_backward': (190, 40),
  'gcd': (290, 40),
}


@pytest.mark.parametrize('family', FAMILIES)
def test_every_split_has_enough_problems(family):
  train, other = NEW.get(family, (400, 400))
  for split in SPLITS:
    count = train if split == 'train' else other
    questions = {problem.question for problem in take(family, split, count)}
    assert len(questions) == count, split


@pytest.mark.parametrize('family', FAMILIES)
def test_streams_are_stable_and_seeds_differ(family):
  first = take(family, 'validation', 60)
  assert first == take(family, 'validation', 60)
  assert first[:20] == take(family, 'validation', 20)
  other = take(family, 'validation', 60, seed=1)
  # The seeds 0 and 1 of reasoning-gym share all items but one, in the same
  # order. A small family can have the same problems in another order.
  first_pairs, other_pairs = (
    {(a.task, b.task) for a, b in itertools.pairwise(stream)}
    for stream in (first, other)
  )
  assert len(first_pairs & other_pairs) < 12


def test_an_exhausted_family_repeats():
  short = dict(min_word_len=3, max_word_len=3)
  tasks = [p.task for p in take('spell_backward', 'held_out', 60, 0, short)]
  size = len(set(tasks))
  assert 5 <= size <= 30
  assert set(tasks[:size]) == set(tasks[size : 2 * size])


@pytest.mark.parametrize('family', task_format.ANSWERS)
def test_answers_are_balanced(family):
  answers = task_format.ANSWERS[family]
  stream = [problem.answer for problem in take(family, 'held_out', 48)]
  for start in range(0, 48, len(answers)):
    assert sorted(stream[start : start + len(answers)]) == list(answers)


def test_settings_change_the_difficulty():
  long = take('spell_backward', 'train', 20, 0, dict(min_word_len=8))
  assert min(len(p.task.items) for p in long) == 8
  many = take(
    'number_sorting', 'train', 20, 0, dict(min_numbers=6, max_numbers=6)
  )
  assert {len(p.task.items) for p in many} == {6}
  for problem in long + many:
    assert problems.verify(problem, task_format.solve(problem.task))


@pytest.mark.parametrize(
  'family, split, settings, message',
  [
    ('sums', 'train', None, naming('sums', 'chain_sum')),
    ('gcd', 'test', None, naming('split', 'test', 'train', 'validation')),
    ('gcd', 'train', dict(max=3), naming('gcd', 'max')),
    ('gcd', 'train', dict(min_value=0), naming('gcd', 'min_value')),
    (
      'spell_backward',
      'train',
      dict(min_word_len=30, max_word_len=31),
      naming('spell_backward', 30, 31),
    ),
  ],
)
def test_invalid_arguments(family, split, settings, message):
  with pytest.raises(ValueError, match=message):
    problems.problems(family, split, 0, settings)


@pytest.mark.parametrize(
  'settings',
  [
    # Three of two numbers: one occurs twice.
    dict(min_value=2, max_value=3, min_numbers=3, max_numbers=3),
    # No problem has the answer 6, and the other answers wait for it.
    dict(min_value=2, max_value=11),
  ],
)
def test_settings_without_enough_problems(settings):
  for _ in range(2):  # a failed stream is not cached
    with pytest.raises(ValueError, match=naming('gcd', 'train', 'min_value')):
      take('gcd', 'train', 50, 0, settings)
