"""How good values are, on held-out examples, while a scalar model is trained.

Every text gets a probability of what its label says: a judgement that it is
right, an ordered pair of responses that the first is better. Judgements are
weighed as in training, so that to say always the same is 1/2 accurate. With a
meta RM it is measured, too, what votes gain by it.
"""

import collections
import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from absl import logging

from grm_jax.data import batch_iterator, global_arrays
from grm_jax.data.tokenized_example import BatchShape
from grm_jax.errors import UserError
from grm_jax.evaluation import (
  calibration,
  metrics,
  plots,
  scaling_curves,
  vote_subsets,
)
from grm_jax.io import atomic_io
from grm_jax.judgement import response_order
from grm_jax.judgement.judgement import JudgedExample, Judgement
from grm_jax.judgement.prompt_format import PromptFormat
from grm_jax.judgement.rejection_sampling import FilterSample
from grm_jax.model import logprobs
from grm_jax.model.transformer import Transformer
from grm_jax.stages.reward_model.data import LabelledRecord, RewardDataset

PLOT = 'calibration.png'

# What is said of each kind: the picture's title, its axis.
_WORDS = {
  'meta': (
    'Held-out judgements, right and wrong ones weighed alike',
    'share of judgements that are right',
  ),
  'bradley_terry': (
    'Held-out pairs of responses, in both orders',
    'share of pairs whose first is better',
  ),
}
_WORDS['pair'] = _WORDS['bradley_terry']


class RewardModelEvaluator:
  """Held-out rows, and the program that values them; call `measure`."""

  def __init__(
    self,
    kind: str,
    data: RewardDataset,
    rows: Sequence[LabelledRecord],
    model: Transformer,
    forms: PromptFormat,
    *,
    prompts: int,
    limits: BatchShape,
    seed: int,
  ):
    """Compiles nothing yet.

    Args:
      kind: one of meta_rm_records.KINDS.
      data: what the rows are made of.
      rows: by meta_rm_records.rows_of.
      model: with a scalar head.
      forms: see meta_rm_records.rows_of.
      prompts: P, prompts at once.
      limits: what all rows fit.
      seed: of the subsets of judgements that are voted on.

    Raises:
      UserError: the mesh cannot split P prompts.
    """
    ways = model.layout.split('prompts')
    if prompts < 1 or prompts % ways:
      raise UserError(
        f'config.evaluation.prompts is {prompts}; the mesh splits prompts '
        f'{ways} ways, of which it must be a multiple'
      )
    self._kind, self._rows, self._seed = kind, list(rows), seed
    self._model, self._prompts, self._limits = model, prompts, limits
    self._own = global_arrays.process_rows(model.layout, prompts)
    self._values = jax.jit(
      functools.partial(logprobs.values, model),
      out_shardings=model.layout.sharding(()),
    )
    self._examples, self._judged = data.examples, []
    if kind == 'meta':
      self._judged = _equally_many(_judged(data, forms))

  def measure(self, params: dict, workdir: str) -> dict[str, float]:
    """Figures of these parameters; writes WORKDIR/calibration.png.

    Returns:
      auc, accuracy (at probability 1/2), log_loss (nats), calibration_error
      (expected, see evaluation/calibration.py), count (of judgements or
      ordered pairs). For the kind meta also right (share of judgements) and,
      for each k of judgements that there are, the expected accuracy of
      voting_k, guided_k (by the better half of them) and best_of_k, over
      votes_examples examples of two responses or more. For bradley_terry also
      best_of_n: how often the best response has the highest value.
    """
    found = self.values(params)
    values, labels, weights = self._events(found)
    bins = calibration.bins(values, labels, weights)
    title, observed = _WORDS[self._kind]
    picture = plots.png(plots.calibration(bins, title, observed))
    atomic_io.write_whole(os.path.join(workdir, PLOT), picture)
    figures = {
      'auc': metrics.auc(values, [x > 0 for x in labels]),
      'accuracy': calibration.accuracy(values, labels, weights),
      'log_loss': calibration.log_loss(values, labels, weights),
      'calibration_error': calibration.expected_error(bins),
      'count': len(values),
    }
    if self._kind == 'meta':
      figures['right'] = sum(labels) / len(labels)
      return figures | self._votes(found)
    if self._kind == 'bradley_terry':
      figures['best_of_n'] = self._best_of_n(found)
    return figures

  def values(self, params: dict) -> list[tuple[float, ...]]:
    """The values of every row's texts."""
    numbers = {x.record.id: i for i, x in enumerate(self._rows)}
    found: list[tuple[float, ...]] = [()] * len(self._rows)
    for batch, meta in batch_iterator.once(
      [x.record for x in self._rows],
      prompts=self._prompts,
      limits=self._limits,
      rows_of_process=self._own,
    ):
      placed = global_arrays.place(batch, self._model.layout, self._prompts)
      values = np.asarray(self._values(params, placed).addressable_data(0))
      for own, name, chosen in zip(values, meta.ids, meta.chosen, strict=True):
        if name is not None:
          found[numbers[name]] = tuple(own[: len(chosen)].tolist())
    return found

  def _events(self, found):
    """(values, labels, weights) of all that has a probability."""
    events = []
    for row, values in zip(self._rows, found, strict=True):
      own = list(zip(values, row.labels, row.weights, strict=True))
      if self._kind == 'bradley_terry':
        (best,) = (value for value, label, _ in own if label)
        margins = [(best - x, weight) for x, label, weight in own if not label]
        own = [(x, 1, weight) for x, weight in margins]
        own += [(-x, 0, weight) for x, weight in margins]
      events += own
    return tuple(zip(*events, strict=True))

  def _by_example(self, found) -> dict[str, dict[int, float]]:
    """Example -> place -> value."""
    out = collections.defaultdict(dict)
    for row, values in zip(self._rows, found, strict=True):
      out[row.example] |= dict(zip(row.places, values, strict=True))
    return out

  def _best_of_n(self, found):
    """Expected accuracy of the highest value, over whole examples."""
    whole = [
      metrics.Result(example, tuple(own[i] for i in sorted(own)))
      for name, own in self._by_example(found).items()
      for example in [self._examples[name]]
      if len(own) == len(example.responses)
    ]
    return metrics.mean(map(metrics.correct, whole))

  def _votes(self, found) -> dict[str, float]:
    """What votes come to, by all judgements and by those that are liked."""
    values = self._by_example(found)
    rated = [
      _with_metas(one, values[one.example.id])
      for one in self._judged
      # A record of it may not have fitted.
      if values[one.example.id].keys() >= set(range(len(one.samples)))
    ]
    if not rated:
      return {}
    samples = vote_subsets.gather(rated)
    figures = {'votes_examples': len(rated)}
    for k in _powers(samples.num_samples):
      members, _ = vote_subsets.choose(
        samples.num_samples,
        k,
        self._seed,
        scaling_curves.MAX_SUBSETS,
        scaling_curves.NUM_SUBSETS,
      )
      for name, kept in (
        ('voting', None),
        ('guided', (k + 1) // 2),
        ('best_of', 1),
      ):
        right = vote_subsets.expected(samples, members, kept)
        figures[f'{name}_{k}'] = float(np.mean(right))
    return figures


def _with_metas(
  judged: JudgedExample, values: Mapping[int, float]
) -> JudgedExample:
  samples = [
    dataclasses.replace(sample, meta=values[place])
    for place, sample in enumerate(judged.samples)
  ]
  return dataclasses.replace(judged, samples=tuple(samples))


def _judged(data: RewardDataset, forms: PromptFormat) -> list[JudgedExample]:
  """Examples of two responses or more, with what was said about them."""
  return [
    JudgedExample(example, tuple(_judgement(x, forms) for x in own))
    for name, own in data.samples.items()
    for example in [data.examples[name]]
    if len(example.responses) > 1
  ]


def _judgement(sample: FilterSample, forms: PromptFormat) -> Judgement:
  """As a judge reads it: what was cut off may have scores, too."""
  shown = forms.read(sample.text, len(sample.order))
  scores = (
    None if shown is None else response_order.restore(shown, sample.order)
  )
  finish = 'length' if sample.truncated else 'stop'
  return Judgement(sample.order, sample.text, 0, finish, scores)


def _equally_many(judged: Sequence[JudgedExample]) -> list[JudgedExample]:
  """The first K judgements of each, K what most of the examples have.

  Those with fewer are left out; the log says how many.
  """
  if not judged:
    return []
  counts = collections.Counter(len(x.samples) for x in judged)
  k = max(counts, key=lambda count: (counts[count], count))
  kept = [
    dataclasses.replace(x, samples=x.samples[:k])
    for x in judged
    if len(x.samples) >= k
  ]
  if len(kept) < len(judged):
    logging.warning(
      'votes of held-out examples are of %d judgements; %d of %d examples '
      'have fewer and are left out',
      *(k, len(judged) - len(kept), len(judged)),
    )
  return kept


def _powers(most: int) -> list[int]:
  """1, 2, 4, ... below most, and most itself."""
  return [1 << i for i in range(most.bit_length()) if 1 << i < most] + [most]
