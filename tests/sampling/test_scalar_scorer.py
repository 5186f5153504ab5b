"""Values do not depend on what is computed beside them, and dummies are few."""

import jax
import numpy as np
import pytest

from grm_jax.sampling.scalar_scorer import ScalarScorer
from grm_jax.sharding import mesh, rules
from tests.model import tiny

# Prompts of 3 to 10 tokens, each with 1 to 3 texts.
ITEMS = [
  (tuple(range(5, 8 + i)), [[20 + i + j] * (j + 2) for j in range(1 + i % 3)])
  for i in range(8)
]
MODEL = tiny.gemma(scalar=True, num_layers=2)
PARAMS = tiny.params(MODEL)
SHAPES = dict(prompt_buckets=(16,), max_new_tokens=8)


@pytest.mark.parametrize('count', [1, 2, 3, 5, 8])
def test_alone_or_together(count):
  alone = ScalarScorer(MODEL, PARAMS, prompts=1, **SHAPES)
  together = ScalarScorer(MODEL, PARAMS, prompts=6, **SHAPES)
  expected = [alone.score([item])[0] for item in ITEMS[:count]]
  found = together.score(ITEMS[:count])
  for ours, theirs in zip(found, expected, strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
  assert len({round(float(x), 4) for own in found for x in own}) == sum(
    len(texts) for _, texts in ITEMS[:count]
  )


@pytest.mark.parametrize(
  'ways, count, places', [(1, 1, 1), (1, 3, 4), (1, 6, 6), (2, 1, 2), (2, 5, 6)]
)
def test_places_of_a_batch(ways, count, places):
  """The next power of two for each part of the mesh, and at most P."""
  devices = mesh.make_mesh(data=ways, devices=jax.devices()[:ways])
  model = tiny.gemma(
    rules.make_layout(devices, rules.RULES), scalar=True, num_layers=2
  )
  values = ScalarScorer(model, tiny.params(model), prompts=6, **SHAPES)
  batch = values._pad(ITEMS[:count])
  assert batch.prompts.shape == (places, 16)
