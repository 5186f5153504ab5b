"""Mask of a row: the one definition of who attends to whom.

A row is a prompt and its R generations, X = S + R * T tokens:

  | padding, prompt: S tokens | generation 0: T | generation 1: T | ...

The prompt is right-aligned in its S places. Prompt and generation are then
adjacent, whatever the length of the prompt, so that the distance of two tokens,
and with it the window of local layers, depends on their indices alone. A row
with a prompt alone may be aligned either way.
"""

import dataclasses
import functools
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class RowMask:
  """A static mask over the indices of a row.

  A prompt token attends to the prompt up to itself; a generation token to the
  whole prompt and to its own generation up to itself. Padding and packed texts
  are not part of it: they are segments, see attention.py.

  Attributes:
    prompt_size: S.
    generation_size: T; 0 for a prompt alone.
    window: W on local layers, the number of visible tokens including the token
      itself; None on global ones.
  """

  prompt_size: int
  generation_size: int = 0
  window: int | None = None

  def __call__(self, query: Any, key: Any) -> Any:
    """Returns whether the token at index `query` attends to the one at `key`.

    Args:
      query: integers, an array of NumPy or JAX; hence only operators below.
      key: as `query`; the two broadcast.
    """
    in_prompt = key < self.prompt_size
    # Tokens between the end of the prompt and the query's generation.
    skipped = 0
    if self.generation_size:
      index = (query - self.prompt_size) * (query >= self.prompt_size)
      skipped = index // self.generation_size * self.generation_size
    is_sibling = ~in_prompt & (key < skipped + self.prompt_size)
    # As seen from the prompt, the generation follows it directly.
    near = causal_window_mask(query - skipped * in_prompt, key, self.window)
    return near & ~is_sibling


def causal_window_mask(query: Any, key: Any, window: int | None) -> Any:
  """Returns a bool mask: keys not after the query and inside its window.

  Args:
    query: integers, an array of NumPy or JAX. Positions or indices, as long as
      keys count from the same point.
    key: as `query`; the two broadcast.
    window: W, the number of visible keys including the query's own; or None.
  """
  mask = key <= query
  if window is not None:
    mask &= query - key < window
  return mask


@functools.lru_cache(maxsize=256)
def visible_tiles(mask: RowMask, size: int, block: int) -> np.ndarray:
  """Returns which tiles of the mask have a visible key.

  Args:
    mask: of the row.
    size: X; indices from the true X to a multiple of `block` are padding.
    block: the side of a tile; it divides `size`.

  Returns:
    bool [X / block, X / block], queries by keys.
  """
  keys = np.arange(size)[None]
  count = size // block
  tiles = np.zeros((count, count), bool)
  for i in range(count):
    queries = np.arange(i * block, (i + 1) * block)[:, None]
    visible = mask(queries, keys).any(axis=0)
    tiles[i] = visible.reshape(count, block).any(axis=1)
  return tiles
