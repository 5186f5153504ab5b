"""Two runs cannot write the same files; a run that has ended locks nothing."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest
from etils import epath

from grm_jax.errors import UserError
from grm_jax.io import run_lock
from tests import fake_bucket
from tests.messages import naming

HOLD = (
  'import sys, time\n'
  'from grm_jax.io import run_lock\n'
  'with run_lock.hold_workdir(sys.argv[1]):\n'
  '  print("locked", flush=True)\n'
  '  time.sleep(100)\n'
)


@pytest.fixture
def holder(tmp_path):
  """A process that holds the lock of WORKDIR tmp_path/run."""
  process = subprocess.Popen(
    [sys.executable, '-c', HOLD, tmp_path / 'run'],
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == 'locked\n'
  yield process
  process.kill()
  process.wait()


def test_second_run_is_refused_until_the_first_is_killed(holder, tmp_path):
  workdir = tmp_path / 'run'
  (tmp_path / 'link').symlink_to(workdir)
  message = naming(holder.pid, socket.gethostname(), '--workdir')
  for path in (workdir, tmp_path / 'link'):
    with (
      pytest.raises(UserError, match=message),
      run_lock.hold_workdir(path),
    ):
      pass
  content = json.loads((workdir / run_lock.WORKDIR_LOCK).read_text())
  assert content['pid'] == holder.pid and content['time']
  holder.send_signal(signal.SIGKILL)
  holder.wait()
  with run_lock.hold_workdir(workdir):
    content = json.loads((workdir / run_lock.WORKDIR_LOCK).read_text())
    assert content['pid'] == os.getpid()
  assert not list(workdir.iterdir())


def test_lock_is_released_after_an_error(tmp_path):
  with pytest.raises(ZeroDivisionError), run_lock.hold_workdir(tmp_path):
    raise ZeroDivisionError
  with run_lock.hold_workdir(tmp_path):
    pass


def test_workdirs_of_stages_are_separate(tmp_path):
  with (
    run_lock.hold_workdir(tmp_path),
    run_lock.hold_workdir(tmp_path / 'stage'),
  ):
    pass


def test_folder_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  with (
    pytest.raises(UserError, match=naming(tmp_path / 'file')),
    run_lock.hold_workdir(tmp_path / 'file'),
  ):
    pass


@pytest.fixture
def bucket_lock(monkeypatch):
  """The lock of a workdir in a bucket, with short times."""
  monkeypatch.setattr(run_lock, 'STALE_S', 1.0)
  monkeypatch.setattr(run_lock, 'REFRESH_S', 0.1)
  with fake_bucket.bucket(monkeypatch):
    yield epath.Path('gs://bucket/run') / run_lock.WORKDIR_LOCK


def test_bucket_refuses_the_second_run(bucket_lock):
  with run_lock.hold_workdir('gs://bucket/run'):
    # As from another machine, which cannot see whether the process has ended.
    content = bucket_lock.read_text().replace(socket.gethostname(), 'x')
    assert content != bucket_lock.read_text()
    with (
      pytest.raises(UserError, match='gs://bucket/run'),
      run_lock.hold_workdir('gs://bucket/run'),
    ):
      pass
  assert not bucket_lock.exists()


@pytest.mark.parametrize('host', [socket.gethostname(), 'x'])
def test_bucket_lock_of_a_killed_run_is_stale(bucket_lock, host):
  killed = subprocess.Popen(['true'])
  killed.wait()
  bucket_lock.parent.mkdir(parents=True)
  fields = {'host': host, 'pid': killed.pid, 'time': 'now'}
  bucket_lock.write_text(json.dumps(fields))
  with run_lock.hold_workdir('gs://bucket/run'):
    assert json.loads(bucket_lock.read_text())['pid'] == os.getpid()
