"""Basics: short texts that say what is so, apart by split, again the same."""

import collections
import os
import pathlib
import re
import subprocess
import sys

import pytest

from grm_jax.data.synthetic import primitive_skills, problems, task_format
from tests.messages import naming

ROOT = pathlib.Path(__file__).parents[2]
TEXTS = primitive_skills.skill_texts('train', 2400)


def of_kind(kind, found=TEXTS):
  return [x for x in found if x[0].rpartition('/')[2].startswith(kind)]


def family_of(name):
  return name.split('/')[1]


def solved(found=TEXTS):
  """(family, task, what is written of it) of all problems that are solved."""
  for name, asked, written in of_kind('solve', found):
    if name.endswith('beside'):
      family = family_of(name)
      question, _, shown = asked.partition('\n')
      assert re.fullmatch(r'(\[\d/\d\] .*\n\[End\]\n)+Solve', shown)
      yield family, task_format.parse(family, question), written
      continue
    lines = zip(asked.split('\n'), written.split('\n'), strict=True)
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


def items_of(found):
  """(family, items in order) of all problems that are solved."""
  return {(f, tuple(sorted(task.items))) for f, task, _ in solved(found)}


def test_the_first_texts():
  # Three problems, then pieces in pairs or steps of their work; then of two
  # examples the work, and their responses held against an answer.
  name, asked, written = TEXTS[0]
  assert name == 'practice/chain_sum/train/0/0/solve'
  assert asked.startswith('[1/3] What is 8 - 8 + 8?\n[2/3] Sort the numbers')
  assert written.startswith('[1/3] Work: 8 - 8 = 0, 0 + 8 = 8, so 8.\n[2/3] ')
  assert [name.rpartition('/')[2] for name, _, _ in TEXTS[:8]] == [
    *('solve', 'compare'),
    *('solve beside', 'hold', 'solve beside', 'hold'),
    *('solve', 'sums'),
  ]
  counts = collections.Counter(family for family, _, _ in solved())
  # Each text of three ends where the next one goes on.
  assert set(counts.values()) == {400} and counts.total() == 2000


@pytest.mark.parametrize('count', [0, 1, 5, 100])
def test_as_many_as_asked_for_are_the_first(count):
  assert primitive_skills.skill_texts('train', count) == TEXTS[:count]


def test_ids_are_unique():
  assert len({name for name, _, _ in TEXTS}) == len(TEXTS)


def test_no_problem_is_in_two_splits():
  found = {
    split: set().union(
      *(
        items_of(primitive_skills.skill_texts(split, 1200, seed=seed))
        for seed in (0, 1)
      )
    )
    for split in problems.SPLITS
  }
  assert min(map(len, found.values())) > 200
  assert not found['train'] & found['held_out']
  assert not found['train'] & found['validation']
  assert not found['validation'] & found['held_out']


def test_steps_end_in_the_right_answer():
  for _, task, written in solved():
    assert written.startswith('Work: ')
    assert written.endswith(f', so {task_format.solve(task)}.')


def test_steps_of_sums_are_right_and_of_one_digit():
  found = [x[2] for x in of_kind('sums')]
  steps = [x for text in found for x in text.removesuffix('.').split(', ')]
  assert len(steps) == 6 * len(found) == 6 * 133
  for step in steps:
    a, sign, b, equals, result = step.split(' ')
    assert equals == '=' and 0 <= int(result) <= 9
    assert int(a) + int(f'{sign}{b}') == int(result)
  # There are 55 of each sign.
  assert len(set(steps)) == 110


def test_numbers_are_sifted_as_asked():
  found = [(x[1], x[2]) for x in of_kind('sift')]
  seen = collections.Counter()
  for asked, written in found:
    items = asked.removeprefix('Sift ').split(', ')
    steps = written.removesuffix('.').split(', ')
    assert len(items) == 6
    for item, step in zip(items, steps, strict=True):
      assert step in (f'{item} yes', f'{item} no')
      a, side, b = item.split(' ')
      stays = a > b if side == 'above' else a < b
      assert a != b and step.endswith('yes' if stays else 'no')
      seen[step] += 1
  # Any two digits, both ways, of which there are 180; a half of them stays.
  assert len(seen) > 170
  stay = sum(n for step, n in seen.items() if step.endswith('yes'))
  assert 0.45 < stay / seen.total() < 0.55


def test_half_of_the_pairs_are_the_same_twice():
  counts = collections.Counter()
  for _, asked, written in of_kind('compare'):
    pairs = [x.split(' ') for x in asked.removeprefix('Compare ').split(', ')]
    words = [f'{a} vs {b} {"yes" if a == b else "no"}' for a, b in pairs]
    assert len(pairs) == 6 and written == f'Pairs: {", ".join(words)}.'
    counts.update(a == b for a, b in pairs)
  # A pair that is drawn piece by piece can be the same twice, too.
  assert counts.total() == 6 * 134
  assert 0.5 < counts[True] / counts.total() < 0.75


def held():
  """(name, responses, due, a line of each) of the texts that hold."""
  for name, asked, written in of_kind('hold'):
    *lines, last = asked.split('\n')
    due = last.removeprefix('Hold against ')
    n = len(lines) // 2
    said = [
      re.fullmatch(rf'\[{k}/{n}\] (.*)', line)[1]
      for k, line in enumerate(lines[::2], 1)
    ]
    assert set(lines[1::2]) == {'[End]'} and 2 <= len(said) <= 4
    yield name, said, due, written.split('\n')


def test_all_responses_are_held_and_those_that_are_the_same_are_right():
  right = collections.Counter()
  for _, said, due, lines in held():
    for k, (answer, line) in enumerate(zip(said, lines, strict=True), 1):
      assert line.startswith(f'[{k}/{len(said)}] {answer[0]} vs {due[0]} ')
      assert line.endswith(' yes, right.') == (answer == due)
      assert line.endswith(' yes, right.') or ' no, wrong: ' in line
      right[k] += answer == due
  # Wherever they stand.
  assert min(right.values()) > 20


@pytest.mark.parametrize('family', problems.DEFAULT_FAMILIES)
def test_what_is_held_against_is_right_or_what_was_said(family):
  rights = {
    name.rpartition('/')[0]: task_format.solve(
      task_format.parse(family_of(name), asked)
    )
    for name, asked, _ in of_kind('solve beside')
    for asked in [asked.partition('\n')[0]]
  }
  others = count = 0
  for name, said, due, _ in held():
    if family_of(name) != family:
      continue
    assert due in said
    others += due != rights[name.rpartition('/')[0]]
    count += 1
  # Half of one in 2, 2 in 3 and 3 in 4 of them: 47, with a deviation of 6.
  assert count == 160 and 22 <= others <= 72


def test_a_seed_decides_and_another_process_makes_the_same():
  other = primitive_skills.skill_texts('train', 200, seed=1)
  same = {asked for _, asked, _ in other} & {x[1] for x in TEXTS[:200]}
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


def test_they_are_short():
  longest = max(len(asked) + len(written) for _, asked, written in TEXTS)
  assert longest < 360


def test_a_split_that_is_none():
  with pytest.raises(ValueError, match=naming('split', 'test', 'train')):
    primitive_skills.skill_texts('test', 1)
