"""From `config.data` and `config.samples` of the stage meta_rm to records.

A record is a prompt and the texts that get a value each, in the very tokens
that the judges of judges/baselines/scalar_rm.py and judges/baselines/pairwise_rm.py read:

  meta           example and order, then judgements of that order
  bradley_terry  query, then the best response and others
  pair           query and a response, then a response to compare it with
"""

import collections
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from grm_jax.data import example_sources, mixture, tokenized_example
from grm_jax.data.collate import BatchInfo
from grm_jax.data.tokenized_example import (
  BatchShape,
  TokenizedExample,
  tokens_of,
)
from grm_jax.errors import UserError
from grm_jax.evaluation import metrics
from grm_jax.judgement import correctness, rejection_sampling
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.prompt_format import PromptFormat
from grm_jax.judgement.rejection_sampling import FilterSample
from grm_jax.judges.baselines import pairwise_rm, scalar_rm
from grm_jax.model.batch import Batch
from grm_jax.stages.rft import sample_files
from grm_jax.tokenizer.tokenizer import Tokenizer
from grm_jax.training.reward_model_loss import RewardBatch

KINDS = ('meta', 'bradley_terry', 'pair')
SOURCE = 'judged'  # the one source of the batches
_SHOWN = 5  # examples that are left out, in the log


@dataclasses.dataclass(frozen=True)
class RewardDataset:
  """Examples by id, and for the kind meta their judgements, unhinted ones."""

  examples: Mapping[str, JudgingExample]
  samples: Mapping[str, Sequence[FilterSample]]


@dataclasses.dataclass(frozen=True)
class LabelledRecord:
  """A record, and what is known of each of its texts.

  Attributes:
    record: a prompt and at most R texts.
    example: id of what they are about.
    labels: 0 or 1 each.
    weights: how much each counts in the loss.
    places: of each, within its example: the number of the judgement, or of
      the response.
  """

  record: TokenizedExample
  example: str
  labels: tuple[int, ...]
  weights: tuple[float, ...]
  places: tuple[int, ...]


def read(config: ConfigDict) -> tuple[RewardDataset, RewardDataset | None]:
  """What to train on, and what is held out, if anything.

  Held out is config.evaluation.data, or else a share of the queries.

  Raises:
    UserError: a source that cannot be read or has nothing of use.
  """
  e = config.evaluation
  found = _read(config, 'data', config.data, 'train', config.samples)
  if e.data:
    held = _read(config, 'evaluation.data', e.data, 'held_out', e.samples)
    return found, held
  if not e.holdout_fraction:
    return found, None
  return _split(found, e.holdout_fraction, config.seed)


def _read(config, key, spec, split, samples) -> RewardDataset:
  is_told = correctness.has_label if config.kind == 'meta' else _has_best
  everything, _ = example_sources.load(spec, split, config.fail_on_bad_rows)
  examples = {x.id: x for x in everything if is_told(x)}
  if not examples:
    raise UserError(
      f'config.{key}={spec}: no example says what is right; needed is the '
      'best of several responses, or for config.kind=meta the label 0 or 1 of '
      'a single one in rewards'
    )
  if config.kind != 'meta':
    return RewardDataset(examples, {})
  merged = collections.defaultdict(list)
  for path in samples.split(','):
    own = sample_files.read(path.strip(), examples, config.fail_on_bad_rows)
    for name, some in own.items():
      merged[name] += [x for x in some if not x.hinted]
  merged = {name: tuple(own) for name, own in merged.items() if own}
  if not merged:
    raise UserError(
      f'{samples}: all samples are hinted; a meta RM learns from unhinted ones'
    )
  return RewardDataset(examples, merged)


def _has_best(example: JudgingExample) -> bool:
  return len(example.responses) > 1 and example.best is not None


def _split(
  data: RewardDataset, share: float, seed: int
) -> tuple[RewardDataset, RewardDataset]:
  """(the others, a share of the queries): no query is in both."""
  used = [x for x in data.examples.values() if _is_used(x, data)]
  queries = list(dict.fromkeys(metrics.query_of(x) for x in used))
  count = max(1, round(share * len(queries)))
  if count >= len(queries):
    raise UserError(
      f'config.evaluation.holdout_fraction={share} holds out all of {len(queries)} '
      'queries; give more data, a smaller share, or 0 for none'
    )
  order = mixture.permutation(len(queries), seed, 'held out')
  held = {queries[i] for i in order[:count]}

  def part(is_held):
    examples = {
      x.id: x for x in used if (metrics.query_of(x) in held) == is_held
    }
    samples = {k: own for k, own in data.samples.items() if k in examples}
    return RewardDataset(examples, samples)

  return part(False), part(True)


def _is_used(example, data):
  return not data.samples or example.id in data.samples


def rows_of(
  kind: str,
  data: RewardDataset,
  forms: PromptFormat,
  tokenizer: Tokenizer,
  limits: BatchShape,
  where: str,
) -> list[LabelledRecord]:
  """All records that fit, with labels and weights; the others are logged.

  Args:
    kind: one of KINDS.
    data: from `read`.
    forms: the template of the meta RM's prompts, and the one by which single
      responses were judged.
    tokenizer: the model's.
    limits: of the batches.
    where: what is read, for messages.

  Raises:
    UserError: nothing fits, or all labels are the same.
  """
  made, reasons = [], []
  for example in data.examples.values():
    try:
      if kind == 'meta':
        own = data.samples.get(example.id, ())
        made += _meta(example, own, forms, tokenizer, limits)
      else:
        build = _bradley_terry if kind == 'bradley_terry' else _pair
        made += build(example, tokenizer, limits)
    except UserError as error:
      reasons.append((example.id, str(error)))
  fitting, left_out = tokenized_example.usable([x.record for x in made], limits)
  reasons += left_out
  ids = {record.id for record in fitting}
  for name, reason in reasons[:_SHOWN]:
    logging.warning('%s: %s', name, reason)
  if reasons:
    logging.warning('%s: %d are left out: no place', where, len(reasons))
  made = [x for x in made if x.record.id in ids]
  if not made:
    raise UserError(f'{where}: nothing fits a batch; the first: {reasons[0]}')
  return balanced(made, where) if kind == 'meta' else _at_least_one(made)


def _meta(example, samples, forms, tokenizer, limits) -> list[LabelledRecord]:
  """One prompt for each order, R judgements a record."""
  right = [
    rejection_sampling.verdict(sample, example, forms) == 'correct'
    for sample in samples
  ]
  by_order = {}
  for place, sample in enumerate(samples):
    by_order.setdefault(sample.order, []).append(place)
  return [
    _record(
      example.id,
      f'{",".join(map(str, order))} {part}',
      scalar_rm.meta_prompt(
        example, order, tokenizer, limits.buckets[-1], forms.template
      ),
      lambda place: scalar_rm.meta_text(
        samples[place].text, tokenizer, limits.sizes[-1]
      ),
      some,
      lambda place: right[place],
    )
    for order, places in by_order.items()
    for part, some in enumerate(_parts(places, limits.rows))
  ]


def _bradley_terry(example, tokenizer, limits) -> list[LabelledRecord]:
  """The best response with R - 1 others a record, until all were there."""
  query, texts = scalar_rm.query_and_responses(example, tokenizer)
  others = [i for i in range(len(texts)) if i != example.best]
  return [
    _record(
      example.id,
      str(part),
      query,
      lambda i: texts[i],
      [example.best, *some],
      lambda i: i == example.best,
      1 / len(others),
    )
    for part, some in enumerate(_parts(others, limits.rows - 1))
  ]


def _pair(example, tokenizer, limits) -> list[LabelledRecord]:
  """The best response before each other one, and each other one before it."""
  n, best = len(example.responses), example.best
  others = [i for i in range(n) if i != best]
  return [
    _record(
      example.id,
      f'{first} {part}',
      pairwise_rm.pair_prompt(example, first, tokenizer, limits.buckets[-1]),
      lambda i: pairwise_rm.pair_text(example.responses[i], tokenizer),
      some,
      lambda _, first=first: first == best,
      1 / (2 * len(others)),
    )
    for first in range(n)
    for part, some in enumerate(
      _parts(others if first == best else [best], limits.rows)
    )
  ]


def _parts(places: Sequence[int], size: int) -> Iterable[Sequence[int]]:
  return [places[i : i + size] for i in range(0, len(places), size)]


def _record(
  example: str,
  part: str,
  prompt: Sequence[int],
  text: Callable[[int], Sequence[int]],
  places: Sequence[int],
  label: Callable[[int], bool],
  weight: float = 1.0,
) -> LabelledRecord:
  return LabelledRecord(
    TokenizedExample(
      f'{example} {part}',
      tokens_of(prompt),
      tuple(tokens_of(text(place)) for place in places),
      SOURCE,
    ),
    example,
    labels=tuple(int(label(place)) for place in places),
    weights=(weight,) * len(places),
    places=tuple(places),
  )


def balanced(
  made: Sequence[LabelledRecord], where: str
) -> list[LabelledRecord]:
  """The rows weighed so that both labels have the same weight in total.

  The label that is there more often has weight 1.

  Raises:
    UserError: all labels are the same.
  """
  counts = collections.Counter(label for x in made for label in x.labels)
  for label, word in ((1, 'right'), (0, 'wrong')):
    if not counts[label]:
      raise UserError(
        f'{where}: none of {sum(counts.values())} judgements is {word}, and '
        'there is nothing to tell apart; give samples of other examples, of '
        'another model, or drawn at a higher temperature'
      )
  most = max(counts.values())
  weights = {label: most / count for label, count in counts.items()}
  return [
    dataclasses.replace(x, weights=tuple(weights[i] for i in x.labels))
    for x in made
  ]


def _at_least_one(made: Sequence[LabelledRecord]) -> list[LabelledRecord]:
  """Weights in the same ratios, the least of them 1: see ScalarBatch."""
  least = min(weight for x in made for weight in x.weights)
  return [
    dataclasses.replace(x, weights=tuple(w / least for w in x.weights))
    for x in made
  ]


def batch(
  tokens: Batch,
  meta: BatchInfo,
  table: Mapping[str, LabelledRecord],
  rows_of_process: np.ndarray,
) -> RewardBatch:
  """Labels and weights beside the tokens of this process.

  Args:
    tokens, meta: of data/batch_iterator.py.
    table: record id -> Rows.
    rows_of_process: which prompts of the global batch the tokens are of.
  """
  shape = tokens.generation_lengths.shape
  labels, weights = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
  for p, number in enumerate(rows_of_process):
    if meta.ids[number] is None:
      continue
    own = table[meta.ids[number]]
    for r, i in enumerate(meta.chosen[number]):
      labels[p, r], weights[p, r] = own.labels[i], own.weights[i]
  return RewardBatch(tokens, labels, weights)


def digest(made: Iterable[LabelledRecord]) -> str:
  """Changes with any label or weight; the batches know of the tokens."""
  found = hashlib.sha256()
  for x in made:
    line = [x.record.id, x.labels, x.weights]
    found.update(json.dumps(line).encode() + b'\n')
  return found.hexdigest()[:12]
