"""The stage rft in this process, with engines that follow a plan.

Its settings are parsed as a command line is.
"""

import json
import re

import pytest
from absl import flags
from ml_collections import config_flags

from grm_jax.data.synthetic import teacher
from grm_jax.errors import UserError
from grm_jax.judges.generative import Judge
from grm_jax.stages.rft import run as rft_run
from grm_jax.stages.rft import sampling as rft_sampling
from tests import test_main
from tests.judges.fake import RuleEngine, words

TOLD = 'For your eyes only: '  # how both hints begin


class Planned(RuleEngine):
  """Writes as the query plans it: 'plan=rwx/r' is right, wrong, unreadable
  for the unhinted samples, and right when hinted; t is a tie, c is cut off.

  The right response is the one that says so.
  """

  def generation(self, request, sample):
    text = words().decode(request.prompt)
    unhinted, hinted = re.search(r'plan=([a-z]*)/([a-z]*)', text).groups()
    letter = (hinted if TOLD in text else unhinted)[sample]
    shown = re.findall(r'(good|bad)\n\[End', text)
    scores = [9 if x == 'good' else 2 for x in shown]
    if len(shown) == 1:
      scores = [int(shown[0] == 'good')]
    scores = {
      'w': [1 - x if len(shown) == 1 else 11 - x for x in scores],
      't': [5] * len(shown),
      'x': [],
    }.get(letter, scores)
    boxed = ', '.join(map(str, scores))
    told = 'told' if TOLD in text else 'not told'
    item = self._said(
      request, sample, rf'{letter}{sample} {told}. Scores: \boxed{{{boxed}}}'
    )
    if letter == 'c':
      object.__setattr__(item, 'finish', 'length')
    return item


class Taught(RuleEngine):
  """Writes about practice examples what the teacher does; the second sample
  of each prompt is wrong, so that none is too easy."""

  def __init__(self, examples):
    super().__init__()
    self.examples = {example.id: example for example in examples}

  def generation(self, request, sample):
    name, order = request.key.split(' ')
    text = teacher.write(
      self.examples[name], order=[int(x) for x in order.split(',')]
    )
    if sample:
      text = re.sub(r'(?<=boxed\{).*(?=\})', lambda x: _reversed(x[0]), text)
    return self._said(request, sample, text)


def _reversed(scores):
  """Scores that are right turned into wrong ones."""
  values = [int(x) for x in scores.split(',')]
  if len(values) == 1:
    return str(1 - values[0])
  return ', '.join(str(11 - x) for x in values)


def parse(*arguments):
  """The config of a command line."""
  argv = ['main', '--config=configs/rft.py:tiny', *map(str, arguments)]
  found = flags.FlagValues()
  config_flags.DEFINE_config_file('config', flag_values=found, sys_argv=argv)
  found(argv)
  return found.config


def rows_of(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def kept_texts(made):
  """id and order -> the beginnings of what is kept."""
  return {
    x['id']: ' '.join(text[:2] for text in x['generations'])
    for x in rows_of(made / 'kept.jsonl')
  }


def write_rows(path, rows):
  lines = [x if isinstance(x, str) else json.dumps(x) for x in rows]
  path.write_text(''.join(f'{line}\n' for line in lines))


def row(name, plan, good=0, n=2, **fields):
  responses = ['good' if i == good else 'bad' for i in range(n)]
  known = {'rewards': [float(good == 0)]} if n == 1 else {'best': good}
  query = {'query': f'{name}? plan={plan}', 'responses': responses}
  return {'id': name, **query, **known, 'tags': {'suite': 'made'}} | fields


# Samples of each; then what the hinted one is like.
ROWS = [
  row('easy', 'rrr/r'),
  row('mixed', 'wrx/r', good=1),
  row('saved', 'wtc/r', good=2, n=3),
  row('lost', 'xxw/w'),
  row('single', 'wwx/r', good=1, n=1),
  row('single2', 'rrw/r', good=0, n=1),
]


def runner(folder, monkeypatch):
  """run(*arguments, engine=None, workdir=...): the stage, in this process.

  Without an engine it is an error to load a model.
  """
  monkeypatch.chdir(test_main.ROOT)

  def run(*arguments, engine=None, workdir=folder / 'work'):
    loaded = []

    def load(checkpoint, step, meta, settings, *unused, **sizes):
      assert engine is not None, 'a model was loaded'
      loaded.append((checkpoint, step, meta, sizes))
      return Judge(engine, words(), settings)

    monkeypatch.setattr(rft_sampling.loading, 'load', load)
    config = parse(f'--config.data={folder}/rows.jsonl', *arguments)
    rft_run.run(config, str(workdir))
    return loaded

  return run


def mistakes(run):
  """mistake(...) as run(...): the one line that main would end with."""

  def mistake(*arguments, **kwargs):
    with pytest.raises(UserError) as info:
      run(*arguments, **kwargs)
    assert '\n' not in str(info.value)
    return str(info.value)

  return mistake


def workdir(folder):
  """The workdir in a folder that has rows to judge."""
  write_rows(folder / 'rows.jsonl', ROWS)
  return folder / 'work'


SAMPLE = ('--config.phases=sample', '--config.response_order=fixed')
FILTER = ('--config.phases=filter', '--config.response_order=fixed')
