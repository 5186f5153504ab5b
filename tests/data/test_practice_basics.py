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
  # Of every example its steps; of every third one a reading, and two answers
  # that are held.
  assert TEXTS[0] == (
    'practice/chain_sum/train/0/0/solve',
    'What is 9 - 0?',
    'Work: 9 - 0 = 9.',
  )
  assert [name.rpartition('/')[2] for name, _, _ in TEXTS[:9]] == [
    *('solve', 'read', 'hold0', 'hold1', 'solve', 'solve'),
    *('solve', 'read', 'hold0'),
  ]
  names = [family_of(name) for name, _, _ in of_kind('solve')]
  assert names[:5] == list(problems.DEFAULTS)
  assert set(collections.Counter(names).values()) == {240}


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
    family = family_of(name)
    right = tasks.solve(tasks.read(family, asked))
    if family == 'number_sorting':
      ends = ' < ' if 'smallest' in asked else ' > '
      right = right.replace(', ', ends)
    assert re.search(rf' {re.escape(right)}\.$', written)


def test_what_is_read_is_what_the_response_says():
  places = collections.Counter()
  for _, asked, written in of_kind('read'):
    *lines, last = asked.split('\n')
    count = len(lines) // 2
    assert 2 <= count <= 4
    k = int(re.fullmatch(r'Read response (\d)', last)[1])
    for i in range(count):
      assert lines[2 * i].startswith(f'[{i + 1}] ')
      assert lines[2 * i + 1] == '[End]'
    assert written == lines[2 * (k - 1)]
    places[count, k] += 1
  # Each place of each number of responses.
  assert len(places) == 2 + 3 + 4 and min(places.values()) > 15


def held(kind):
  for name, asked, written in of_kind(kind):
    answer, due = re.fullmatch('Hold (.*) against (.*)', asked).groups()
    yield name, answer, due, written


@pytest.mark.parametrize('kind', ['hold0', 'hold1'])
def test_what_is_held_is_right_half_of_the_time(kind):
  right = 0
  for _, answer, due, written in held(kind):
    assert written.endswith(', right.') == (answer == due)
    assert written.endswith(', right.') or ', wrong: ' in written
    right += answer == due
  # 400 of each: four standard deviations.
  assert abs(right - 200) < 40


@pytest.mark.parametrize('family', problems.DEFAULTS)
def test_what_is_held_against_is_right_or_what_was_said(family):
  """Neither tells whether the two are the same."""
  rights = {
    name.rpartition('/')[0]: tasks.solve(tasks.read(family_of(name), asked))
    for name, asked, _ in of_kind('solve')
  }
  said = {
    name.rpartition('/')[0]: {
      x.partition('] ')[2] for x in asked.split('\n')[:-1:2]
    }
    for name, asked, _ in of_kind('read')
  }
  others = 0
  for kind in ('hold0', 'hold1'):
    for name, answer, due, _ in held(kind):
      key = name.rpartition('/')[0]
      if family_of(name) != family:
        continue
      assert {answer, due} <= said[key]
      if kind == 'hold0':
        assert due == rights[key]
      else:
        others += due != rights[key]
  # One in 2, 2 in 3 and 3 in 4 of them, that is 51 of 80.
  assert 34 <= others <= 68


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
  assert longest < 220


def test_a_split_that_is_none():
  with pytest.raises(ValueError, match="split 'test' is none of train"):
    basics.basics('test', 1)
