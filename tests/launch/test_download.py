"""launch/demo/download.py, and the data source of `make demo-real`."""

import hashlib
import subprocess
import sys

import pytest

from tests import test_main
from tests.messages import names

SCRIPT = test_main.ROOT / 'launch/demo/download.py'
CONTENT = b'{"a": 1}\n' * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def call(url, digest, path):
  return subprocess.run(
    [sys.executable, SCRIPT, url, digest, path], capture_output=True, text=True
  )


@pytest.fixture
def source(tmp_path):
  path = tmp_path / 'source.jsonl'
  path.write_bytes(CONTENT)
  return path


def test_download_is_complete(source, tmp_path):
  target = tmp_path / 'new' / 'data.jsonl'
  process = call(source.as_uri(), DIGEST, target)
  assert (process.returncode, process.stderr) == (0, '')
  assert target.read_bytes() == CONTENT
  assert [x.name for x in target.parent.iterdir()] == ['data.jsonl']


def test_failed_download_is_one_line(source, tmp_path):
  target = tmp_path / 'new' / 'data.jsonl'
  wrong_digest = '0' * 64
  missing = (tmp_path / 'missing').as_uri()
  for url, digest, words in (
    (source.as_uri(), wrong_digest, [DIGEST, wrong_digest]),
    (missing, DIGEST, [missing]),
    ('no url', DIGEST, ['no url']),
    (
      'http://127.0.0.1:9/x',
      DIGEST,
      ['http://127.0.0.1:9/x', 'Connection refused'],
    ),
  ):
    process = call(url, digest, target)
    assert process.returncode == 1
    assert process.stderr.startswith('error: ') and names(
      process.stderr, *words
    )
    assert process.stderr.count('\n') == 1
    assert not list(target.parent.iterdir())


@pytest.mark.parametrize(
  'flags, data, downloads',
  [
    ([], 'gsm8k_pairs:runs/none.jsonl', True),
    (['DATA=pandalm:here.json'], 'pandalm:here.json', False),
  ],
)
def test_local_pairs_are_not_downloaded(flags, data, downloads):
  process = subprocess.run(
    ['make', '--dry-run', 'demo-real', 'GSM8K=runs/none.jsonl', *flags],
    cwd=test_main.ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  assert ('launch/demo/download.py' in process.stdout) == downloads
  assert f'--config.data={data}' in process.stdout
