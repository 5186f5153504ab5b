"""Requests made from the service's own description, right and wrong ones."""

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import positive_data_acceptance

from grm_jax.serving import app
from tests.serving.fake import Paced, listening, service

_TOKEN = {'Authorization': 'Bearer secret'}
schema = schemathesis.openapi.from_dict(
  app.make(service(Paced(), token='secret')).openapi()
)


@pytest.fixture(scope='module')
def address():
  judge = Paced()
  judge.let(10**6)
  with listening(service(judge, token='secret')) as found:
    yield found


@schema.parametrize()
@settings(
  max_examples=40,
  deadline=None,
  derandomize=True,
  suppress_health_check=list(HealthCheck),
)
def test_answers_are_as_described_and_nothing_breaks(case, address):
  """No 5xx, no undescribed status, no answer of another form."""
  case.call_and_validate(
    base_url=address,
    headers=_TOKEN,
    # A schema cannot say that there must be one prompt for each text.
    excluded_checks=[positive_data_acceptance],
  )
