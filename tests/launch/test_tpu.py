"""launch/tpu.sh: dry runs, and runs with a simulated gcloud."""

import itertools
import math
import os
import shlex
import stat
import subprocess
import sys

import pytest

from benchmarks import aot_table
from grm_jax.model import config as model_config
from tests import test_main
from tests.messages import lines_with, names
from tests.stages import spct_run

SCRIPT = test_main.ROOT / 'launch' / 'tpu.sh'
ENVIRONMENT = {
  'PROJECT': 'my-project',
  'ZONE': 'us-east5-a',
  'NAME': 'judge',
  'TOPOLOGY': 'v5p:4x4x4',
}


def call(*arguments, env=None, path=''):
  environment = {**os.environ, **ENVIRONMENT, **(env or {})}
  if path:
    environment['PATH'] = f'{path}:{environment["PATH"]}'
  return subprocess.run(
    ['bash', SCRIPT, *arguments],
    capture_output=True,
    text=True,
    env=environment,
  )


def dry_run(*arguments, **env):
  out = call('--dry-run', *arguments, env=env)
  assert out.returncode == 0, out.stderr
  return [shlex.split(line) for line in out.stderr.splitlines()]


def value(command, flag):
  """Returns the value of --flag=value; None if the flag is absent."""
  matches = [x for x in command if x.startswith(f'--{flag}=')]
  return matches[0].partition('=')[2] if matches else None


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


def test_all_runs_commands_in_order():
  commands = dry_run('all', '--config=configs/grpo.py', '--workdir=gs://b/w')
  steps = [' '.join(x[:5]) for x in commands]
  assert steps == [
    'gcloud compute tpus queued-resources create',
    'git archive --format=tar.gz ' + commands[1][3] + ' HEAD',
    'gcloud compute tpus tpu-vm scp',
    'gcloud compute tpus tpu-vm ssh',
    'gcloud compute tpus tpu-vm ssh',
    'gcloud compute tpus tpu-vm ssh',
    'gcloud compute tpus tpu-vm ssh',
    'gcloud compute tpus queued-resources delete',
  ]
  for command in commands:
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
def test_create_requests_topology(topology, kind, shape, image):
  (create,) = dry_run('create', TOPOLOGY=topology)
  assert value(create, 'type') == kind
  assert value(create, 'topology') == shape
  assert value(create, 'runtime-version') == image
  assert value(create, 'node-id') == 'judge'
  assert '--spot' not in create and '--reserved' not in create
  (create,) = dry_run('create', SPOT='1', RESERVED='1', RUNTIME='my-image')
  assert '--spot' in create and '--reserved' in create
  assert value(create, 'runtime-version') == 'my-image'


def test_several_slices():
  (create,) = dry_run('create', SLICES='2')
  assert value(create, 'node-count') == '2'
  assert value(create, 'node-prefix') == 'judge'
  starts = dry_run('run', '--config=configs/sft.py', SLICES='2')
  assert [x[5] for x in starts] == ['judge-0', 'judge-1']
  assert all(
    '--config.mesh.num_slices=2' in value(x, 'command') for x in starts
  )
  (logs,) = dry_run('logs', SLICES='2')
  assert logs[5] == 'judge-0'


def test_flags_reach_python_unchanged(tmp_path):
  """Runs the command of the workers locally."""
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
  (folder / 'run.exit').write_text('0\n')  # from an earlier run
  run_worker_command(value(start, 'command'), tmp_path)
  assert (folder / 'run.log').read_text().splitlines() == [
    *('auto', '--xla_a=1 --xla_b=2', '-m', 'grm_jax.main'),
    *flags,
  ]
  assert (folder / 'run.exit').read_text() == '3\n'


def run_worker_command(command, folder):
  """Runs the command locally with a fake pkill, to spare other processes."""
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
  'output, status, reported_status',
  [
    ('', 0, 0),
    ('error: no', 2, 2),
    ('stopped after step 5 of 9; run the same command to resume', 0, 75),
    ('', 134, 75),
    ('', 143, 75),
    ('', 75, 75),
  ],
)
def test_reported_exit_status(tmp_path, output, status, reported_status):
  (start,) = dry_run('run', '--config=configs/a.py')
  python = tmp_path / 'grm_jax_run' / '.venv' / 'bin' / 'python'
  python.parent.mkdir(parents=True)
  python.write_text(f'#!/usr/bin/env bash\necho {output!r}\nexit {status}\n')
  python.chmod(0o755)
  run_worker_command(value(start, 'command'), tmp_path)
  text = (tmp_path / 'grm_jax_run' / 'run.exit').read_text()
  assert text == f'{reported_status}\n'


@pytest.mark.parametrize(
  'row', aot_table.read_rows(), ids=lambda row: ' '.join(row[:3])
)
def test_row_fits_config_of_stage(row):
  topology, size, stage, overrides, libtpu = row
  model = size.removesuffix('-lora')
  assert model in ('2b', '9b', '27b')
  assert all(x.startswith('--xla_') for x in libtpu.split())
  config = spct_run.parse(f'--config=configs/{stage}.py', *overrides)
  chips = math.prod(map(int, topology.partition(':')[2].split('x')))
  stage_config = config.train if stage == 'rft' else config
  mesh = stage_config.mesh
  other_axes = mesh.data * mesh.tensor
  assert chips % other_axes == 0
  assert mesh.fsdp in (-1, chips // other_axes)
  trained = [stage_config] if 'batch' in stage_config else []
  if stage == 'spct':
    trained = [config.sft, config.rft.train, config.grpo, config.meta_rm]
  residual_axes = tuple(mesh.logical_axis_rules.residual_tokens)
  assert residual_axes in ((), ('tensor',))
  for train_config in trained:
    batch = train_config.batch
    assert batch.micro_batch_prompts % (chips // mesh.tensor) == 0
    if 'group_size' in train_config:
      num_generations = train_config.group_size
    else:
      num_generations = batch.generations_per_prompt
    for prompt_size, generation_size in itertools.product(
      batch.prompt_buckets, batch.generation_buckets
    ):
      packed_length = prompt_size + num_generations * generation_size
      assert not residual_axes or packed_length % mesh.tensor == 0
  heads = model_config.from_name(f'gemma2_{model}').num_kv_heads
  assert heads % mesh.tensor == 0
  assert heads % (mesh.get('decode_tensor', 0) or mesh.tensor) == 0


def test_rows_are_unique():
  keys = [row[:3] for row in aot_table.read_rows()]
  assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
  'topology, part, flag',
  [
    ('v5p:2x2x2', 'mesh.fsdp=8', 'sparse_core'),
    ('v5e:4x4', "('tensor',)", 'windowed_einsum'),
  ],
)
def test_recommended_overrides_precede_flags(topology, part, flag):
  (row,) = (
    x for x in aot_table.read_rows() if x[:3] == (topology, '27b', 'grpo')
  )
  topology, size, stage, overrides, libtpu = row
  assert any(part in x for x in overrides)
  assert flag in libtpu and 'windowed_einsum' in libtpu
  flags = [
    '--workdir=gs://b/w',
    f'--config=configs/{stage}.py',
    '--config.seed=1',
  ]
  for env, expected in (({}, libtpu), ({'FLAGS': '--xla_c=3'}, '--xla_c=3')):
    (start,) = dry_run('run', *flags, TOPOLOGY=topology, SIZE=size, **env)
    command = ' '.join(shlex.split(shlex.split(value(start, 'command'))[-7]))
    order = [flags[0], flags[1], *overrides, flags[2]]
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
def test_invalid_arguments_are_one_line(arguments, env, words):
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


# Simulates gcloud with one queued resource. The file `preemptions` has the
# number of preemptions during runs. The file `status` has the exit statuses of
# the runs; the last one repeats. With REFUSED, every request fails.
FAKE_GCLOUD = """#!/usr/bin/env bash
printf '%s\\n' "$*" >> "$STATE_DIR/calls"
case "$*" in
*'queued-resources create'*)
  [[ -z ${REFUSED:-} ]] || exit 1
  echo ACTIVE > "$STATE_DIR/state"
  ;;
*'queued-resources describe'*) cat "$STATE_DIR/state" 2>/dev/null || exit 1 ;;
*'queued-resources delete'*) rm -f "$STATE_DIR/state" ;;
*'run.exit 2>/dev/null'*)
  left=$(cat "$STATE_DIR/preemptions")
  if ((left > 0)); then
    echo $((left - 1)) > "$STATE_DIR/preemptions"
    echo SUSPENDED > "$STATE_DIR/state"
    exit 255
  fi
  read -r first rest < "$STATE_DIR/status"
  [[ -z $rest ]] || echo "$rest" > "$STATE_DIR/status"
  echo "$first"
  ;;
esac
"""


def run_all(tmp_path, preemptions, status, **env):
  gcloud = tmp_path / 'gcloud'
  gcloud.write_text(FAKE_GCLOUD)
  gcloud.chmod(0o755)
  (tmp_path / 'preemptions').write_text(f'{preemptions}\n')
  (tmp_path / 'status').write_text(f'{status}\n')
  out = call(
    *('all', '--config=configs/grpo.py'),
    env={'STATE_DIR': str(tmp_path), 'PAUSE': '0', **env},
    path=tmp_path,
  )
  return out, (tmp_path / 'calls').read_text().splitlines()


def count(calls, words):
  return sum(words in x for x in calls)


def test_preempted_slice_is_requested_again(tmp_path):
  out, calls = run_all(tmp_path, preemptions=2, status=0)
  assert out.returncode == 0, out.stderr
  assert count(calls, 'queued-resources create') == 3
  assert count(calls, 'grm_jax.main') == 3
  assert count(calls, 'queued-resources delete') == 3
  assert calls[-1].startswith('compute tpus queued-resources delete judge')


def test_failed_run_keeps_its_slice(tmp_path):
  out, calls = run_all(tmp_path, preemptions=0, status=2)
  assert out.returncode == 2
  assert lines_with(out.stderr, 'error', 2)
  assert count(calls, 'queued-resources delete') == 0
  assert count(calls, 'queued-resources create') == 1


def test_stopped_run_restarts_on_same_slice(tmp_path):
  out, calls = run_all(tmp_path, preemptions=0, status='75 75 0')
  assert out.returncode == 0, out.stderr
  assert count(calls, 'grm_jax.main') == 3
  assert count(calls, 'queued-resources create') == 1
  assert count(calls, 'code.tar.gz -C') == 1
  assert count(calls, 'queued-resources delete') == 1


def test_refused_slice_is_requested_once(tmp_path):
  out, calls = run_all(tmp_path, preemptions=0, status=0, REFUSED='1')
  assert out.returncode == 1
  assert lines_with(out.stderr, 'error', 1)
  assert count(calls, 'queued-resources create') == 1
  assert count(calls, 'grm_jax.main') == 0


def test_retries_are_limited(tmp_path):
  out, calls = run_all(tmp_path, preemptions=9, status=0, RETRIES='1')
  assert out.returncode == 2
  assert lines_with(out.stderr, 'error', 2, 'RETRIES')
  assert count(calls, 'queued-resources create') == 2


def test_missing_gcloud_is_one_line(tmp_path):
  folder = tmp_path / 'bin'
  folder.mkdir()
  for name in ('bash', 'dirname', 'sed'):
    (folder / name).symlink_to(f'/usr/bin/{name}')
  out = call('logs', env={'PATH': str(folder)})
  assert out.returncode == 2
  assert lines_with(out.stderr, 'error', 'gcloud')
