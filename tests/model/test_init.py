"""The overview of the parameters that a run logs at its start."""

import jax
import numpy as np
import pytest

from grm_jax.model.init import abstract_params, parameter_overview
from grm_jax.model.quantization import quantize
from grm_jax.sharding import mesh, rules
from tests.model import tiny


@pytest.fixture(scope='module')
def model():
  layout = rules.make_layout(mesh.make_mesh(2, 2, 2), rules.RULES)
  return tiny.gemma(layout)


def cells(overview):
  """Returns {name: the other cells of its line}."""
  lines = [line.split('  ') for line in overview.splitlines()]
  lines = [[cell.strip() for cell in line if cell.strip()] for line in lines]
  return {name: rest for name, *rest in lines}


def test_overview_of_abstract_parameters(model):
  rows = cells(parameter_overview(abstract_params(model)))
  # 2 * 32 * 4 * 8 float32 numbers, split in 4.
  assert rows['pairs/local/attention/query'] == [
    *('(2, 32, 4, 8)', 'float32', '(-, fsdp, tensor, -)', '8 KiB', '2 KiB')
  ]
  assert rows['embedder/table'] == [
    *('(256, 32)', 'float32', '(tensor+fsdp, -)', '32 KiB', '8 KiB')
  ]
  assert rows['final_norm/scale'] == [
    *('(32,)', 'float32', '(-)', '128 B', '128 B')
  ]


def test_overview_has_one_line_per_array_and_totals(model):
  params = abstract_params(model)
  leaves = jax.tree.leaves(params)
  overview = parameter_overview(params)
  assert len(overview.splitlines()) == len(leaves) + 2
  count = sum(leaf.size for leaf in leaves)
  assert cells(overview)['total'][:2] == [
    f'{count:,}',
    f'{4 * count / 1024:.4g} KiB',
  ]


def test_overview_of_arrays_equals_that_of_their_shapes(model):
  params = tiny.params(model)
  assert parameter_overview(params) == parameter_overview(
    abstract_params(model)
  )


def test_overview_without_shardings():
  rows = cells(parameter_overview({'table': np.zeros((4, 2), np.int8)}))
  assert rows['table'] == ['(4, 2)', 'int8', '(-, -)', '8 B', '8 B']


def test_overview_of_int8_weights():
  params = quantize({'table': np.ones((4, 2), np.float32)})
  rows = cells(parameter_overview(params))
  assert rows['table/values'][:2] == ['(4, 2)', 'int8']
  assert rows['table/scale'][:2] == ['(4,)', 'float32']
