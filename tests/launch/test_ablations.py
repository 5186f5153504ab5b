"""Commands that launch/ablations.sh prints in a dry run."""

import os
import shlex
import subprocess

import pytest

from benchmarks import ablations
from grm_jax.stages.spct import plan as spct_plan
from tests import test_main
from tests.stages import spct_run

# config_flags uses the deprecated load_module.
pytestmark = pytest.mark.filterwarnings('ignore:the load_module')

SCRIPT = test_main.ROOT / 'launch' / 'ablations.sh'


def dry_run(*arguments, folder=None, **environment):
  out = subprocess.run(
    ['bash', SCRIPT, '--dry-run', *arguments],
    capture_output=True,
    text=True,
    check=True,
    cwd=folder,
    env=os.environ | environment,
  )
  assert out.stderr == ''
  return [shlex.split(line) for line in out.stdout.splitlines()]


def main_commands(lines):
  """Returns the commands of grm_jax.main by their workdir."""
  commands = [x for x in lines if 'grm_jax.main' in x]
  return {
    next(y for y in x if y.startswith('--workdir='))[10:]: x for x in commands
  }


def test_every_ablation_of_every_seed_is_run(tmp_path):
  lines = dry_run(SEEDS='3 4', WORKDIR='w', PYTHON='py', folder=tmp_path)
  commands = main_commands(lines)
  names = {variant.run for variant in ablations.VARIANTS}
  assert set(commands) == {
    f'w/{name}/{seed}' for name in names for seed in (3, 4)
  }
  for folder, command in commands.items():
    assert command[:3] == ['py', '-m', 'grm_jax.main']
    assert '--config=configs/spct.py:tiny' in command
    assert f'--config.seed={folder[-1]}' in command
  table = 'py -m benchmarks.ablations --workdir=w --seeds 3 4'
  assert lines[-1] == table.split()
  assert list(tmp_path.iterdir()) == []


def test_each_ablation_has_one_override_and_its_stages():
  commands = main_commands(dry_run(SEEDS='0', WORKDIR='w'))
  flags_by_run = {}
  for folder, command in commands.items():
    flags = command[3:]
    flags = [x for x in flags if not x.startswith(('--workdir', '--config='))]
    stages = [x for x in flags if x.startswith('--config.stages=')]
    assert len(stages) == 1
    rest = set(flags) - {*stages, '--config.seed=0'}
    single_sample = {
      '--config.evaluation.k=1',
      '--config.evaluation.k_intermediate=1',
    }
    assert single_sample <= rest or folder == 'w/full/0'
    rest -= single_sample
    flags_by_run[folder.split('/')[1]] = (stages[0][16:], *sorted(rest))
  assert flags_by_run == {
    'full': ('base,sft,rft,grpo,meta_rm,evaluate',),
    'no_principles': (
      'base,sft,rft,grpo,evaluate',
      '--config.principles=False',
    ),
    'no_rejective_sampling': ('base,sft,grpo,evaluate',),
    'no_hinted': ('base,sft,rft,evaluate', '--config.rft.num_hinted_samples=0'),
    'no_unhinted': (
      'base,sft,rft,evaluate',
      '--config.rft.filter.unhinted=False',
      '--config.rft.hint=all',
    ),
    'no_general_data': (
      'base,sft,rft,evaluate',
      '--config.rft.train.data.general_fraction=0.0',
    ),
  }


def test_copied_stages_have_expected_fingerprint(monkeypatch):
  monkeypatch.chdir(test_main.ROOT)
  lines = dry_run('--config.sft.steps=7', SEEDS='0', WORKDIR='w')
  steps = {}
  for folder, command in main_commands(lines).items():
    assert command[-1] == '--config.sft.steps=7'
    flags = [x for x in command if x.startswith('--config')]
    plan = spct_plan.plan(spct_run.parse(*flags), folder)
    steps[folder] = {step.name: step.fingerprint for step in plan}
  copied = [x[3] for x in lines if x[:2] == ['cp', '-R']]
  assert sorted(copied) == sorted(
    f'w/{name}/0/{stage}.copy'
    for stage in ('base', 'sft')
    for name in (
      'no_rejective_sampling',
      'no_hinted',
      'no_unhinted',
      'no_general_data',
    )
  )
  for target in copied:
    folder, name = target.removesuffix('.copy').rsplit('/', 1)
    assert steps[folder][name] == steps['w/full/0'][name]
    assert steps[folder]['data'] == steps['w/full/0']['data']


def test_overrides_with_spaces_are_quoted():
  lines = dry_run('--config.data=my file.jsonl', SEEDS='0', WORKDIR='a b')
  assert all(
    '--config.data=my file.jsonl' in x for x in main_commands(lines).values()
  )
  assert 'a b/full/0' in main_commands(lines)
