"""Inputs of RFT in tests: rows to judge, and engines that follow a script."""

import dataclasses
import json
import re

from absl import flags
from ml_collections import config_flags

from grm_jax.data.synthetic import teacher
from tests.judges.fake import RuleEngine, load_tokenizer

HINT = 'For your eyes only: '  # the beginning of both hints


class ScriptedEngine(RuleEngine):
  """Writes what the query prescribes, a letter per sample.

  'plan=rwx/r' in a query prescribes a correct, an incorrect and an unparseable
  unhinted sample, and a correct hinted one. 't' is a tie, 'c' is truncated. The
  correct response is the one whose text is 'good'.
  """

  def generation(self, request, sample):
    text = load_tokenizer().decode(request.prompt)
    unhinted, hinted = re.search(r'plan=([a-z]*)/([a-z]*)', text).groups()
    letter = (hinted if HINT in text else unhinted)[sample]
    responses = re.findall(r'(good|bad)\n\[End', text)
    scores = [9 if x == 'good' else 2 for x in responses]
    if len(responses) == 1:
      scores = [int(responses[0] == 'good')]
    scores = {
      'w': [1 - x if len(responses) == 1 else 11 - x for x in scores],
      't': [5] * len(responses),
      'x': [],
    }.get(letter, scores)
    boxed = ', '.join(map(str, scores))
    kind = 'hinted' if HINT in text else 'unhinted'
    generation = self._generation(
      request, sample, rf'{letter}{sample} {kind}. Scores: \boxed{{{boxed}}}'
    )
    if letter == 'c':
      object.__setattr__(generation, 'finish', 'length')
    return generation


class NamingEngine(RuleEngine):
  """Names the 'good' response in its first sample, then another response."""

  def generation(self, request, sample):
    text = load_tokenizer().decode(request.prompt)
    responses = re.findall(r'(good|bad)\n\[End', text)
    number = 1 + responses.index('bad' if sample else 'good')
    return self._generation(
      request, sample, rf'{sample} Best: \boxed{{{number}}}'
    )


class CriticEngine(RuleEngine):
  """Writes about the response; critiques of 'bad' ones have no end."""

  def generation(self, request, sample):
    text = load_tokenizer().decode(request.prompt)
    (response,) = re.findall(r'(good|bad)\n\[End', text)
    generation = self._generation(request, sample, f'It is {response}.')
    finish = 'length' if response == 'bad' else 'stop'
    return dataclasses.replace(generation, finish=finish)


class TeacherEngine(RuleEngine):
  """Writes about synthetic examples what the teacher writes.

  All samples of a prompt but the first are incorrect, so that no example is
  too easy.
  """

  def __init__(self, examples):
    super().__init__()
    self.examples = {example.id: example for example in examples}

  def generation(self, request, sample):
    tag = request.tag
    text = teacher.write(self.examples[tag.example_id], order=tag.order)
    if sample:
      text = re.sub(r'(?<=boxed\{).*(?=\})', lambda x: _reversed(x[0]), text)
    return self._generation(request, sample, text)


def _reversed(scores):
  """Returns incorrect scores, given correct ones."""
  values = [int(x) for x in scores.split(',')]
  if len(values) == 1:
    return str(1 - values[0])
  return ', '.join(str(11 - x) for x in values)


def parse(*arguments):
  """Returns the config of a command line."""
  argv = ['main', '--config=configs/rft.py:tiny', *map(str, arguments)]
  flag_values = flags.FlagValues()
  config_flags.DEFINE_config_file(
    'config', flag_values=flag_values, sys_argv=argv
  )
  flag_values(argv)
  return flag_values.config


def read_rows(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def kept_texts(workdir):
  """Returns id and order -> first two letters of each selected generation."""
  return {
    x['id']: ' '.join(text[:2] for text in x['generations'])
    for x in read_rows(workdir / 'kept.jsonl')
  }


def write_rows(path, rows):
  lines = [x if isinstance(x, str) else json.dumps(x) for x in rows]
  path.write_text(''.join(f'{line}\n' for line in lines))


def row(name, plan, good=0, n=2, **fields):
  """Returns a row of an example; see ScriptedEngine for `plan`."""
  responses = ['good' if i == good else 'bad' for i in range(n)]
  label = {'rewards': [float(good == 0)]} if n == 1 else {'best': good}
  query = {'query': f'{name}? plan={plan}', 'responses': responses}
  return {'id': name, **query, **label, 'tags': {'suite': 'synthetic'}} | fields


ROWS = [
  row('easy', 'rrr/r'),
  row('mixed', 'wrx/r', good=1),
  row('saved', 'wtc/r', good=2, n=3),
  row('lost', 'xxw/w'),
  row('single', 'wwx/r', good=1, n=1),
  row('single2', 'rrw/r', good=0, n=1),
]
SAMPLE = ('--config.phases=sample', '--config.response_order=fixed')
FILTER = ('--config.phases=filter', '--config.response_order=fixed')
