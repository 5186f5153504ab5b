"""Records of runs: reading and comparing them."""

import pytest

from grm_jax.errors import UserError
from grm_jax.io import json_record
from tests.messages import naming


def test_all_differences_are_listed():
  stored = {'checkpoint': 'a', 'k': 8, 'seed': 0}
  text = json_record.differences(
    stored, {'checkpoint': 'b', 'k': 16, 'seed': 0}
  )
  assert "config.checkpoint was 'a', now 'b'" in text
  assert 'config.k was 8, now 16' in text and 'seed' not in text
  assert not json_record.differences(stored, stored)
  many = {f'x{i}': i for i in range(20)}
  assert '12 more' in json_record.differences({}, many)


def test_a_record_that_does_not_exist(tmp_path):
  assert json_record.read(tmp_path / 'x.json') is None


@pytest.mark.parametrize('content', [b'', b'{', b'[]', b'{"b": 1}', b'\xff'])
def test_a_damaged_record_is_named(tmp_path, content):
  path = tmp_path / 'x.json'
  path.write_bytes(content)
  with pytest.raises(UserError, match=naming(path)) as error:
    json_record.read(path, 'a', remedy='run it again')
  assert str(error.value).endswith('; run it again')


def test_a_folder_is_no_record(tmp_path):
  with pytest.raises(UserError, match=naming(tmp_path, '--workdir')):
    json_record.read(tmp_path)
