"""The mask of a row, and the tiles in which it has a visible key."""

import jax.numpy as jnp
import numpy as np
import pytest

from grm_jax.model import row_mask, splash
from grm_jax.model.row_mask import RowMask


def visible(mask, size):
  """Returns bool [X, X] from the definition, one pair at a time."""
  s, t = mask.prompt_size, mask.generation_size

  def place(x):
    """Returns (generation or -1 for the prompt, position)."""
    return (-1, x) if x < s else ((x - s) // t, s + (x - s) % t)

  out = np.zeros((size, size), bool)
  for query, key in np.ndindex(out.shape):
    (q_generation, q), (k_generation, k) = place(query), place(key)
    out[query, key] = (
      k_generation in (-1, q_generation)
      and k <= q
      and (mask.window is None or q - k < mask.window)
    )
  return out


# Windows inside of the prompt and of a generation, across their border, of one
# token, and longer than both.
@pytest.mark.parametrize('window', [None, 1, 3, 5, 8, 100])
@pytest.mark.parametrize('sizes', [(6, 4, 3), (1, 5, 2), (7, 1, 4), (9, 0, 0)])
def test_mask(sizes, window):
  s, t, r = sizes
  mask, size = RowMask(s, t, window), s + r * t
  index = np.arange(size)
  expected = visible(mask, size)
  np.testing.assert_array_equal(mask(index[:, None], index[None]), expected)
  index = jnp.arange(size)
  np.testing.assert_array_equal(mask(index[:, None], index[None]), expected)


def test_no_token_sees_the_padding_after_the_row():
  mask = RowMask(6, 4)
  query, key = np.arange(14)[:, None], np.arange(14, 20)[None]
  assert not mask(query, key).any()


@pytest.mark.parametrize('window', [None, 200, 300])
def test_tiles(window):
  mask = RowMask(256, 128, window)
  size = 256 + 3 * 128
  tiles = visible(mask, size).reshape(5, 128, 5, 128).any(axis=(1, 3))
  np.testing.assert_array_equal(row_mask.visible_tiles(mask, size, 128), tiles)
  assert splash.num_tiles(mask, size, 128) == tiles.sum()


@pytest.mark.parametrize(
  ('mask', 'num_generations', 'block', 'expected'),
  [
    # The prompt's 4 x 4 tiles below the diagonal: 10. A generation: 2 rows, 4
    # tiles of the prompt in each, and its own 3.
    (RowMask(2048, 1024), 4, 512, 10 + 4 * (2 * 4 + 3)),
    (RowMask(2048, 1024), 1, 512, 10 + 2 * 4 + 3),
    # A window of a tile: the diagonal and the tile before it.
    (RowMask(2048, 1024, 512), 0, 512, 4 + 3),
    # The first row of a generation sees the end of the prompt, the second row
    # sees the first one.
    (RowMask(2048, 1024, 512), 4, 512, 7 + 4 * (2 + 2)),
    # One token more is visible: two tiles before the diagonal.
    (RowMask(2048, 1024, 514), 0, 512, 4 + 3 + 2),
    (RowMask(2048, 1024, 513), 0, 512, 4 + 3),
    # 2048 + 100 tokens are padded to 2560: one more row of tiles.
    (RowMask(2048, 100), 1, 512, 10 + 5),
  ],
)
def test_num_tiles(mask, num_generations, block, expected):
  size = mask.prompt_size + num_generations * mask.generation_size
  assert splash.num_tiles(mask, size, block) == expected


@pytest.mark.parametrize(
  ('mask', 'size', 'largest', 'expected'),
  [
    (RowMask(2048, 1024), 6144, 512, 512),
    # Tiles of 384 need no padding; those of 512 would compute a third more.
    (RowMask(1024, 128), 1152, 512, 384),
    (RowMask(64, 16), 80, 512, 128),
    (RowMask(2048, 1024), 6144, 128, 128),
  ],
)
def test_tile_size(mask, size, largest, expected):
  assert splash.tile_size(mask, size, largest) == expected
