"""Tokenized examples with known tokens and lengths, for tests of batches."""

import jax
import numpy as np

from grm_jax.data.tokenized_example import TokenizedExample


def tokenized(name, prompt, generations, source='s'):
  """Returns an example whose tokens identify it.

  Args:
    name: digits; the prompt's tokens count up from 1000 * name, those of
      generation r (from 1) from 1000 * name + 100 * r.
    prompt: length of the prompt.
    generations: length of each generation.
    source: name of the source.
  """

  def tokens(length, first):
    return np.arange(first, first + length, dtype=np.int32)

  base = int(name) * 1000
  rows = [
    tokens(n, base + 100 * row) for row, n in enumerate(generations, start=1)
  ]
  return TokenizedExample(name, tokens(prompt, base), tuple(rows), source)


def ragged(count, seed, rows=2, median=40, longest=128, source='s'):
  """Returns examples with log-normal lengths, like those of real prompts."""
  rng = np.random.default_rng(seed)

  def lengths(n, middle, most):
    sampled = np.exp(rng.normal(np.log(middle), 0.7, n)).astype(int)
    return np.clip(sampled, 1, most)

  prompts = lengths(count, median, longest)
  generations = lengths((count, rows), median / 2, longest // 2)
  return [
    tokenized(str(i), int(p), g.tolist(), source)
    for i, (p, g) in enumerate(zip(prompts, generations, strict=True))
  ]


def assert_identical(first, second):
  """Asserts that two (Batch, BatchInfo) are bit-identical."""
  (batch, info), (other_batch, other_info) = first, second
  assert info == other_info
  leaves, other_leaves = jax.tree.leaves(batch), jax.tree.leaves(other_batch)
  for x, y in zip(leaves, other_leaves, strict=True):
    assert x.dtype == y.dtype == np.int32
    np.testing.assert_array_equal(x, y, strict=True)
