"""Records made up for the tests of batches."""

import jax
import numpy as np

from grm_jax.data.tokenized_example import TokenizedExample


def record(name, prompt, generations, source='s'):
  """Tokens that tell where they are from: name * 1000, then + 100 * row."""

  def tokens(length, first):
    return np.arange(first, first + length, dtype=np.int32)

  base = int(name) * 1000
  rows = [
    tokens(n, base + 100 * row) for row, n in enumerate(generations, start=1)
  ]
  return TokenizedExample(name, tokens(prompt, base), tuple(rows), source)


def ragged(count, seed, rows=2, median=40, longest=128, source='s'):
  """Log-normal lengths, as those of real prompts are."""
  rng = np.random.default_rng(seed)

  def lengths(n, middle, most):
    drawn = np.exp(rng.normal(np.log(middle), 0.7, n)).astype(int)
    return np.clip(drawn, 1, most)

  prompts = lengths(count, median, longest)
  generations = lengths((count, rows), median / 2, longest // 2)
  return [
    record(str(i), int(p), g.tolist(), source)
    for i, (p, g) in enumerate(zip(prompts, generations, strict=True))
  ]


def same(one, two):
  """Whether two (Batch, Meta) are equal in every bit."""
  (batch, meta), (other, other_meta) = one, two
  assert meta == other_meta
  leaves, others = jax.tree.leaves(batch), jax.tree.leaves(other)
  for x, y in zip(leaves, others, strict=True):
    assert x.dtype == y.dtype == np.int32
    np.testing.assert_array_equal(x, y, strict=True)
