"""Basics: short texts that say what is so, apart by split, again the same."""

import collections
import os
import pathlib
import re
import subprocess
import sys

import pytest

from grm_jax.data.practice import basics, problems, tasks

ROOT = pathlib.Path(__file__).parents[2]
TEXTS = basics.basics('train', 2400)


def of_kind(kind, found=TEXTS):
  return [x for x in found if x[0].rpartition('/')[2].startswith(kind)]


def family_of(name):
  return name.split('/')[1]


def items_of(found):
  """(family, items in order) of all problems that are solved."""
  return {
    (family, tuple(sorted(tasks.read(family, asked).items)))
    for name, asked, _ in of_kind('solve', found)
    for family in [family_of(name)]
  }


def test_the_first_texts():
  # Of every example its steps, and all its responses held against an answer;
  # of every third one pieces in pairs instead.
  assert TEXTS[0] == (
    'practice/chain_sum/train/0/0/solve',
    'What is 9 - 0?',
    'Work: 9 - 0 = 9, so 9.',
  )
  assert [name.rpartition('/')[2] for name, _, _ in TEXTS[:8]] == [
    *('solve', 'compare', 'solve', 'hold', 'solve', 'hold'),
    *('solve', 'compare'),
  ]
  names = [family_of(name) for name, _, _ in of_kind('solve')]
  assert names[:4] == list(problems.DEFAULTS)
  assert set(collections.Counter(names).values()) == {300}


@pytest.mark.parametrize('count', [0, 1, 5, 100])
def test_as_many_as_asked_for_are_the_first(count):
  assert basics.basics('train', count) == TEXTS[:count]


def test_ids_are_unique():
  assert len({name for name, _, _ in TEXTS}) == len(TEXTS)


def test_no_problem_is_in_two_splits():
  found = {
    split: set().union(
      *(items_of(basics.basics(split, 1200, seed=seed)) for seed in (0, 1))
    )
    for split in problems.SPLITS
  }
  assert min(map(len, found.values())) > 200
  assert not found['train'] & found['held_out']
  assert not found['train'] & found['validation']
  assert not found['validation'] & found['held_out']


def test_steps_end_in_the_right_answer():
  for name, asked, written in of_kind('solve'):
    right = tasks.solve(tasks.read(family_of(name), asked))
    assert re.search(rf', so {re.escape(right)}\.$', written)


def test_half_of_the_pairs_are_the_same_twice():
  counts = collections.Counter()
  for _, asked, written in of_kind('compare'):
    pairs = [x.split(' ') for x in asked.removeprefix('Compare ').split(', ')]
    words = [f'{a} vs {b} {"yes" if a == b else "no"}' for a, b in pairs]
    assert len(pairs) == 6 and written == f'Pairs: {", ".join(words)}.'
    counts.update(a == b for a, b in pairs)
  # Of 2400; a pair that is drawn piece by piece can be the same twice, too.
  assert counts.total() == 2400
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


@pytest.mark.parametrize('family', problems.DEFAULTS)
def test_what_is_held_against_is_right_or_what_was_said(family):
  rights = {
    name.rpartition('/')[0]: tasks.solve(tasks.read(family_of(name), asked))
    for name, asked, _ in of_kind('solve')
  }
  others = count = 0
  for name, said, due, _ in held():
    if family_of(name) != family:
      continue
    assert due in said
    others += due != rights[name.rpartition('/')[0]]
    count += 1
  # Half of one in 2, 2 in 3 and 3 in 4 of them.
  assert count == 200 and 35 <= others <= 85


def test_a_seed_decides_and_another_process_makes_the_same():
  other = basics.basics('train', 200, seed=1)
  same = {asked for _, asked, _ in other} & {x[1] for x in TEXTS[:200]}
  assert len(same) < 40
  code = (
    'from grm_jax.data.practice.basics import basics\n'
    'print(basics("train", 24, seed=1))'
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
  with pytest.raises(ValueError, match="split 'test' is none of train"):
    basics.basics('test', 1)
