"""Evaluates the values of a model with a scalar head on held-out examples.

A value is a logit: a judgement is right (kind meta), or the first response of
an ordered pair is better (the other kinds). Right and wrong judgements have
the same total weight, as in training, so that a constant value is 1/2 accurate.
For a meta RM the evaluation also measures what it adds to voting.
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
from grm_jax.judgement.judgement import JudgedExample
from grm_jax.judgement.prompt_format import PromptFormat
from grm_jax.model import logprobs
from grm_jax.model.transformer import Transformer
from grm_jax.stages.reward_model.data import LabelledRecord, RewardDataset

PLOT = 'calibration.png'

# kind -> title and axis label of the calibration plot.
_PLOT_TEXTS = {
  'meta': (
    'Held-out judgements, right and wrong ones weighted equally',
    'fraction of right judgements',
  ),
  'bradley_terry': (
    'Held-out pairs of responses, in both orders',
    'fraction of pairs whose first response is better',
  ),
}
_PLOT_TEXTS['pair'] = _PLOT_TEXTS['bradley_terry']
_PLOT_TEXTS['critique'] = _PLOT_TEXTS['bradley_terry']

# (values, labels, weights) of all binary events.
Events = tuple[tuple[float, ...], tuple[int, ...], tuple[float, ...]]


class RewardModelEvaluator:
  """Computes metrics of values on held-out records; see `measure`.

  Compiles nothing before `measure`.

  Args:
    kind: one of data.KINDS.
    dataset: the held-out data.
    records: from data.make_records.
    model: a model with a scalar head.
    prompt_format: see data.make_records.
    prompts: P, prompts per batch.
    batch_shape: what all records fit.
    seed: seed of the subsets of judgements that vote.

  Raises:
    UserError: the mesh does not divide P.
  """

  def __init__(
    self,
    kind: str,
    dataset: RewardDataset,
    records: Sequence[LabelledRecord],
    model: Transformer,
    prompt_format: PromptFormat,
    *,
    prompts: int,
    batch_shape: BatchShape,
    seed: int,
  ):
    num_shards = model.layout.num_shards('prompts')
    if prompts < 1 or prompts % num_shards:
      raise UserError(
        f'config.evaluation.concurrent_prompts is {prompts}, but the mesh '
        f'splits prompts into {num_shards} shards; set it to a multiple of '
        f'{num_shards}'
      )
    self._kind, self._records, self._seed = kind, list(records), seed
    self._model, self._prompts = model, prompts
    self._batch_shape = batch_shape
    self._local_indices = global_arrays.local_prompt_indices(
      model.layout, prompts
    )
    # Replicated, so that every process can read all values.
    self._values = jax.jit(
      functools.partial(logprobs.values, model),
      out_shardings=model.layout.sharding(()),
    )
    self._examples = dataset.examples
    self._judged: list[JudgedExample] = []
    if kind == 'meta':
      judged = _judged_examples(dataset, prompt_format)
      self._judged = _with_equal_counts(judged)

  def measure(self, params: dict, workdir: str) -> dict[str, float]:
    """Evaluates parameters; writes WORKDIR/calibration.png.

    Returns:
      auc, accuracy (at probability 1/2), log_loss (nats), calibration_error
      (expected, see evaluation/calibration.py), count (of judgements or
      ordered pairs).
      kind meta: also positive_rate, the fraction of right judgements, and
      accuracies over votes_examples examples of two or more responses. For
      several k there are voting_k, guided_k (votes of the half with the higher
      values) and best_of_k, each an expectation over subsets of k judgements.
      kind bradley_terry: also best_of_n, how often the best response has the
      highest value.
    """
    values = self.values(params)
    logits, labels, weights = self._events(values)
    bins = calibration.bins(logits, labels, weights)
    title, axis_label = _PLOT_TEXTS[self._kind]
    plot = plots.png(plots.calibration(bins, title, axis_label))
    atomic_io.write_file(os.path.join(workdir, PLOT), plot)
    results = {
      'auc': metrics.auc(logits, [label > 0 for label in labels]),
      'accuracy': calibration.accuracy(logits, labels, weights),
      'log_loss': calibration.log_loss(logits, labels, weights),
      'calibration_error': calibration.expected_error(bins),
      'count': len(logits),
    }
    if self._kind == 'meta':
      results['positive_rate'] = sum(labels) / len(labels)
      return results | self._voting_accuracies(values)
    if self._kind == 'bradley_terry':
      results['best_of_n'] = self._best_of_n_accuracy(values)
    return results

  def values(self, params: dict) -> list[tuple[float, ...]]:
    """Returns the values of each record's texts."""
    positions = {x.tokenized.id: i for i, x in enumerate(self._records)}
    values: list[tuple[float, ...]] = [()] * len(self._records)
    for batch, info in batch_iterator.evaluation_batches(
      [x.tokenized for x in self._records],
      num_prompts=self._prompts,
      batch_shape=self._batch_shape,
      local_indices=self._local_indices,
    ):
      inputs = global_arrays.make_global_arrays(
        batch, self._model.layout, self._prompts
      )
      output = self._values(params, inputs).addressable_data(0)  # [P, R]
      for row, record_id, indices in zip(
        np.asarray(output),
        info.example_ids,
        info.generation_indices,
        strict=True,
      ):
        if record_id is not None:  # not a padding prompt
          values[positions[record_id]] = tuple(row[: len(indices)].tolist())
    return values

  def _events(self, values: Sequence[tuple[float, ...]]) -> Events:
    """Returns the binary events that the values predict.

    kinds bradley_terry, critique: the difference of two values predicts which
    response is better, once in each order.
    """
    events = []
    for record, logits in zip(self._records, values, strict=True):
      texts = list(zip(logits, record.labels, record.weights, strict=True))
      if self._kind in ('bradley_terry', 'critique'):
        (best,) = (value for value, label, _ in texts if label)
        margins = [
          (best - x, weight) for x, label, weight in texts if not label
        ]
        texts = [(x, 1, weight) for x, weight in margins]
        texts += [(-x, 0, weight) for x, weight in margins]
      events += texts
    logits, labels, weights = zip(*events, strict=True)
    return logits, labels, weights

  def _by_example(
    self, values: Sequence[tuple[float, ...]]
  ) -> dict[str, dict[int, float]]:
    """Returns example id -> text index -> value."""
    by_example: dict[str, dict[int, float]] = collections.defaultdict(dict)
    for record, logits in zip(self._records, values, strict=True):
      by_example[record.example_id] |= dict(
        zip(record.text_indices, logits, strict=True)
      )
    return by_example

  def _best_of_n_accuracy(self, values: Sequence[tuple[float, ...]]) -> float:
    """Returns how often the best of all responses has the highest value."""
    results = []
    for example_id, logits in self._by_example(values).items():
      example = self._examples[example_id]
      if len(logits) == len(example.responses):  # otherwise a text was skipped
        votes = tuple(logits[i] for i in sorted(logits))
        results.append(metrics.Result(example, votes))
    return metrics.mean(map(metrics.correct, results))

  def _voting_accuracies(
    self, values: Sequence[tuple[float, ...]]
  ) -> dict[str, float]:
    """Returns accuracies of votes with and without the meta RM."""
    by_example = self._by_example(values)
    rated = [
      _with_values(judged, by_example[judged.example.id])
      for judged in self._judged
      # A record of the example may not have fitted.
      if by_example[judged.example.id].keys() >= set(range(len(judged.samples)))
    ]
    if not rated:
      return {}
    samples = vote_subsets.gather(rated)
    results: dict[str, float] = {'votes_examples': len(rated)}
    for k in _powers_of_two(samples.num_samples):
      members, _ = vote_subsets.choose(
        samples.num_samples,
        k,
        self._seed,
        scaling_curves.MAX_SUBSETS,
        scaling_curves.NUM_SUBSETS,
      )
      # Name -> number of samples with the highest values that vote.
      for name, num_voters in (
        ('voting', None),
        ('guided', (k + 1) // 2),
        ('best_of', 1),
      ):
        correct = vote_subsets.expected(samples, members, num_voters)
        results[f'{name}_{k}'] = float(np.mean(correct))
    return results


def _with_values(
  judged: JudgedExample, values: Mapping[int, float]
) -> JudgedExample:
  samples = [
    dataclasses.replace(sample, meta=values[index])
    for index, sample in enumerate(judged.samples)
  ]
  return dataclasses.replace(judged, samples=tuple(samples))


def _judged_examples(
  dataset: RewardDataset, prompt_format: PromptFormat
) -> list[JudgedExample]:
  """Returns the examples of two or more responses with their judgements."""
  return [
    JudgedExample(example, tuple(x.judgement(prompt_format) for x in samples))
    for example_id, samples in dataset.samples.items()
    for example in [dataset.examples[example_id]]
    if len(example.responses) > 1
  ]


def _with_equal_counts(
  judged: Sequence[JudgedExample],
) -> list[JudgedExample]:
  """Cuts all examples to K judgements, the most frequent number.

  Examples with fewer are left out; the log counts them.
  """
  if not judged:
    return []
  counts = collections.Counter(len(x.samples) for x in judged)
  k = max(counts, key=lambda count: (counts[count], count))
  cut = [
    dataclasses.replace(x, samples=x.samples[:k])
    for x in judged
    if len(x.samples) >= k
  ]
  if len(cut) < len(judged):
    logging.warning(
      'voting on held-out examples uses %d judgements each; skipping %d of %d '
      'examples that have fewer',
      *(k, len(judged) - len(cut), len(judged)),
    )
  return cut


def _powers_of_two(maximum: int) -> list[int]:
  """Returns 1, 2, 4, ... below the maximum, and the maximum."""
  powers = [1 << i for i in range(maximum.bit_length())]
  return [x for x in powers if x < maximum] + [maximum]
