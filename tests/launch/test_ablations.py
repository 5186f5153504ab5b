"""The commands of launch/ablations.sh, by its dry run."""

import os
import shlex
import subprocess

import pytest

from benchmarks import ablations
from grm_jax.stages.spct import plan as spct_plan
from tests import test_main
from tests.stages import spct_run

# config_flags loads a config's file so.
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


def runs(lines):
  """The commands that run a stage, by the folder of each."""
  own = [x for x in lines if 'grm_jax.main' in x]
  return {next(y for y in x if y.startswith('--workdir='))[10:]: x for x in own}


def test_every_ablation_of_every_seed_is_run(tmp_path):
  lines = dry_run(SEEDS='3 4', WORKDIR='w', PYTHON='py', folder=tmp_path)
  found = runs(lines)
  names = {variant.run for variant in ablations.VARIANTS}
  assert set(found) == {f'w/{name}/{seed}' for name in names for seed in (3, 4)}
  for folder, command in found.items():
    assert command[:3] == ['py', '-m', 'grm_jax.main']
    assert '--config=configs/spct.py:tiny' in command
    assert f'--config.seed={folder[-1]}' in command
  table = 'py -m benchmarks.ablations --workdir=w --seeds 3 4'
  assert lines[-1] == table.split()
  assert list(tmp_path.iterdir()) == []


def test_each_is_one_override_beside_its_stages():
  found = runs(dry_run(SEEDS='0', WORKDIR='w'))
  own = {}
  for folder, command in found.items():
    given = command[3:]
    given = [x for x in given if not x.startswith(('--workdir', '--config='))]
    stages = [x for x in given if x.startswith('--config.stages=')]
    assert len(stages) == 1
    rest = set(given) - {*stages, '--config.seed=0'}
    one = {'--config.evaluation.k=1', '--config.evaluation.k_intermediate=1'}
    assert one <= rest or folder == 'w/full/0'
    rest -= one
    own[folder.split('/')[1]] = (stages[0][16:], *rest)
  assert own == {
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
    ),
    'no_general_data': (
      'base,sft,rft,evaluate',
      '--config.rft.train.data.general_fraction=0.0',
    ),
  }


def test_what_is_copied_from_the_full_run_is_what_would_be_made(monkeypatch):
  """A copied stage has the fingerprint that the run asks for."""
  monkeypatch.chdir(test_main.ROOT)
  lines = dry_run('--config.sft.steps=7', SEEDS='0', WORKDIR='w')
  steps = {}
  for folder, command in runs(lines).items():
    assert command[-1] == '--config.sft.steps=7'
    given = [x for x in command if x.startswith('--config')]
    plan = spct_plan.plan(spct_run.parse(*given), folder)
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


def test_overrides_with_spaces_stay_whole():
  lines = dry_run('--config.data=my file.jsonl', SEEDS='0', WORKDIR='a b')
  assert all('--config.data=my file.jsonl' in x for x in runs(lines).values())
  assert 'a b/full/0' in runs(lines)
