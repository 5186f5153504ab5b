"""launch/tpu.sh: its dry runs, and what it does with a gcloud of our own."""

import itertools
import math
import os
import shlex
import stat
import subprocess
import sys

import pytest

from grm_jax.model import config as model_config
from tests import test_main
from tests.messages import lines_with, names
from tests.stages import spct_run

SCRIPT = test_main.ROOT / 'launch' / 'tpu.sh'
GIVEN = {
  'PROJECT': 'my-project',
  'ZONE': 'us-east5-a',
  'NAME': 'judge',
  'TOPOLOGY': 'v5p:4x4x4',
}


def call(*arguments, env=None, path=''):
  given = {**os.environ, **GIVEN, **(env or {})}
  if path:
    given['PATH'] = f'{path}:{given["PATH"]}'
  return subprocess.run(
    ['bash', SCRIPT, *arguments], capture_output=True, text=True, env=given
  )


def dry_run(*arguments, **env):
  out = call('--dry-run', *arguments, env=env)
  assert out.returncode == 0, out.stderr
  return [shlex.split(line) for line in out.stderr.splitlines()]


def value(command, flag):
  """Of --flag=value; None without it."""
  found = [x for x in command if x.startswith(f'--{flag}=')]
  return found[0].partition('=')[2] if found else None


def test_shellcheck_finds_nothing():
  out = subprocess.run(
    ['shellcheck', *sorted((test_main.ROOT / 'launch').glob('*.sh'))],
    capture_output=True,
    text=True,
    env=os.environ | {'PATH': _with_venv()},
  )
  assert out.returncode == 0, out.stdout


def _with_venv():
  return f'{os.path.dirname(sys.executable)}:{os.environ["PATH"]}'


def test_all_in_order():
  found = dry_run('all', '--config=configs/grpo.py', '--workdir=gs://b/w')
  steps = [' '.join(x[:5]) for x in found]
  assert steps == [
    'gcloud compute tpus queued-resources create',
    'git archive --format=tar.gz ' + found[1][3] + ' HEAD',
    'gcloud compute tpus tpu-vm scp',
    'gcloud compute tpus tpu-vm ssh',
    'gcloud compute tpus tpu-vm ssh',
    'gcloud compute tpus tpu-vm ssh',
    'gcloud compute tpus tpu-vm ssh',
    'gcloud compute tpus queued-resources delete',
  ]
  for command in found:
    if command[0] == 'gcloud':
      assert value(command, 'project') == 'my-project'
      assert value(command, 'zone') == 'us-east5-a'
      assert '--quiet' in command


@pytest.mark.parametrize(
  'topology, kind, shape, image',
  [
    ('v4:2x2x2', 'v4', '2x2x2', 'tpu-ubuntu2204-base'),
    ('v5e:4x4', 'v5litepod', '4x4', 'v2-alpha-tpuv5-lite'),
    ('v5p:4x4x4', 'v5p', '4x4x4', 'v2-alpha-tpuv5'),
    ('v6e:8x8', 'v6e', '8x8', 'v2-alpha-tpuv6e'),
  ],
)
def test_what_is_asked_for(topology, kind, shape, image):
  (create,) = dry_run('create', TOPOLOGY=topology)
  assert value(create, 'type') == kind
  assert value(create, 'topology') == shape
  assert value(create, 'runtime-version') == image
  assert value(create, 'node-id') == 'judge'
  assert '--spot' not in create and '--reserved' not in create
  (create,) = dry_run('create', SPOT='1', RESERVED='1', RUNTIME='own')
  assert '--spot' in create and '--reserved' in create
  assert value(create, 'runtime-version') == 'own'


def test_several_slices():
  (create,) = dry_run('create', SLICES='2')
  assert value(create, 'node-count') == '2'
  assert value(create, 'node-prefix') == 'judge'
  found = dry_run('run', '--config=configs/sft.py', SLICES='2')
  assert [x[5] for x in found] == ['judge-0', 'judge-1']
  assert all('--config.mesh.num_slices=2' in value(x, 'command') for x in found)
  (logs,) = dry_run('logs', SLICES='2')
  assert logs[5] == 'judge-0'


def test_what_the_workers_run(tmp_path):
  """The command, run here, gives the flags to Python as they were given."""
  flags = ['--config=configs/a.py', "--config.x=('a b',)", '--config.y=$HOME;`']
  (start,) = dry_run('run', *flags, FLAGS='--xla_a=1 --xla_b=2')
  assert value(start, 'worker') == 'all'
  folder = tmp_path / 'grm_jax_run'
  python = folder / '.venv' / 'bin' / 'python'
  python.parent.mkdir(parents=True)
  python.write_text(
    '#!/usr/bin/env bash\nprintf "%s\\n" "$GRM_COORDINATOR" '
    '"$LIBTPU_INIT_ARGS" "$@"\nexit 3\n'
  )
  python.chmod(python.stat().st_mode | stat.S_IEXEC)
  (folder / 'run.exit').write_text('0\n')  # of an earlier run
  on_a_worker(value(start, 'command'), tmp_path)
  assert (folder / 'run.log').read_text().splitlines() == [
    *('auto', '--xla_a=1 --xla_b=2', '-m', 'grm_jax.main'),
    *flags,
  ]
  assert (folder / 'run.exit').read_text() == '3\n'


def on_a_worker(command, folder):
  """Runs it here, but for killing: that would reach other runs."""
  pkill = folder / 'bin' / 'pkill'
  pkill.parent.mkdir()
  pkill.write_text(
    '#!/usr/bin/env bash\nprintf "%s\\n" "$@" >> pkill\nexit 1\n'
  )
  pkill.chmod(0o755)
  subprocess.run(
    ['bash', '-c', f'{command.removesuffix("&")}& wait'],
    cwd=folder,
    check=True,
    env=os.environ | {'PATH': f'{pkill.parent}:{os.environ["PATH"]}'},
  )
  killed = (folder / 'grm_jax_run' / 'pkill').read_text().splitlines()
  assert killed == ['-KILL', '-f', '^.venv/bin/python -m grm_jax.main']


@pytest.mark.parametrize(
  'says, status, told',
  [
    ('', 0, 0),
    ('error: no', 2, 2),
    ('stopped after step 5 of 9; run the same command to resume', 0, 75),
    ('', 134, 75),
    ('', 143, 75),
    ('', 75, 75),
  ],
)
def test_what_is_to_be_begun_again(tmp_path, says, status, told):
  (start,) = dry_run('run', '--config=configs/a.py')
  python = tmp_path / 'grm_jax_run' / '.venv' / 'bin' / 'python'
  python.parent.mkdir(parents=True)
  python.write_text(f'#!/usr/bin/env bash\necho {says!r}\nexit {status}\n')
  python.chmod(0o755)
  on_a_worker(value(start, 'command'), tmp_path)
  found = (tmp_path / 'grm_jax_run' / 'run.exit').read_text()
  assert found == f'{told}\n'


def rows():
  """The table, names of flags replaced by what they stand for."""
  text = (test_main.ROOT / 'configs' / 'tpu.txt').read_text()
  lines = [x for x in text.splitlines() if x and not x.startswith('#')]
  named = dict(x.split(' = ', 1) for x in lines if '|' not in x)
  table = [
    [x.strip() for x in line.split('|')] for line in lines if '|' in line
  ]
  return [
    [*row, ' '.join(named.get(x, x) for x in flags.split())]
    for *row, flags in table
  ]


@pytest.mark.parametrize('row', rows(), ids=lambda row: ' '.join(row[:3]))
def test_a_row_of_the_table_is_what_its_stage_takes(row):
  topology, size, stage, given, libtpu = row
  assert size in ('2b', '9b', '27b')
  assert all(x.startswith('--xla_') for x in libtpu.split())
  config = spct_run.parse(f'--config=configs/{stage}.py', *given.split())
  chips = math.prod(map(int, topology.partition(':')[2].split('x')))
  own = config.train if stage == 'rft' else config
  mesh = own.mesh
  others = mesh.data * mesh.tensor
  assert chips % others == 0 and mesh.fsdp in (-1, chips // others)
  trained = [own] if 'batch' in own else []
  if stage == 'spct':
    trained = [config.sft, config.rft.train, config.grpo, config.meta_rm]
  split = mesh.logical_axis_rules.residual_tokens
  assert tuple(split) in ((), ('tensor',))
  for each in trained:
    assert each.batch.micro_batch_prompts % (chips // mesh.tensor) == 0
    rows = (
      each.group_size
      if 'group_size' in each
      else each.batch.generations_per_prompt
    )
    for bucket, own_size in itertools.product(
      each.batch.prompt_buckets, each.batch.generation_buckets
    ):
      assert not split or (bucket + rows * own_size) % mesh.tensor == 0
  heads = model_config.from_name(f'gemma2_{size}').num_kv_heads
  assert heads % mesh.tensor == 0
  assert heads % (mesh.get('decode_tensor', 0) or mesh.tensor) == 0


def test_no_row_twice():
  keys = [tuple(row[:3]) for row in rows()]
  assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
  'topology, part, flag',
  [
    ('v5p:2x2x2', 'mesh.fsdp=8', 'sparse_core'),
    ('v5e:4x4', "('tensor',)", 'windowed_einsum'),
  ],
)
def test_what_is_recommended_goes_before_what_is_given(topology, part, flag):
  (row,) = (x for x in rows() if x[:3] == [topology, '27b', 'grpo'])
  topology, size, stage, given, libtpu = row
  assert part in given
  assert flag in libtpu and 'windowed_einsum' in libtpu
  flags = [
    '--workdir=gs://b/w',
    f'--config=configs/{stage}.py',
    '--config.seed=1',
  ]
  for env, expected in (({}, libtpu), ({'FLAGS': '--xla_c=3'}, '--xla_c=3')):
    (start,) = dry_run('run', *flags, TOPOLOGY=topology, SIZE=size, **env)
    command = ' '.join(shlex.split(shlex.split(value(start, 'command'))[-7]))
    order = [flags[0], flags[1], *given.split(), flags[2]]
    assert f'grm_jax.main {" ".join(order)};' in command
    assert f'LIBTPU_INIT_ARGS={expected} ' in command


def test_results():
  (copy,) = dry_run('results', 'runs/grpo', 'here')
  assert copy[5:7] == ['--recurse', 'judge:grm_jax_run/runs/grpo']
  assert copy[7] == 'here' and value(copy, 'worker') == '0'


@pytest.mark.parametrize(
  'arguments, env, words',
  [
    (['create'], {'PROJECT': ''}, ['PROJECT']),
    (['create'], {'ZONE': ''}, ['ZONE']),
    (['logs'], {'NAME': ''}, ['NAME']),
    (['create'], {'TOPOLOGY': ''}, ['TOPOLOGY']),
    (['create'], {'TOPOLOGY': 'v9:4x4'}, ['v4', 'v5e', 'v5p', 'v6e']),
    (['create'], {'TOPOLOGY': 'v5p'}, ['TOPOLOGY', 'v5p']),
    (['create'], {'TOPOLOGY': 'v5p:4x4x'}, ['TOPOLOGY', 'v5p:4x4x']),
    (['create'], {'SLICES': '0'}, ['SLICES', 0]),
    (['create', 'now'], {}, ['create', 'now']),
    (['run'], {}, ['run', 'grm_jax.main']),
    (['run', '--config=configs/aot.py'], {'SIZE': '27b'}, ['27b']),
    (['results', 'x'], {}, ['results', 'FROM']),
    (['fly'], {}, ['fly']),
  ],
)
def test_mistakes(arguments, env, words):
  out = call('--dry-run', *arguments, env=env)
  assert out.returncode == 2
  (line,) = out.stderr.splitlines()
  assert line.startswith('error: ') and names(line, *words)


def test_help_names_every_command_and_variable():
  out = call('--help')
  assert out.returncode == 0
  for word in (
    *('all', 'create', 'setup', 'run', 'watch', 'logs', 'results', 'delete'),
    *('PROJECT', 'ZONE', 'NAME', 'TOPOLOGY', 'SLICES', 'SPOT', 'RETRIES'),
  ):
    assert word in out.stdout
  assert 'set -euo' not in out.stdout


# A gcloud of one queued resource, which is taken away as often as `taken`
# says while a run is on, and whose runs end with the words of `status`, the
# last of them for ever. REFUSED: it is never given.
PLAYED = """#!/usr/bin/env bash
printf '%s\\n' "$*" >> "$PLAY/calls"
case "$*" in
*'queued-resources create'*)
  [[ -z ${REFUSED:-} ]] || exit 1
  echo ACTIVE > "$PLAY/state"
  ;;
*'queued-resources describe'*) cat "$PLAY/state" 2>/dev/null || exit 1 ;;
*'queued-resources delete'*) rm -f "$PLAY/state" ;;
*'run.exit 2>/dev/null'*)
  left=$(cat "$PLAY/taken")
  if ((left > 0)); then
    echo $((left - 1)) > "$PLAY/taken"
    echo SUSPENDED > "$PLAY/state"
    exit 255
  fi
  read -r first rest < "$PLAY/status"
  [[ -z $rest ]] || echo "$rest" > "$PLAY/status"
  echo "$first"
  ;;
esac
"""


def play(tmp_path, taken, status, **env):
  gcloud = tmp_path / 'gcloud'
  gcloud.write_text(PLAYED)
  gcloud.chmod(0o755)
  (tmp_path / 'taken').write_text(f'{taken}\n')
  (tmp_path / 'status').write_text(f'{status}\n')
  out = call(
    *('all', '--config=configs/grpo.py'),
    env={'PLAY': str(tmp_path), 'PAUSE': '0', **env},
    path=tmp_path,
  )
  return out, (tmp_path / 'calls').read_text().splitlines()


def count(calls, words):
  return sum(words in x for x in calls)


def test_a_slice_that_is_taken_away_is_asked_for_again(tmp_path):
  out, calls = play(tmp_path, taken=2, status=0)
  assert out.returncode == 0, out.stderr
  assert count(calls, 'queued-resources create') == 3
  assert count(calls, 'grm_jax.main') == 3
  assert count(calls, 'queued-resources delete') == 3
  assert calls[-1].startswith('compute tpus queued-resources delete judge')


def test_a_run_that_fails_keeps_its_slice(tmp_path):
  out, calls = play(tmp_path, taken=0, status=2)
  assert out.returncode == 2
  assert lines_with(out.stderr, 'error', 2)
  assert count(calls, 'queued-resources delete') == 0
  assert count(calls, 'queued-resources create') == 1


def test_a_run_that_was_stopped_is_started_again(tmp_path):
  """On the slice that is there: nothing is asked for or set up twice."""
  out, calls = play(tmp_path, taken=0, status='75 75 0')
  assert out.returncode == 0, out.stderr
  assert count(calls, 'grm_jax.main') == 3
  assert count(calls, 'queued-resources create') == 1
  assert count(calls, 'code.tar.gz -C') == 1
  assert count(calls, 'queued-resources delete') == 1


def test_a_slice_that_is_refused_is_asked_for_once(tmp_path):
  out, calls = play(tmp_path, taken=0, status=0, REFUSED='1')
  assert out.returncode == 1
  assert lines_with(out.stderr, 'error', 1)
  assert count(calls, 'queued-resources create') == 1
  assert count(calls, 'grm_jax.main') == 0


def test_not_for_ever(tmp_path):
  out, calls = play(tmp_path, taken=9, status=0, RETRIES='1')
  assert out.returncode == 2
  assert lines_with(out.stderr, 'error', 2, 'RETRIES')
  assert count(calls, 'queued-resources create') == 2


def test_without_gcloud(tmp_path):
  bash = tmp_path / 'bin'
  bash.mkdir()
  for name in ('bash', 'dirname', 'sed'):
    (bash / name).symlink_to(f'/usr/bin/{name}')
  out = call('logs', env={'PATH': str(bash)})
  assert out.returncode == 2
  assert lines_with(out.stderr, 'error', 'gcloud')
