"""Published rows, made by hand, and the examples they become."""

import hashlib
import re

import pytest

from grm_jax.data import dataset_files
from grm_jax.data.dataset_files import SkippedRow
from grm_jax.data.datasets import checked_math, preferences
from grm_jax.errors import UserError
from grm_jax.evaluation.suites import pandalm
from grm_jax.judgement import preference_rows
from grm_jax.judgement.example import Turn
from tests.evaluation.suites.published import without, write
from tests.messages import in_row, names


def made(adapter, fields):
  return list(adapter(preference_rows.SourceRow('f.json', 7, fields)))


def one(adapter, fields):
  (example,) = made(adapter, fields)
  return example


def fault(adapter, fields):
  with pytest.raises(UserError) as error:
    made(adapter, fields)
  message = str(error.value)
  place = re.match(in_row('f.json', 7), message)
  assert place and '\n' not in message
  return message[place.end() :]


def ids(examples):
  return [example.id for example in examples]


# UltraFeedback


def ultrafeedback(*scores, **changes):
  completions = [
    {'model': f'm{i}', 'response': f'text {i}', 'overall_score': score}
    for i, score in enumerate(scores)
  ]
  return {
    'source': 'evol_instruct',
    'instruction': 'Say it.',
    'completions': completions,
    **changes,
  }


def test_ultrafeedback():
  example = one(preferences.ultrafeedback, ultrafeedback(6.5, 3, 8.5, 3))
  assert example.query == (Turn('user', 'Say it.'),)
  scores = dict(zip(example.responses, example.rewards, strict=True))
  assert scores == {'text 0': 6.5, 'text 1': 3, 'text 2': 8.5, 'text 3': 3}
  assert example.responses[example.best] == 'text 2'
  assert example.tags == {'suite': 'ultrafeedback', 'subset': 'evol_instruct'}


@pytest.mark.parametrize(
  'scores, word',
  [
    ((8, 3, 8, 1), 'tie'),
    ((8.0, 8), 'tie'),
    ((8,), 'completions'),
  ],
)
def test_ultrafeedback_dropped(scores, word):
  found = one(preferences.ultrafeedback, ultrafeedback(*scores))
  assert isinstance(found, SkippedRow) and names(found.reason, word)


@pytest.mark.parametrize('score', [None, 'N/A', True, float('nan')])
def test_ultrafeedback_score_that_is_no_number(score):
  what = fault(preferences.ultrafeedback, ultrafeedback(1, score))
  assert names(what, 'completions[1]', 'overall_score')


# OffsetBias

PAIR = {'instruction': 'Say.', 'output_1': 'one', 'output_2': 'two', 'label': 1}


@pytest.mark.parametrize('label, best', [(1, 'one'), (2, 'two'), ('2', 'two')])
def test_offsetbias(label, best):
  example = one(preferences.offsetbias, PAIR | {'label': label})
  assert sorted(example.responses) == ['one', 'two']
  assert example.responses[example.best] == best
  assert example.query == (Turn('user', 'Say.'),)
  assert example.tags == {'suite': 'offsetbias'}


def test_offsetbias_faults():
  what = fault(preferences.offsetbias, PAIR | {'label': 0})
  assert names(what, 'label', 0)
  what = fault(preferences.offsetbias, without(PAIR, 'output_2'))
  assert names(what, 'output_2', 'instruction')


# Skywork


def turns(*texts, first='user'):
  roles = ('user', 'assistant')
  start = roles.index(first)
  return [
    {'role': roles[(start + i) % 2], 'content': text}
    for i, text in enumerate(texts)
  ]


def test_skywork_turns_before_the_last_are_the_query():
  row = {
    'chosen': turns('hi', 'hello', 'more', 'good'),
    'rejected': turns('hi', 'hello', 'more', 'bad'),
    'source': 'magpie_ultra',
  }
  example = one(preferences.skywork, row)
  assert example.query == (
    Turn('user', 'hi'),
    Turn('assistant', 'hello'),
    Turn('user', 'more'),
  )
  assert sorted(example.responses) == ['bad', 'good']
  assert example.responses[example.best] == 'good'
  assert example.tags == {'suite': 'skywork', 'subset': 'magpie_ultra'}


def test_skywork_chosen_stands_at_both_places():
  examples = [
    one(
      preferences.skywork,
      {'chosen': turns(f'{i}', 'yes'), 'rejected': turns(f'{i}', 'no')},
    )
    for i in range(400)
  ]
  assert len(set(ids(examples))) == 400
  assert 160 < sum(example.best for example in examples) < 240


@pytest.mark.parametrize(
  'chosen, rejected, words',
  [
    (turns('a', 'x'), turns('b', 'y'), ['chosen', 'rejected']),
    (turns('a', 'x', 'b'), turns('a', 'x', 'c'), ['user']),
    (turns('a', 'x'), [], ['rejected']),
    (turns('a', 'x'), [{'role': 'user'}], ['rejected[0]', 'content']),
    (
      turns('x', first='assistant'),
      turns('y', first='assistant'),
      ['query', 'user'],
    ),
  ],
)
def test_skywork_faults(chosen, rejected, words):
  row = {'chosen': chosen, 'rejected': rejected}
  assert names(fault(preferences.skywork, row), *words)


# HelpSteer2


def helpsteer2(strength, prompt='Say.'):
  return {
    'split': 'validation',
    'prompt': prompt,
    'response_1': 'one',
    'response_2': 'two',
    'preference_strength': strength,
  }


@pytest.mark.parametrize(
  'strength, best, tag',
  [(-3, 'one', '3'), (-1, 'one', '1'), (1, 'two', '1'), (2, 'two', '2')],
)
def test_helpsteer2(strength, best, tag):
  example = one(preferences.helpsteer2, helpsteer2(strength))
  assert example.responses[example.best] == best
  assert example.tags == {'suite': 'helpsteer2', 'strength': tag}


def test_helpsteer2_without_a_better_one():
  found = one(preferences.helpsteer2, helpsteer2(0))
  assert isinstance(found, SkippedRow)
  for strength in (4, 1.5):
    what = fault(preferences.helpsteer2, helpsteer2(strength))
    assert names(what, 'preference_strength', strength)


def test_helpsteer2_conversation():
  prompt = 'hi\n<extra_id_1>Assistant\nhello\nyou\n<extra_id_1>User\nmore'
  example = one(preferences.helpsteer2, helpsteer2(1, prompt))
  assert example.query == (
    Turn('user', 'hi'),
    Turn('assistant', 'hello\nyou'),
    Turn('user', 'more'),
  )
  what = fault(preferences.helpsteer2, helpsteer2(1, prompt[:30]))
  assert names(what, 'query', 'user')


# PandaLM


def panda(idx, labels, **changes):
  annotators = ('annotator1', 'annotator2', 'annotator3')
  return {
    'idx': idx,
    'instruction': 'say',
    'input': 'this',
    'response1': 'one',
    'response2': 'two',
    **dict(zip(annotators, labels, strict=True)),
    **changes,
  }


def test_pandalm_is_what_its_suite_judges(tmp_path):
  table = [
    panda(0, (2, 2, 1)),
    panda(157, (1, 1, 0), response1=True),
    panda(3, (1, 1, 1), input='', response2=''),
  ]
  examples = [one(pandalm.adapt, row) for row in table]
  assert examples == pandalm.load(write(tmp_path / 'testset-v1.json', table))
  assert [e.responses[e.best] for e in examples] == ['two', 'True', 'one']
  assert ids(examples) == ['pandalm/0', 'pandalm/157', 'pandalm/3']
  assert examples[0].query[0].text == 'say\n\nthis'
  assert examples[2].query[0].text == 'say'


@pytest.mark.parametrize('labels', [(0, 0, 1), (1, 2, 0)])
def test_pandalm_without_a_majority_for_one(labels):
  assert isinstance(one(pandalm.adapt, panda(0, labels)), SkippedRow)


def test_pandalm_faults():
  what = fault(pandalm.adapt, panda(0, (1, 1, 3)))
  assert names(what, 3)
  what = fault(pandalm.adapt, panda(0, (1, 1, 1), response2=None))
  assert names(what, 'response2', None)


# Checked answers


def gsm8k(truths, question='How many?', texts=('s0', 's1', 's2', 's3')):
  solutions = [
    {'is_correct': truth == '1', 'solution': text}
    for truth, text in zip(truths, texts, strict=True)
  ]
  return {
    'question': question,
    'ground_truth': 'so\nA: 3',
    **dict(zip(checked_math.MODELS, solutions, strict=True)),
  }


@pytest.mark.parametrize(
  'truths, right, wrong',
  [
    ('1000', {'s0'}, {'s1', 's2', 's3'}),
    ('0110', {'s1', 's2'}, {'s0', 's3'}),
    ('1011', {'s0', 's2', 's3'}, {'s1'}),
  ],
)
def test_gsm8k_list_has_every_wrong_solution_and_one_right(
  truths, right, wrong
):
  example = made(checked_math.gsm8k, gsm8k(truths))[0]
  n = len(wrong) + 1
  assert len(example.responses) == n
  assert example.responses[example.best] in right
  assert set(example.responses) - right == wrong
  assert example.rewards[example.best] == 1
  assert sorted(example.rewards) == [0] * (n - 1) + [1]
  assert example.reference == ''
  assert example.id.endswith('/list')


def test_gsm8k_rights_are_chosen_evenly_and_stand_everywhere():
  examples = [
    made(checked_math.gsm8k, gsm8k('0110', f'q{i}'))[0] for i in range(300)
  ]
  best = [example.responses[example.best] for example in examples]
  assert 110 < best.count('s1') < 190
  for place in range(3):
    assert 65 < sum(e.best == place for e in examples) < 135


def test_gsm8k_singles_of_mixed_questions():
  pairs = [made(checked_math.gsm8k, gsm8k('0110', f'q{i}')) for i in range(300)]
  labels = []
  for several, single in pairs:
    (text,), (label,) = single.responses, single.rewards
    assert label == float(text in ('s1', 's2'))
    assert single.best is None
    # Not the right one of the list, as there is another.
    if label:
      assert text != several.responses[several.best]
    labels.append(label)
  assert 110 < sum(labels) < 190


@pytest.mark.parametrize(
  'truths, label, low, high',
  [('1111', 1, 300, 300), ('0000', 0, 65, 135)],
)
def test_gsm8k_questions_of_one_kind_make_singles_only(
  truths, label, low, high
):
  found = [one(checked_math.gsm8k, gsm8k(truths, f'q{i}')) for i in range(300)]
  singles = [x for x in found if not isinstance(x, SkippedRow)]
  assert low <= len(singles) <= high
  for single in singles:
    assert len(single.responses) == 1
    assert single.rewards == (label,)
  assert len({x for x in found if isinstance(x, SkippedRow)}) <= 1


@pytest.mark.parametrize(
  'truths, expected',
  [
    ('1000', [('s0', 's1'), ('s0', 's2'), ('s0', 's3')]),
    ('0110', [('s1', 's0'), ('s1', 's3'), ('s2', 's0'), ('s2', 's3')]),
    ('1011', [('s0', 's1'), ('s2', 's1'), ('s3', 's1')]),
  ],
)
def test_gsm8k_pairs_show_each_wrong_solution_once(truths, expected):
  found = made(checked_math.gsm8k_pairs, gsm8k(truths))
  pairs = [(x.responses[x.best], x.responses[1 - x.best]) for x in found]
  assert set(pairs) <= set(expected)
  wrong = [bad for _, bad in pairs]
  assert sorted(wrong) == sorted({bad for _, bad in expected})
  # As many right ones as there can be.
  assert len({good for good, _ in pairs}) == min(truths.count('1'), len(wrong))
  for x in found:
    assert x.rewards[x.best] == 1 and x.rewards[1 - x.best] == 0
  assert len({x.id for x in found}) == len(found)


def test_gsm8k_questions_of_one_kind_make_no_pairs():
  right, wrong = (
    one(checked_math.gsm8k_pairs, gsm8k(truths)) for truths in ('1111', '0000')
  )
  assert isinstance(right, SkippedRow) and isinstance(wrong, SkippedRow)
  assert right != wrong


def test_gsm8k_pairs_turn_the_right_one_to_both_places():
  found = [
    made(checked_math.gsm8k_pairs, gsm8k('0111', f'q{i}'))[0]
    for i in range(300)
  ]
  assert 110 < sum(x.best for x in found) < 190


def test_gsm8k_equal_solutions_count_once():
  row = gsm8k('1000', texts=('r', 'w', 'w', '2 = <<1+1=2>>w'))
  assert sorted(made(checked_math.gsm8k, row)[0].responses) == [
    '2 = w',
    'r',
    'w',
  ]
  row = gsm8k('1100', texts=('r', 'w', 'w', 'w'))
  assert names(fault(checked_math.gsm8k, row), 'answer')


@pytest.mark.parametrize(
  'solution, shown',
  [
    ('a 48/2 = <<48/2=24>>24\nb $<<9*2=18>>18.\nA: 18',
     'a 48/2 = 24\nb $18.\nA: 18'),
    # Cut off: no answer, and an annotation without an end.
    ('it is <<4/12=0.33>>0.33 and <<3/440=0.0068', 'it is 0.33 and'),
    ('1 < 2 and 3 << 4 >> 1', '1 < 2 and 3  1'),
  ],
)  # fmt: skip
def test_gsm8k_calculator_annotations_are_not_shown(solution, shown):
  row = gsm8k('1000', texts=(solution, 'w', 'x', 'y'))
  example = made(checked_math.gsm8k, row)[0]
  assert example.responses[example.best] == shown


def test_gsm8k_faults():
  row = gsm8k('1000')
  row['6b_finetuning'] = {'is_correct': 'true', 'solution': 's'}
  what = fault(checked_math.gsm8k, row)
  assert names(what, '6b_finetuning', 'is_correct', "'true'")
  what = fault(checked_math.gsm8k, without(row, '175b_verification'))
  assert names(what, '6b_finetuning', 'is_correct')
  row = without(gsm8k('1000'), '175b_verification')
  assert names(fault(checked_math.gsm8k, row), '175b_verification')


def test_ids_are_of_the_content(tmp_path):
  row = gsm8k('1000')
  here = made(checked_math.gsm8k, row)
  there = list(
    checked_math.gsm8k(preference_rows.SourceRow('elsewhere', 99, row))
  )
  assert here == there
  others = made(checked_math.gsm8k, gsm8k('1000', 'How much?'))
  assert not set(ids(here)) & set(ids(others))
  # Other ids are other samples and other orders: no result is comparable.
  assert dataset_files.text_digest('a', 'b') == '3554d2b8a1e34099'
  assert dataset_files.text_digest('ab', '') != dataset_files.text_digest(
    'a', 'b'
  )


MATH = {
  'problem': 'What is $1+1$?',
  'solution': r'$\boxed{2}$',
  'level': 'Level 1',
  'type': 'Algebra',
}


def answers(*truths):
  return [{'text': f'{t} {i}', 'is_correct': t} for i, t in enumerate(truths)]


def test_math_makes_a_pair_and_a_single():
  row = MATH | {'answers': answers(True, False, False, True, False)}
  pair, single = made(checked_math.math, row)
  assert len(pair.responses) == 2
  assert pair.responses[pair.best].startswith('True')
  assert pair.responses[1 - pair.best].startswith('False')
  assert pair.rewards[pair.best] == 1
  assert single.rewards == (float(single.responses[0].startswith('True')),)
  assert pair.query == single.query == (Turn('user', 'What is $1+1$?'),)
  assert pair.tags == {'suite': 'math', 'subset': 'Algebra'}
  assert pair.reference == ''


def test_math_needs_both_kinds():
  right, wrong = (
    one(checked_math.math, MATH | {'answers': answers(truth, truth)})
    for truth in (True, False)
  )
  assert isinstance(right, SkippedRow) and isinstance(wrong, SkippedRow)
  assert right != wrong


def test_math_as_published_has_no_answers():
  what = fault(checked_math.math, MATH)
  assert names(what, 'answers', *MATH)


def test_ids_hold_half_a_surrogate():
  name = dataset_files.text_digest('\ud800')
  assert name == hashlib.sha256(rb'["\ud800"]').hexdigest()[:16]
