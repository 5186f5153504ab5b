"""The adapter of PandaLM's human test set."""

import pytest

from grm_jax.data.dataset_files import SkippedRow
from grm_jax.data.datasets import pandalm
from grm_jax.evaluation.suites import pandalm as suite
from tests.data.datasets import rows
from tests.evaluation.suites.published import write
from tests.messages import names


def test_examples_are_those_of_the_evaluation_suite(tmp_path):
  table = [
    rows.pandalm(0, (2, 2, 1)),
    rows.pandalm(157, (1, 1, 0), response1=True),
    rows.pandalm(3, (1, 1, 1), input='', response2=''),
  ]
  examples = [rows.adapt_to_one(pandalm.adapt, row) for row in table]
  assert examples == suite.load(write(tmp_path / 'testset-v1.json', table))
  assert [e.responses[e.best] for e in examples] == ['two', 'True', 'one']
  assert [e.id for e in examples] == ['pandalm/0', 'pandalm/157', 'pandalm/3']
  assert examples[0].query[0].text == 'say\n\nthis'
  assert examples[2].query[0].text == 'say'


@pytest.mark.parametrize('labels', [(0, 0, 1), (1, 2, 0)])
def test_rows_without_a_majority(labels):
  assert isinstance(
    rows.adapt_to_one(pandalm.adapt, rows.pandalm(0, labels)), SkippedRow
  )


def test_bad_rows():
  message = rows.error_of(pandalm.adapt, rows.pandalm(0, (1, 1, 3)))
  assert names(message, 3)
  message = rows.error_of(
    pandalm.adapt, rows.pandalm(0, (1, 1, 1), response2=None)
  )
  assert names(message, 'response2', None)
