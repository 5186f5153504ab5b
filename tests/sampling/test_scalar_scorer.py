"""Scores do not depend on the batch, and batches have few dummies."""

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
def test_scores_do_not_depend_on_the_batch(count):
  alone = ScalarScorer(MODEL, PARAMS, prompts=1, **SHAPES)
  together = ScalarScorer(MODEL, PARAMS, prompts=6, **SHAPES)
  expected = [alone.score([item])[0] for item in ITEMS[:count]]
  scores = together.score(ITEMS[:count])
  for row, expected_row in zip(scores, expected, strict=True):
    np.testing.assert_allclose(row, expected_row, atol=1e-5)
  assert len({round(float(x), 4) for row in scores for x in row}) == sum(
    len(texts) for _, texts in ITEMS[:count]
  )


@pytest.mark.parametrize(
  'num_shards, count, num_prompts',
  [(1, 1, 1), (1, 3, 4), (1, 6, 6), (2, 1, 2), (2, 5, 6)],
)
def test_batch_size(num_shards, count, num_prompts):
  """The next power of two for each shard of the mesh, and at most P."""
  devices = mesh.make_mesh(data=num_shards, devices=jax.devices()[:num_shards])
  model = tiny.gemma(
    rules.make_layout(devices, rules.RULES), scalar=True, num_layers=2
  )
  scorer = ScalarScorer(model, tiny.params(model), prompts=6, **SHAPES)
  batch = scorer._pad(ITEMS[:count])
  assert batch.prompts.shape == (num_prompts, 16)


def test_many_texts_are_scored_in_batches_of_bounded_size(monkeypatch):
  scorer = ScalarScorer(MODEL, PARAMS, prompts=2, **SHAPES)
  sizes = []
  pad = scorer._pad

  def recording_pad(items):
    batch = pad(items)
    sizes.append(batch.generations.shape[1])
    return batch

  monkeypatch.setattr(scorer, '_pad', recording_pad)
  texts = [[20 + i % 40, 30 + i // 40] for i in range(100)]
  items = [((5, 6, 7), texts), ((5, 6), texts[:1]), ((8, 9), texts[:33])]
  scores = scorer.score(items)
  assert [len(x) for x in scores] == [100, 1, 33]
  assert max(sizes) == 32
  monkeypatch.undo()
  alone = [scorer.score([((5, 6, 7), [text])])[0][0] for text in texts]
  np.testing.assert_allclose(scores[0], alone, atol=1e-5)
  assert scorer.score([]) == []
