"""Decision to initialize jax.distributed; test_two_processes really does it."""

import jax
import pytest

from grm_jax.errors import UserError
from grm_jax.sharding import distributed
from tests.messages import naming

WARNING = 'WARNING: could not determine TPU worker hostnames, please set'


@pytest.fixture
def calls(monkeypatch):
  """Returns the list of arguments of calls to jax.distributed.initialize."""
  recorded = []
  monkeypatch.setattr(
    jax.distributed, 'initialize', lambda *a, **unused: recorded.append(a)
  )
  for name in (
    'GRM_COORDINATOR',
    'GRM_NUM_PROCESSES',
    'GRM_PROCESS_ID',
    'TPU_WORKER_HOSTNAMES',
  ):
    monkeypatch.delenv(name, raising=False)
  return recorded


@pytest.mark.parametrize(
  'environment, expected',
  [
    ({}, []),
    ({'TPU_WORKER_HOSTNAMES': 'localhost'}, []),
    ({'TPU_WORKER_HOSTNAMES': WARNING}, []),
    ({'TPU_WORKER_HOSTNAMES': 'a,b'}, [()]),
    ({'GRM_COORDINATOR': 'auto'}, [()]),
    (
      {
        'GRM_COORDINATOR': 'a:1',
        'GRM_NUM_PROCESSES': '2',
        'GRM_PROCESS_ID': '0',
        'TPU_WORKER_HOSTNAMES': 'a,b',
      },
      [('a:1', 2, 0)],
    ),
  ],
  ids=str,
)
def test_environment_decides_how_to_initialize(
  calls, monkeypatch, environment, expected
):
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  distributed.initialize()
  assert calls == expected


def test_missing_variables_are_named(calls, monkeypatch):
  monkeypatch.setenv('GRM_COORDINATOR', 'a:1')
  with pytest.raises(
    UserError, match=naming('GRM_NUM_PROCESSES', 'GRM_PROCESS_ID')
  ):
    distributed.initialize()
  assert not calls


def test_a_variable_must_be_a_whole_number(calls, monkeypatch):
  monkeypatch.setenv('GRM_COORDINATOR', 'a:1')
  monkeypatch.setenv('GRM_NUM_PROCESSES', '2')
  monkeypatch.setenv('GRM_PROCESS_ID', 'one')
  with pytest.raises(UserError, match="GRM_PROCESS_ID is 'one'"):
    distributed.initialize()
  assert not calls
