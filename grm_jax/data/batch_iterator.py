"""Batches of records: endless and bucketed for training, once for evaluation.

Training draws a window of W batches from the mixture, sorts it by what its
records would be padded to, cuts it into batches and shuffles these. All that
depends on lengths, names and the seed: every process finds the same batches,
however many processes there are, and builds its own rows of them.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from grm_jax.data import collate, mixture
from grm_jax.data.collate import BatchInfo, BatchItem
from grm_jax.data.tokenized_example import (
  BatchShape,
  TokenizedExample,
  fingerprint,
  fits,
)
from grm_jax.errors import UserError
from grm_jax.model.batch import Batch

_POSITION = ('window', 'batch', 'drawn', 'taken', 'tokens', 'places')


class BatchIterator:
  """An endless iterator over (this process's rows of a batch, Meta).

  Attributes:
    mixture: which records are drawn.
    prompts: P, of the global batch.
  """

  def __init__(
    self,
    records: Sequence[TokenizedExample],
    rates: Mapping[str, float],
    *,
    prompts: int,
    limits: BatchShape,
    seed: int,
    window: int = 16,
    rows_of_process: np.ndarray | None = None,
  ):
    """Begins with the first batch.

    Args:
      records: all records, the same on all processes; those of one source are
        numbered in this order.
      rates: how often each source is drawn, see mixture.mix.
      prompts: P.
      limits: what every record fits, see records.usable.
      seed: of all shuffles.
      window: W, batches that are sorted together; more waste less, but W * P
        should not be much above an epoch, or records meet themselves.
      rows_of_process: ints, ascending: the prompts of the global batch that
        are built here, see placing.process_rows; None for all P.

    Raises:
      UserError: rates that mixture.mix refuses; a P or W out of range.
      ValueError: a record that does not fit; a row out of range.
    """
    if window < 1:
      raise UserError(f'config.batch.window is {window}; it must be 1 or more')
    self._rows = _rows(prompts, rows_of_process)
    _check_fit(records, limits)
    by_source: dict[str, list[TokenizedExample]] = {}
    for record in records:
      by_source.setdefault(record.source, []).append(record)
    sizes = {source: len(own) for source, own in by_source.items()}
    self.mixture = mixture.mix(sizes, rates, seed)
    self.prompts = prompts
    self._records = {source: by_source[source] for source in self.mixture.sizes}
    self._limits, self._seed, self._window = limits, int(seed), window
    self._settings = self._describe_settings()
    self._position = {
      'window': 0,
      'batch': 0,
      'drawn': dict.fromkeys(self.mixture.sizes, 0),
      'taken': dict.fromkeys(self.mixture.sizes, 0),
      'tokens': {'prompts': 0, 'generations': 0},
      'places': {'prompts': 0, 'generations': 0},
    }
    self._plan: tuple[list[list[BatchItem]], dict[str, int]] | None = None

  def _describe_settings(self):
    """What the order of the batches depends on, as JSON has it."""
    return {
      'config.batch.micro_batch_prompts': self.prompts,
      'config.batch.window': self._window,
      'config.batch.prompt_buckets': list(self._limits.buckets),
      'config.batch.generation_buckets': list(self._limits.sizes),
      'config.batch.generations_per_prompt': self._limits.rows,
      'seed': self._seed,
      'parts of each source': dict(self.mixture.weights),
      'records': {
        source: f'{len(own)} with fingerprint {fingerprint(own)}'
        for source, own in self._records.items()
      },
    }

  def __iter__(self) -> 'BatchIterator':
    return self

  def __next__(self) -> tuple[Batch, BatchInfo]:
    at = self._position
    if self._plan is None:
      self._plan = self._plan_window()
    groups, drawn_after = self._plan
    items = groups[at['batch']]
    meta = collate.describe(items, self._limits)
    batch = collate.pad(items, self._limits, self._rows)
    for source in meta.sources:
      at['taken'][source] += 1
    for name in at['tokens']:
      at['tokens'][name] += meta.tokens[name]
      at['places'][name] += meta.places[name]
    at['batch'] += 1
    if at['batch'] == self._window:
      at |= {'window': at['window'] + 1, 'batch': 0, 'drawn': drawn_after}
      self._plan = None
    return batch, meta

  def _plan_window(self):
    """(items of each of the W batches, draws of each source after them)."""
    draws, drawn = self.mixture.draw(
      self._position['drawn'], self.prompts * self._window
    )
    items = [
      collate.item(
        self._records[d.source][d.index], self._limits, self._seed, d.epoch
      )
      for d in draws
    ]
    # Records that are padded alike stay in the order they were drawn: sorting
    # them by length would save nothing, make batches more alike, and put side
    # by side what a window over several epochs draws twice.
    items.sort(key=self._padded)
    names = (self._seed, 'window', self._position['window'])
    order = mixture.permutation(self._window, *names) * self.prompts
    return [items[first : first + self.prompts] for first in order], drawn

  def _padded(self, item):
    """Sorts by S, then by T, up and down by turns.

    So a batch across the border between two S has generations of one T.
    """
    s, t = collate.padded_shape([item], self._limits)
    return s, -t if self._limits.buckets.index(s) % 2 else t

  def state(self) -> dict[str, Any]:
    """Where the iterator is, as JSON; the same on all processes."""
    return copy.deepcopy({'settings': self._settings, **self._position})

  def restore(self, state: Mapping[str, Any]) -> None:
    """Goes to where an iterator over the same data was; see `state`.

    The number of processes may be another one.

    Raises:
      UserError: other records, rates, seed or settings than those of the
        state, with both sides; or no state of this class.
    """
    if set(state) != {'settings', *_POSITION}:
      raise UserError(
        f'the saved state of the batches has {sorted(state)}; expected '
        f'{sorted(("settings", *_POSITION))}: it is of another version'
      )
    for name, ours in self._settings.items():
      theirs = state['settings'].get(name)
      if theirs != ours:
        raise UserError(
          f'the saved run has batches with {name} = {theirs}, this one has '
          f'{ours}; go on with what was saved, or begin a new run'
        )
    self._position = copy.deepcopy({name: state[name] for name in _POSITION})
    self._plan = None

  def waste(self, state: Mapping[str, Any] | None = None) -> dict[str, float]:
    """The share of padding in all places of all batches so far.

    Args:
      state: as of then; None for now.

    Returns:
      {'prompts': ..., 'generations': ...}, 0 where there are no places.
    """
    at = state or self._position
    return {
      name: 1 - at['tokens'][name] / places if places else 0.0
      for name, places in at['places'].items()
    }

  def passes(self, state: Mapping[str, Any] | None = None) -> dict[str, float]:
    """Epochs of each source in all batches so far, parts included."""
    return self.mixture.passes((state or self._position)['taken'])


def once(
  records: Sequence[TokenizedExample],
  *,
  prompts: int,
  limits: BatchShape,
  rows_of_process: np.ndarray | None = None,
) -> Iterator[tuple[Batch, BatchInfo]]:
  """Every record once and in order, for evaluation.

  Dummies fill the last batch: a prompt of one token, generations of none.

  Args:
    records: all records, the same on all processes.
    prompts, limits, rows_of_process: see Batches.

  Returns:
    An iterator over (this process's rows of a batch, Meta).

  Raises:
    UserError: see Batches.
  """
  rows = _rows(prompts, rows_of_process)
  _check_fit(records, limits)
  items = [collate.item(record, limits, seed=0, epoch=0) for record in records]
  items += [BatchItem(None, 0, ())] * (-len(items) % prompts)
  groups = (items[i : i + prompts] for i in range(0, len(items), prompts))
  return (
    (collate.pad(group, limits, rows), collate.describe(group, limits))
    for group in groups
  )


def _rows(prompts, rows_of_process):
  if prompts < 1:
    raise UserError(
      f'config.batch.micro_batch_prompts is {prompts}; it must be 1 or more'
    )
  if rows_of_process is None:
    return np.arange(prompts)
  rows = np.asarray(rows_of_process)
  outside = (rows < 0) | (rows >= prompts)
  if outside.any() or (np.diff(rows) < 1).any():
    raise ValueError(
      f'rows_of_process is {rows.tolist()}; it must ascend and be of the '
      f'{prompts} prompts of a batch (config.batch.micro_batch_prompts)'
    )
  return rows


def _check_fit(records, limits):
  for record in records:
    reason = fits(record, limits)
    if reason is not None:
      raise ValueError(
        f'record {record.id!r} of source {record.source!r} does not fit a '
        f'batch: {reason}; leave it out, see records.usable'
      )
