"""Primitive-skill texts: right steps, disjoint splits, determinism."""

import collections
import os
import pathlib
import re
import subprocess
import sys

import pytest

from grm_jax.data.synthetic import primitive_skills, problems, task_format
from tests.messages import naming

ROOT = pathlib.Path(__file__).parents[3]
TEXTS = primitive_skills.skill_texts('train', 2400)


def of_kind(kind, texts=TEXTS):
  return [x for x in texts if x[0].rpartition('/')[2].startswith(kind)]


def family_of(name):
  return name.split('/')[1]


def solved(texts=TEXTS):
  """Yields (family, task, worked steps) of all solved problems."""
  for name, prompt, generation in of_kind('solve', texts):
    if name.endswith('beside'):
      family = family_of(name)
      question, _, responses = prompt.partition('\n')
      assert re.fullmatch(r'(\[\d/\d\] .*\n\[End\]\n)+Solve', responses)
      yield family, task_format.parse(family, question), generation
      continue
    lines = zip(prompt.split('\n'), generation.split('\n'), strict=True)
    for k, (question, work) in enumerate(lines, 1):
      mark = f'[{k}/3] '
      assert question.startswith(mark) and work.startswith(mark)
      question = question.removeprefix(mark)
      (family,) = [x for x in problems.DEFAULT_FAMILIES if is_of(x, question)]
      yield family, task_format.parse(family, question), work.removeprefix(mark)


def is_of(family, question):
  try:
    return bool(task_format.parse(family, question))
  except ValueError:
    return False


def items_of(texts):
  """Returns (family, sorted items) of all solved problems."""
  return {(f, tuple(sorted(task.items))) for f, task, _ in solved(texts)}


def test_the_first_texts():
  # Three problems and one text of single steps; then two examples, each with
  # its steps and the check of its responses.
  name, prompt, generation = TEXTS[0]
  assert name == 'practice/chain_sum/train/0/0/solve'
  assert prompt.startswith('[1/3] What is 8 - 8 + 8?\n[2/3] Sort the numbers')
  assert generation.startswith(
    '[1/3] Work: 8 - 8 = 0, 0 + 8 = 8, so 8.\n[2/3] '
  )
  assert [name.rpartition('/')[2] for name, _, _ in TEXTS[:8]] == [
    *('solve', 'compare'),
    *('solve beside', 'hold', 'solve beside', 'hold'),
    *('solve', 'sums'),
  ]
  counts = collections.Counter(family for family, _, _ in solved())
  # Texts of three problems continue where the last one ended.
  assert set(counts.values()) == {400} and counts.total() == 2000


@pytest.mark.parametrize('count', [0, 1, 5, 100])
def test_a_smaller_count_is_a_prefix(count):
  assert primitive_skills.skill_texts('train', count) == TEXTS[:count]


def test_ids_are_unique():
  assert len({name for name, _, _ in TEXTS}) == len(TEXTS)


def test_splits_do_not_share_problems():
  items = {
    split: set().union(
      *(
        items_of(primitive_skills.skill_texts(split, 1200, seed=seed))
        for seed in (0, 1)
      )
    )
    for split in problems.SPLITS
  }
  assert min(map(len, items.values())) > 200
  assert not items['train'] & items['held_out']
  assert not items['train'] & items['validation']
  assert not items['validation'] & items['held_out']


def test_steps_end_in_the_right_answer():
  for _, task, generation in solved():
    assert generation.startswith('Work: ')
    assert generation.endswith(f', so {task_format.solve(task)}.')


def test_sums_are_right_and_have_one_digit():
  texts = [x[2] for x in of_kind('sums')]
  steps = [x for text in texts for x in text.removesuffix('.').split(', ')]
  assert len(steps) == 6 * len(texts) == 6 * 133
  for step in steps:
    a, sign, b, equals, result = step.split(' ')
    assert equals == '=' and 0 <= int(result) <= 9
    assert int(a) + int(f'{sign}{b}') == int(result)
  # There are 55 of each sign.
  assert len(set(steps)) == 110


def test_filter_steps_are_right():
  texts = [(x[1], x[2]) for x in of_kind('sift')]
  seen = collections.Counter()
  for prompt, generation in texts:
    items = prompt.removeprefix('Sift ').split(', ')
    steps = generation.removesuffix('.').split(', ')
    assert len(items) == 6
    for item, step in zip(items, steps, strict=True):
      assert step in (f'{item} yes', f'{item} no')
      a, side, b = item.split(' ')
      stays = a > b if side == 'above' else a < b
      assert a != b and step.endswith('yes' if stays else 'no')
      seen[step] += 1
  # There are 180 pairs of distinct digits with a side; half of them stay.
  assert len(seen) > 170
  stay = sum(n for step, n in seen.items() if step.endswith('yes'))
  assert 0.45 < stay / seen.total() < 0.55


def test_half_of_the_compared_pairs_are_equal():
  counts = collections.Counter()
  for _, prompt, generation in of_kind('compare'):
    pairs = [x.split(' ') for x in prompt.removeprefix('Compare ').split(', ')]
    words = [f'{a} vs {b} {"yes" if a == b else "no"}' for a, b in pairs]
    assert len(pairs) == 6 and generation == f'Pairs: {", ".join(words)}.'
    counts.update(a == b for a, b in pairs)
  # A pair of independently chosen pieces can be equal, too.
  assert counts.total() == 6 * 134
  assert 0.5 < counts[True] / counts.total() < 0.75


def checks():
  """Yields (id, answers, expected answer, lines) of all checking texts."""
  for name, prompt, generation in of_kind('hold'):
    *lines, last = prompt.split('\n')
    expected = last.removeprefix('Hold against ')
    n = len(lines) // 2
    answers = [
      re.fullmatch(rf'\[{k}/{n}\] (.*)', line)[1]
      for k, line in enumerate(lines[::2], 1)
    ]
    assert set(lines[1::2]) == {'[End]'} and 2 <= len(answers) <= 4
    yield name, answers, expected, generation.split('\n')


def test_all_responses_are_checked_against_the_expected_answer():
  right = collections.Counter()
  for _, answers, expected, lines in checks():
    for k, (answer, line) in enumerate(zip(answers, lines, strict=True), 1):
      assert line.startswith(
        f'[{k}/{len(answers)}] {answer[0]} vs {expected[0]} '
      )
      assert line.endswith(' yes, right.') == (answer == expected)
      assert line.endswith(' yes, right.') or ' no, wrong: ' in line
      right[k] += answer == expected
  # In every position.
  assert min(right.values()) > 20


@pytest.mark.parametrize('family', problems.DEFAULT_FAMILIES)
def test_the_expected_answer_is_right_or_one_of_the_responses(family):
  rights = {
    name.rpartition('/')[0]: task_format.solve(
      task_format.parse(family_of(name), prompt)
    )
    for name, prompt, _ in of_kind('solve beside')
    for prompt in [prompt.partition('\n')[0]]
  }
  num_wrong = count = 0
  for name, answers, expected, _ in checks():
    if family_of(name) != family:
      continue
    assert expected in answers
    num_wrong += expected != rights[name.rpartition('/')[0]]
    count += 1
  # A wrong response is chosen half of the time, in 1/2, 2/3 or 3/4 of the
  # cases: 47 in expectation, with a standard deviation of 6.
  assert count == 160 and 22 <= num_wrong <= 72


def test_texts_depend_on_the_seed_and_not_on_the_process():
  other = primitive_skills.skill_texts('train', 200, seed=1)
  same = {prompt for _, prompt, _ in other} & {x[1] for x in TEXTS[:200]}
  assert len(same) < 40
  code = (
    'from grm_jax.data.synthetic.primitive_skills import skill_texts\n'
    'print(skill_texts("train", 24, seed=1))'
  )
  out = subprocess.run(
    [sys.executable, '-c', code],
    cwd=ROOT,
    env=os.environ | {'PYTHONHASHSEED': '1'},
    capture_output=True,
    text=True,
    check=True,
  )
  assert out.stdout.strip() == str(other[:24])


def test_texts_are_short():
  longest = max(
    len(prompt) + len(generation) for _, prompt, generation in TEXTS
  )
  assert longest < 360


def test_an_unknown_split():
  with pytest.raises(ValueError, match=naming('split', 'test', 'train')):
    primitive_skills.skill_texts('test', 1)
