"""Inputs of a whole run of the stage spct that takes seconds.

All queries have the same two responses, and a random one of them is best.
Judges learn the format of a judgement in a few steps. Half of their judgements
are then correct, so that every stage has something to learn from.
"""

import json
import subprocess
import sys

from absl import flags
from ml_collections import config_flags

from tests import test_main
from tests.processes import HANG_TIMEOUT_S

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

# Sizes only: the settings that matter are those of :tiny.
SIZES = """
checkpoint_step=-1 prompt.single= prompt_buckets=(96,320)
examples.rft=12 examples.grpo=8 examples.meta_rm_samples=6
examples.validation=0 examples.held_out=8
sft.steps=20 sft.save_every=10 sft.batch.micro_batch_prompts=8
sft.batch.generation_buckets=(16,) sft.optimizer.warmup_steps=2
rft.num_samples=2 rft.filter.too_easy=False
rft.sampling.concurrent_prompts=4 rft.sampling.max_new_tokens=16
rft.train.steps=4 rft.train.save_every=1 rft.train.batch.micro_batch_prompts=4
rft.train.batch.generations_per_prompt=1
rft.train.batch.generation_buckets=(16,)
rft.train.optimizer.warmup_steps=1
grpo.steps=4 grpo.save_every=1 grpo.prompts_per_rollout=2 grpo.group_size=2
grpo.batch.micro_batch_prompts=2 grpo.batch.generation_buckets=(16,)
grpo.rollout.concurrent_prompts=2 grpo.rollout.generations_per_prompt=2
grpo.optimizer.warmup_steps=1
meta_rm_samples.num_samples=2
meta_rm.steps=4 meta_rm.save_every=1 meta_rm.batch.micro_batch_prompts=2
meta_rm.batch.generation_buckets=(16,) meta_rm.optimizer.warmup_steps=1
meta_rm.evaluation.holdout_fraction=0.0
evaluation.k=4 evaluation.k_intermediate=2
evaluation.sampling.concurrent_prompts=4
evaluation.sampling.generations_per_prompt=2
evaluation.sampling.max_new_tokens=16 evaluation.evaluate_initial=True
"""


def arguments(folder):
  """Returns the arguments without --workdir; writes input files to folder."""
  rows, texts, template = (
    folder / name for name in ('rows.jsonl', 'texts.jsonl', 'template.txt')
  )
  _write(rows, ROWS)
  _write(
    texts, [row | {'generation': _generation(row['best'])} for row in ROWS]
  )
  template.write_text(_TEMPLATE)
  return [
    '--config=configs/spct.py:tiny',
    '--config.checkpoint=random',
    f'--config.data={rows}#split',
    f'--config.prompt.template={template}',
    f'--config.sft.data.texts=judged:{texts}',
    *(f'--config.{x}' for x in SIZES.split()),
  ]


def _generation(best):
  return rf'Scores: \boxed{{{"4, 8" if best else "8, 4"}}}'


def _write(path, rows):
  path.write_text(''.join(f'{json.dumps(row)}\n' for row in rows))


def parse(*arguments):
  """Returns the config of a command line."""
  argv = ['main', *map(str, arguments)]
  if not any(x.startswith('--config=') for x in argv):
    argv.insert(1, '--config=configs/spct.py:tiny')
  flag_values = flags.FlagValues()
  config_flags.DEFINE_config_file(
    'config', flag_values=flag_values, sys_argv=argv
  )
  flag_values(argv)
  return flag_values.config


def start(*arguments, env):
  """Starts main in a child process; communicate() returns its output."""
  return subprocess.Popen(
    [sys.executable, '-m', 'grm_jax.main', *map(str, arguments)],
    cwd=test_main.ROOT,
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def run(*arguments, env):
  """Returns what main prints; a whole run needs twice the usual time limit."""
  child = start(*arguments, env=env)
  stdout, stderr = child.communicate(timeout=2 * HANG_TIMEOUT_S)
  assert not child.returncode, stderr
  return stdout
