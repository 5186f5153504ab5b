"""launch/demo/download.py and where `make demo-real` takes its pairs from."""

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


def test_a_file_arrives_whole(source, tmp_path):
  target = tmp_path / 'new' / 'data.jsonl'
  done = call(source.as_uri(), DIGEST, target)
  assert (done.returncode, done.stderr) == (0, '')
  assert target.read_bytes() == CONTENT
  assert [x.name for x in target.parent.iterdir()] == ['data.jsonl']


def test_another_file_or_none_is_one_line(source, tmp_path):
  target = tmp_path / 'new' / 'data.jsonl'
  other = '0' * 64
  nowhere = (tmp_path / 'nowhere').as_uri()
  for url, digest, words in (
    (source.as_uri(), other, [DIGEST, other]),
    (nowhere, DIGEST, [nowhere]),
    ('no url', DIGEST, ['no url']),
    (
      'http://127.0.0.1:9/x',
      DIGEST,
      ['http://127.0.0.1:9/x', 'Connection refused'],
    ),
  ):
    done = call(url, digest, target)
    assert done.returncode == 1
    assert done.stderr.startswith('error: ') and names(done.stderr, *words)
    assert done.stderr.count('\n') == 1
    assert not list(target.parent.iterdir())


@pytest.mark.parametrize(
  'given, data, downloads',
  [
    ([], 'gsm8k_pairs:runs/none.jsonl', True),
    (['DATA=pandalm:here.json'], 'pandalm:here.json', False),
  ],
)
def test_pairs_that_are_here_are_not_downloaded(given, data, downloads):
  done = subprocess.run(
    ['make', '--dry-run', 'demo-real', 'GSM8K=runs/none.jsonl', *given],
    cwd=test_main.ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  assert ('launch/demo/download.py' in done.stdout) == downloads
  assert f'--config.data={data}' in done.stdout
