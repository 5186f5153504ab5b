"""Fuzzes the service with requests generated from its OpenAPI schema."""

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import positive_data_acceptance

from grm_jax.serving import app
from tests.serving.fake import PacedJudge, listening, make_service

_TOKEN = {'Authorization': 'Bearer secret'}
schema = schemathesis.openapi.from_dict(
  app.make_app(make_service(PacedJudge(), token='secret')).openapi()
)


@pytest.fixture(scope='module')
def address():
  judge = PacedJudge()
  judge.allow(10**6)
  with listening(make_service(judge, token='secret')) as url:
    yield url


@schema.parametrize()
@settings(
  max_examples=40,
  deadline=None,
  derandomize=True,
  suppress_health_check=list(HealthCheck),
)
def test_responses_match_the_openapi_schema(case, address):
  """No 5xx, no undocumented status, no body that differs from the schema."""
  case.call_and_validate(
    base_url=address,
    headers=_TOKEN,
    # The schema cannot express that each text needs a prompt.
    excluded_checks=[positive_data_acceptance],
  )
