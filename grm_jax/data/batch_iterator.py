"""Batch iterators: endless and length-bucketed for training, or one pass.

Training takes a window of W batches from the mixture, sorts its items by their
padded lengths, cuts them into batches and shuffles the batches. The result
depends on lengths, names and the seed only. Every process computes the same
batches, whatever the number of processes, and builds its own rows of them.
"""

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from grm_jax.data import collate, mixture
from grm_jax.data.collate import BatchInfo, BatchItem
from grm_jax.data.tokenized_example import (
  BatchShape,
  TokenizedExample,
  fingerprint,
  misfit_reason,
)
from grm_jax.errors import UserError
from grm_jax.model.batch import Batch


@dataclasses.dataclass
class _Position:
  """The mutable part of the iterator's state.

  Attributes:
    window: index of the current window.
    batch: index of the next batch in the window.
    num_drawn: draws of each source before the current window.
    num_taken: examples of each source in all batches so far.
    num_tokens: BatchInfo.num_tokens, summed over all batches so far.
    num_positions: BatchInfo.num_positions, summed over all batches so far.
  """

  window: int
  batch: int
  num_drawn: dict[str, int]
  num_taken: dict[str, int]
  num_tokens: dict[str, int]
  num_positions: dict[str, int]


_STATE_KEYS = {'settings', *(x.name for x in dataclasses.fields(_Position))}


class BatchIterator:
  """Endless iterator over (this process's rows of a batch, BatchInfo).

  `state` and `restore` resume it bit-exactly, on any number of processes.

  Args:
    examples: all examples, the same on all processes. The draws of a source
      are indices into its examples in this order.
    rates: mixture rate of each source, see mixture.make_mixture.
    num_prompts: P of the global batch.
    batch_shape: every example must fit it, see
      tokenized_example.partition_by_fit.
    seed: seed of all shuffles.
    window: W, number of batches that are sorted together. More batches mean
      less padding. W * P should not exceed an epoch by much, or an example
      occurs twice in a window.
    local_indices: ints, ascending: prompts of the global batch to build here,
      see global_arrays.local_prompt_indices; None for all P.

  Raises:
    UserError: `rates` is invalid or P is below 1.
    ValueError: an example does not fit, or `window` or `local_indices` is out
      of range.
  """

  def __init__(
    self,
    examples: Sequence[TokenizedExample],
    rates: Mapping[str, float],
    *,
    num_prompts: int,
    batch_shape: BatchShape,
    seed: int,
    window: int = 16,
    local_indices: np.ndarray | None = None,
  ):
    if window < 1:
      raise ValueError(f'window is {window}; it must be 1 or more')
    self._local_indices = _check_local_indices(num_prompts, local_indices)
    _check_fit(examples, batch_shape)
    by_source: dict[str, list[TokenizedExample]] = {}
    for example in examples:
      by_source.setdefault(example.source, []).append(example)
    sizes = {source: len(members) for source, members in by_source.items()}
    self._mixture = mixture.make_mixture(sizes, rates, seed)
    self._examples = {
      source: by_source[source] for source in self._mixture.sizes
    }
    self._num_prompts, self._shape = num_prompts, batch_shape
    self._seed, self._window = int(seed), window
    self._settings = self._describe_settings()
    self._position = _Position(
      window=0,
      batch=0,
      num_drawn=dict.fromkeys(self._mixture.sizes, 0),
      num_taken=dict.fromkeys(self._mixture.sizes, 0),
      num_tokens={'prompts': 0, 'generations': 0},
      num_positions={'prompts': 0, 'generations': 0},
    )
    # The batches of the current window and num_drawn after it; None until the
    # window is needed.
    self._plan: tuple[list[list[BatchItem]], dict[str, int]] | None = None

  def _describe_settings(self) -> dict[str, Any]:
    """Returns all that the sequence of batches depends on, as JSON values.

    The keys are the names that error messages of `restore` use.
    """
    return {
      'config.batch.micro_batch_prompts': self._num_prompts,
      'bucketing window': self._window,
      'config.batch.prompt_buckets': list(self._shape.prompt_buckets),
      'config.batch.generation_buckets': list(self._shape.generation_buckets),
      'config.batch.generations_per_prompt': self._shape.generations_per_prompt,
      'seed': self._seed,
      'mixture weights': dict(self._mixture.weights),
      'examples': {
        source: f'{len(members)} with fingerprint {fingerprint(members)}'
        for source, members in self._examples.items()
      },
    }

  def __iter__(self) -> 'BatchIterator':
    return self

  def __next__(self) -> tuple[Batch, BatchInfo]:
    if self._plan is None:
      self._plan = self._plan_window()
    batches, num_drawn = self._plan
    items = batches[self._position.batch]
    info = collate.batch_info(items, self._shape)
    batch = collate.build_batch(items, self._shape, self._local_indices)
    self._advance(items, info, num_drawn)
    return batch, info

  def _advance(
    self,
    items: Sequence[BatchItem],
    info: BatchInfo,
    num_drawn: dict[str, int],
  ) -> None:
    position = self._position
    for item in items:
      assert item.example is not None  # only evaluation_batches pads prompts
      position.num_taken[item.example.source] += 1
    for name in position.num_tokens:
      position.num_tokens[name] += info.num_tokens[name]
      position.num_positions[name] += info.num_positions[name]
    position.batch += 1
    if position.batch == self._window:
      position.window += 1
      position.batch = 0
      position.num_drawn = num_drawn
      self._plan = None

  def _plan_window(self) -> tuple[list[list[BatchItem]], dict[str, int]]:
    """Returns the W batches of the window, and num_drawn after it."""
    draws, num_drawn = self._mixture.draw(
      self._position.num_drawn, self._num_prompts * self._window
    )
    items = [
      collate.make_item(
        self._examples[x.source][x.index], self._shape, self._seed, x.epoch
      )
      for x in draws
    ]
    # The sort is stable and its key is the padded length. Sorting by the exact
    # length would not save padding, would make batches more alike, and would
    # put two draws of one example (of different epochs) side by side.
    items.sort(key=self._bucket_order)
    key = (self._seed, 'window', self._position.window)
    starts = mixture.permutation(self._window, *key) * self._num_prompts
    return [items[i : i + self._num_prompts] for i in starts], num_drawn

  def _bucket_order(self, item: BatchItem) -> tuple[int, int]:
    """Sort key: S, then T, alternately ascending and descending.

    A batch that crosses the border between two values of S thus has
    generations of similar T on both sides of it.
    """
    s, t = collate.padded_shape([item], self._shape)
    return s, -t if self._shape.prompt_buckets.index(s) % 2 else t

  def state(self) -> dict[str, Any]:
    """Returns the position as JSON values; the same on all processes."""
    return {
      'settings': copy.deepcopy(self._settings),
      **dataclasses.asdict(self._position),  # copies its dicts
    }

  def restore(self, state: Mapping[str, Any]) -> None:
    """Moves to the position of an iterator over the same data; see `state`.

    The number of processes may differ.

    Raises:
      UserError: `state` was saved with other examples, rates, seed or
        settings, or is not a state of this class.
    """
    if set(state) != _STATE_KEYS:
      raise UserError(
        f'the saved data position has the keys {sorted(state)}, expected '
        f'{sorted(_STATE_KEYS)}; it was written by another version or stage: '
        'start a new run'
      )
    for name, current in self._settings.items():
      saved = state['settings'].get(name)
      if saved != current:
        raise UserError(
          f'the saved run has batches with {name} = {saved}, this run has '
          f'{current}; resume with the saved value, or start a new run'
        )
    position = {k: v for k, v in state.items() if k != 'settings'}
    self._position = _Position(**copy.deepcopy(position))
    self._plan = None

  def padding_fraction(
    self, state: Mapping[str, Any] | None = None
  ) -> dict[str, float]:
    """Returns the fraction of padding in all batches so far.

    Args:
      state: a state of this iterator; None for the current one.

    Returns:
      {'prompts': ..., 'generations': ...}; 0 where there are no positions.
    """
    state = self.state() if state is None else state
    return {
      name: 1 - state['num_tokens'][name] / total if total else 0.0
      for name, total in state['num_positions'].items()
    }

  def epochs(self, state: Mapping[str, Any] | None = None) -> dict[str, float]:
    """Returns the epochs of each source in all batches so far, fractional."""
    state = self.state() if state is None else state
    return self._mixture.epochs(state['num_taken'])


def evaluation_batches(
  examples: Sequence[TokenizedExample],
  *,
  num_prompts: int,
  batch_shape: BatchShape,
  local_indices: np.ndarray | None = None,
) -> Iterator[tuple[Batch, BatchInfo]]:
  """Iterates over every example once and in order.

  Padding prompts of one token, without generations, fill the last batch.

  Args:
    examples: all examples, the same on all processes.
    num_prompts: P of the global batch.
    batch_shape: see BatchIterator.
    local_indices: see BatchIterator.

  Returns:
    An iterator over (this process's rows of a batch, BatchInfo).

  Raises:
    UserError: P is below 1.
    ValueError: an example does not fit, or `local_indices` is out of range.
  """
  local_indices = _check_local_indices(num_prompts, local_indices)
  _check_fit(examples, batch_shape)
  items = [collate.make_item(x, batch_shape, seed=0, epoch=0) for x in examples]
  items += [BatchItem(None, 0, ())] * (-len(items) % num_prompts)
  batches = (
    items[i : i + num_prompts] for i in range(0, len(items), num_prompts)
  )
  return (
    (
      collate.build_batch(batch, batch_shape, local_indices),
      collate.batch_info(batch, batch_shape),
    )
    for batch in batches
  )


def _check_local_indices(
  num_prompts: int, local_indices: np.ndarray | None
) -> np.ndarray:
  if num_prompts < 1:
    raise UserError(
      f'config.batch.micro_batch_prompts is {num_prompts}; set it to 1 or more'
    )
  if local_indices is None:
    return np.arange(num_prompts)
  indices = np.asarray(local_indices)
  out_of_range = (indices < 0) | (indices >= num_prompts)
  if out_of_range.any() or (np.diff(indices) < 1).any():
    raise ValueError(
      f'local_indices is {indices.tolist()}; it must ascend and stay within '
      f'the {num_prompts} prompts of config.batch.micro_batch_prompts'
    )
  return indices


def _check_fit(examples: Sequence[TokenizedExample], shape: BatchShape) -> None:
  for example in examples:
    reason = misfit_reason(example, shape)
    if reason is not None:
      raise ValueError(
        f'example {example.id!r} of source {example.source!r} does not fit a '
        f'batch: {reason}; drop it with tokenized_example.partition_by_fit'
      )
