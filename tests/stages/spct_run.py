"""A whole run of the stage spct that takes seconds: what it is given.

Queries with the same two responses, one of which is best by chance: judges
learn the form of a judgement in a few steps, and then half of what they say is
right, so that every stage has something to learn from.
"""

import json
import subprocess
import sys

from absl import flags
from ml_collections import config_flags

from tests import test_main
from tests.processes import HANG

ROWS = [
  {
    'id': f'e{i}',
    'query': f'Number {i}?',
    'responses': ['yes', 'no'],
    'best': (i * i // 3) % 2,
  }
  for i in range(80)
]
_TEMPLATE = """{% for turn in query %}
{{ turn.text }}
{% endfor %}
{% for response in responses %}
[{{ loop.index }}] {{ response }}
{% endfor %}
{{ hint }}"""

# Nothing but sizes: the settings that matter are those of :tiny.
SIZES = """
step=-1 prompt.single= buckets=(96,320)
examples.rft=12 examples.grpo=8 examples.fresh=6 examples.validation=0
examples.held_out=8
sft.steps=20 sft.save_every=10 sft.batch.prompts=8 sft.batch.size=(16,)
sft.optimizer.warmup_steps=2
rft.num_samples=2 rft.filter.too_easy=False
rft.sampling.prompts=4 rft.sampling.size=16
rft.train.steps=4 rft.train.save_every=1 rft.train.batch.prompts=4
rft.train.batch.rows=1 rft.train.batch.size=(16,)
rft.train.optimizer.warmup_steps=1
grpo.steps=4 grpo.save_every=1 grpo.prompts=2 grpo.group_size=2
grpo.batch.prompts=2 grpo.batch.size=(16,) grpo.rollout.prompts=2
grpo.rollout.rows=2 grpo.optimizer.warmup_steps=1
fresh.num_samples=2
meta_rm.steps=4 meta_rm.save_every=1 meta_rm.batch.prompts=2
meta_rm.batch.size=(16,) meta_rm.optimizer.warmup_steps=1
meta_rm.evaluation.share=0.0
evaluation.k=4 evaluation.k_intermediate=2 evaluation.sampling.prompts=4
evaluation.sampling.rows=2 evaluation.sampling.size=16 evaluation.before=True
"""


def arguments(folder):
  """Of the command, but for --workdir; writes its inputs into the folder."""
  rows, texts, mini = (
    folder / name for name in ('rows.jsonl', 'texts.jsonl', 'mini.txt')
  )
  _write(rows, ROWS)
  _write(texts, [row | {'generation': _said(row['best'])} for row in ROWS])
  mini.write_text(_TEMPLATE)
  return [
    '--config=configs/spct.py:tiny',
    '--config.checkpoint=random',
    f'--config.data={rows}#split',
    f'--config.prompt.template={mini}',
    f'--config.sft.data.texts=judged:{texts}',
    *(f'--config.{x}' for x in SIZES.split()),
  ]


def _said(best):
  return rf'Scores: \boxed{{{"4, 8" if best else "8, 4"}}}'


def _write(path, rows):
  path.write_text(''.join(f'{json.dumps(row)}\n' for row in rows))


def parse(*given):
  """The config of a command line."""
  argv = ['main', *map(str, given)]
  if not any(x.startswith('--config=') for x in argv):
    argv.insert(1, '--config=configs/spct.py:tiny')
  found = flags.FlagValues()
  config_flags.DEFINE_config_file('config', flag_values=found, sys_argv=argv)
  found(argv)
  return found.config


def start(*given, env):
  """A child that runs main; what it prints is read by communicate()."""
  return subprocess.Popen(
    [sys.executable, '-m', 'grm_jax.main', *map(str, given)],
    cwd=test_main.ROOT,
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def run(*given, env):
  """What main prints; a whole run is longer than most."""
  child = start(*given, env=env)
  stdout, stderr = child.communicate(timeout=2 * HANG)
  assert not child.returncode, stderr
  return stdout
