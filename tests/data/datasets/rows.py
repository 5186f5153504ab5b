"""Rows of published datasets, and their examples and errors."""

import re

import pytest

from grm_jax.data.datasets import checked_math
from grm_jax.errors import UserError
from grm_jax.judgement.preference_rows import SourceRow
from tests.messages import in_row


def adapt(adapter, fields):
  """Returns all that an adapter yields for a row."""
  return list(adapter(SourceRow('f.json', 7, fields)))


def adapt_to_one(adapter, fields):
  """Returns the only thing that an adapter yields for a row."""
  (result,) = adapt(adapter, fields)
  return result


def error_of(adapter, fields):
  """Returns the error message for a bad row, after its location."""
  with pytest.raises(UserError) as error:
    adapt(adapter, fields)
  message = str(error.value)
  location = re.match(in_row('f.json', 7), message)
  assert location and '\n' not in message
  return message[location.end() :]


OFFSETBIAS = {
  'instruction': 'Say.',
  'output_1': 'one',
  'output_2': 'two',
  'label': 1,
}
MATH = {
  'problem': 'What is $1+1$?',
  'solution': r'$\boxed{2}$',
  'level': 'Level 1',
  'type': 'Algebra',
}


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


def turns(*texts, first='user'):
  """Returns messages whose roles alternate."""
  roles = ('user', 'assistant')
  start = roles.index(first)
  return [
    {'role': roles[(start + i) % 2], 'content': text}
    for i, text in enumerate(texts)
  ]


def helpsteer2(strength, prompt='Say.'):
  return {
    'split': 'validation',
    'prompt': prompt,
    'response_1': 'one',
    'response_2': 'two',
    'preference_strength': strength,
  }


def pandalm(idx, labels, **changes):
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


def gsm8k(labels, question='How many?', texts=('s0', 's1', 's2', 's3')):
  """Returns a row; `labels` has a '1' for each right solution."""
  solutions = [
    {'is_correct': label == '1', 'solution': text}
    for label, text in zip(labels, texts, strict=True)
  ]
  return {
    'question': question,
    'ground_truth': 'so\nA: 3',
    **dict(zip(checked_math.MODELS, solutions, strict=True)),
  }


def math_answers(*labels):
  return [{'text': f'{x} {i}', 'is_correct': x} for i, x in enumerate(labels)]
