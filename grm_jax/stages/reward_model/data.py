"""Turns `config.data` and `config.samples` into labelled records.

A record is a prompt and several texts. Each text gets a value and has a label.
The tokens are exactly those that the judges in judges/baselines/ read:

  config.kind     prompt                      texts (label 1)
  meta            example, response order     judgements (correct)
  bradley_terry   query                       responses (the best one)
  pair            query and one response      other responses (worse than it)
  critique        query                       critiqued responses (the best one)
"""

import collections
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from grm_jax.data import example_sources, mixture, tokenized_example
from grm_jax.data.collate import BatchInfo
from grm_jax.data.tokenized_example import (
  BatchShape,
  TokenizedExample,
  token_array,
)
from grm_jax.errors import UserError
from grm_jax.evaluation import metrics
from grm_jax.judgement import correctness, rejection_sampling
from grm_jax.judgement import example as examples_lib
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.prompt_format import PromptFormat
from grm_jax.judgement.rejection_sampling import FilterSample
from grm_jax.judges import meta_rm
from grm_jax.judges.baselines import pairwise_rm, scalar_rm, semi_scalar
from grm_jax.model.batch import Batch
from grm_jax.stages.rft import sample_files
from grm_jax.tokenizer import chat_format
from grm_jax.tokenizer.tokenizer import Tokenizer
from grm_jax.training.reward_model_loss import RewardBatch

KINDS = ('meta', 'bradley_terry', 'pair', 'critique')
READ_SAMPLES = ('meta', 'critique')  # kinds that learn from config.samples
SOURCE = 'judged'  # name of the only data source
_MAX_LOGGED = 5  # number of skipped examples that the log names


@dataclasses.dataclass(frozen=True)
class RewardDataset:
  """Examples, and judgements of them.

  Attributes:
    examples: by id.
    samples: unhinted judgements by example id; empty unless kind is 'meta'; for
      'critique', critiques by the ids of single responses, ID/0, ID/1, ...
  """

  examples: Mapping[str, JudgingExample]
  samples: Mapping[str, Sequence[FilterSample]]


@dataclasses.dataclass(frozen=True)
class LabelledRecord:
  """A tokenized prompt with its texts and their labels.

  Attributes:
    tokenized: the prompt and at most R texts.
    example_id: id of the example.
    labels: 0 or 1 for each text.
    weights: weight of each text in the loss.
    text_indices: position of each text in its example: the number of the
      judgement, or of the response.
  """

  tokenized: TokenizedExample
  example_id: str
  labels: tuple[int, ...]
  weights: tuple[float, ...]
  text_indices: tuple[int, ...]


def read(config: ConfigDict) -> tuple[RewardDataset, RewardDataset | None]:
  """Returns the training data and the held-out data.

  Held out are config.evaluation.data, or config.evaluation.holdout_fraction of
  the queries, or nothing (None).

  Raises:
    UserError: a source cannot be read or has no labelled example.
  """
  evaluation = config.evaluation
  dataset = _read_split(config, 'data', config.data, 'train', config.samples)
  if evaluation.data:
    held_out = _read_split(
      config,
      'evaluation.data',
      evaluation.data,
      'held_out',
      evaluation.samples,
    )
    return dataset, held_out
  if not evaluation.holdout_fraction:
    return dataset, None
  return _hold_out(dataset, evaluation.holdout_fraction, config.seed)


def _read_split(
  config: ConfigDict, key: str, spec: str, split: str, sample_paths: str
) -> RewardDataset:
  has_label = correctness.has_label if config.kind == 'meta' else _has_best
  loaded, _ = example_sources.load(spec, split, config.fail_on_bad_rows)
  examples = {x.id: x for x in loaded if has_label(x)}
  if not examples:
    raise UserError(
      f'config.{key}={spec}: none of {len(loaded)} examples has a label; set '
      '`best` for several responses, or with config.kind=meta set `rewards` to '
      '[0] or [1] for a single one'
    )
  if config.kind not in READ_SAMPLES:
    return RewardDataset(examples, {})
  judged = examples
  if config.kind == 'critique':
    singles = map(examples_lib.single_responses, examples.values())
    judged = {x.id: x for x in itertools.chain.from_iterable(singles)}
  samples: dict[str, list[FilterSample]] = collections.defaultdict(list)
  for path in sample_paths.split(','):
    by_example = sample_files.read(
      path.strip(), judged, config.fail_on_bad_rows
    )
    for example_id, example_samples in by_example.items():
      samples[example_id] += [x for x in example_samples if not x.hinted]
  unhinted = {name: tuple(x) for name, x in samples.items() if x}
  if not unhinted:
    raise UserError(
      f'{sample_paths}: all samples are hinted; give unhinted samples, because '
      f'config.kind={config.kind} learns from those only'
    )
  return RewardDataset(examples, unhinted)


def _has_best(example: JudgingExample) -> bool:
  return len(example.responses) > 1 and example.best is not None


def _hold_out(
  dataset: RewardDataset, fraction: float, seed: int
) -> tuple[RewardDataset, RewardDataset]:
  """Splits by query: returns the rest, and a fraction of the queries."""
  examples = [
    x
    for x in dataset.examples.values()
    if not dataset.samples or _sample_ids(x) & dataset.samples.keys()
  ]
  queries = list(dict.fromkeys(metrics.query_of(x) for x in examples))
  count = max(1, round(fraction * len(queries)))
  if count >= len(queries):
    raise UserError(
      f'config.evaluation.holdout_fraction={fraction} holds out all of '
      f'{len(queries)} queries; give more data, a smaller fraction, or 0 for '
      'no evaluation'
    )
  # 'held out' is an input of the hash behind the permutation: keep it.
  order = mixture.permutation(len(queries), seed, 'held out')
  held_out = {queries[i] for i in order[:count]}

  def select(is_held_out: bool) -> RewardDataset:
    """Returns the examples whose query is held out, or the other examples."""
    selected = {
      x.id: x
      for x in examples
      if (metrics.query_of(x) in held_out) == is_held_out
    }
    ids = set[str]().union(*map(_sample_ids, selected.values()))
    samples = {k: x for k, x in dataset.samples.items() if k in ids}
    return RewardDataset(selected, samples)

  return select(False), select(True)


def _sample_ids(example: JudgingExample) -> set[str]:
  """Returns the ids that samples of the example, or its responses, have."""
  singles = examples_lib.single_responses(example)
  return {example.id, *(x.id for x in singles)}


def make_records(
  kind: str,
  dataset: RewardDataset,
  prompt_format: PromptFormat,
  tokenizer: Tokenizer,
  batch_shape: BatchShape,
  name: str,
  balance: bool = False,
  order: str = 'balanced',
  seed: int = 0,
) -> list[LabelledRecord]:
  """Returns the records that fit a batch, with weights; logs the others.

  Args:
    kind: one of KINDS.
    dataset: from `read`.
    prompt_format: template of the meta RM's prompts, and template by which
      single responses were judged.
    tokenizer: tokenizer of the model.
    batch_shape: what must fit.
    name: name of the data, for messages.
    balance: for kind 'meta': weight the judgements so that both labels have the
      same total weight.
    order: for kind 'pair': see pairwise_rm.second_responses.
    seed: seed of random orders.

  Raises:
    UserError: nothing fits, or all labels are equal.
  """
  records: list[LabelledRecord] = []
  misfits = []  # (id, reason)
  for example in dataset.examples.values():
    try:
      if kind == 'meta':
        samples = dataset.samples.get(example.id, ())
        records += _meta_records(
          example, samples, prompt_format, tokenizer, batch_shape
        )
      elif kind == 'bradley_terry':
        records += _bradley_terry_records(example, tokenizer, batch_shape)
      elif kind == 'critique':
        records += _critique_records(
          example, dataset.samples, tokenizer, batch_shape
        )
      else:
        seconds = pairwise_rm.second_responses(
          order, len(example.responses), seed, example.id
        )
        records += _pair_records(example, seconds, tokenizer, batch_shape)
    except UserError as error:
      misfits.append((example.id, str(error)))
  fitting, too_long = tokenized_example.partition_by_fit(
    [x.tokenized for x in records], batch_shape
  )
  misfits += too_long
  fitting_ids = {x.id for x in fitting}
  for record_id, reason in misfits[:_MAX_LOGGED]:
    logging.warning('%s: %s', record_id, reason)
  if misfits:
    logging.warning('%s: skipped %d that do not fit', name, len(misfits))
  records = [x for x in records if x.tokenized.id in fitting_ids]
  if not records:
    raise UserError(f'{name}: nothing fits a batch; the first: {misfits[0]}')
  if kind == 'meta':
    return _weight_judgements(records, balance, name)
  return _scale_weights(records)


def _meta_records(
  example: JudgingExample,
  samples: Sequence[FilterSample],
  prompt_format: PromptFormat,
  tokenizer: Tokenizer,
  batch_shape: BatchShape,
) -> list[LabelledRecord]:
  """Returns a prompt per response order, with R judgements per record."""
  max_prompt = batch_shape.prompt_buckets[-1]
  max_text = batch_shape.generation_buckets[-1]
  by_order: dict[tuple[int, ...], list[int]] = {}
  for index, sample in enumerate(samples):
    by_order.setdefault(sample.order, []).append(index)
  records = []
  for order, order_indices in by_order.items():
    chunks = _chunks(order_indices, batch_shape.generations_per_prompt)
    for part, indices in enumerate(chunks):
      chosen = [samples[i] for i in indices]
      records.append(
        _make_record(
          example,
          f'{",".join(map(str, order))} {part}',
          meta_rm.meta_prompt(
            example, order, tokenizer, max_prompt, prompt_format.template
          ),
          [
            chat_format.model_turn(tokenizer, x.text, limit=max_text)
            for x in chosen
          ],
          indices,
          [_is_correct(x, example, prompt_format) for x in chosen],
        )
      )
  return records


def _is_correct(
  sample: FilterSample, example: JudgingExample, prompt_format: PromptFormat
) -> bool:
  outcome = rejection_sampling.outcome(sample, example, prompt_format)
  return outcome == 'correct'


def _bradley_terry_records(
  example: JudgingExample, tokenizer: Tokenizer, batch_shape: BatchShape
) -> list[LabelledRecord]:
  """Returns records of the best response and up to R - 1 others."""
  query, texts = scalar_rm.query_and_responses(example, tokenizer)
  return _preference_records(example, query, texts, batch_shape)


def _critique_records(
  example: JudgingExample,
  samples: Mapping[str, Sequence[FilterSample]],
  tokenizer: Tokenizer,
  batch_shape: BatchShape,
) -> list[LabelledRecord]:
  """Returns records of responses with their j-th critiques, for every j.

  Raises:
    UserError: a response has no critique, or something does not fit.
  """
  query = scalar_rm.query_tokens(tokenizer, example)
  limit = batch_shape.generation_buckets[-1]
  texts = [
    [
      semi_scalar.critique_text(response, x.text, tokenizer, limit).tokens
      for x in samples.get(single.id, ())
    ]
    for single in examples_lib.single_responses(example)
    for response in single.responses
  ]
  if not all(texts):
    raise UserError('config.samples has no critique of one of its responses')
  return [
    record
    for j, critiqued in enumerate(zip(*texts, strict=False))
    for record in _preference_records(
      example, query, critiqued, batch_shape, f'{j} '
    )
  ]


def _preference_records(
  example: JudgingExample,
  query: Sequence[int],
  texts: Sequence[Sequence[int]],
  batch_shape: BatchShape,
  prefix: str = '',
) -> list[LabelledRecord]:
  """Returns records of the best response's text and up to R - 1 others.

  Args:
    example: the preference.
    query: tokens of the prompt.
    texts: tokens for each response.
    batch_shape: has R.
    prefix: distinguishes records of the same responses.
  """
  best, other_indices = _best_and_others(example)
  chunks = _chunks(other_indices, batch_shape.generations_per_prompt - 1)
  return [
    _make_record(
      example,
      f'{prefix}{part}',
      query,
      [texts[i] for i in (best, *chunk)],
      [best, *chunk],
      [True, *[False] * len(chunk)],
      1 / len(other_indices),
    )
    for part, chunk in enumerate(chunks)
  ]


def _pair_records(
  example: JudgingExample,
  second_responses: Sequence[Sequence[int]],
  tokenizer: Tokenizer,
  batch_shape: BatchShape,
) -> list[LabelledRecord]:
  """Returns the pairs of the best response with each other response."""
  best, other_indices = _best_and_others(example)
  max_prompt = batch_shape.prompt_buckets[-1]
  records = []
  for first in range(len(example.responses)):
    compared = other_indices if first == best else [best]
    seconds = [i for i in second_responses[first] if i in compared]
    for part, chunk in enumerate(
      _chunks(seconds, batch_shape.generations_per_prompt)
    ):
      records.append(
        _make_record(
          example,
          f'{first} {part}',
          pairwise_rm.pair_prompt(example, first, tokenizer, max_prompt).tokens,
          [
            pairwise_rm.pair_text(example.responses[i], tokenizer)
            for i in chunk
          ],
          chunk,
          [first == best] * len(chunk),
          1 / (2 * len(other_indices)),
        )
      )
  return records


def _best_and_others(example: JudgingExample) -> tuple[int, list[int]]:
  assert example.best is not None  # `_has_best`
  indices = range(len(example.responses))
  return example.best, [i for i in indices if i != example.best]


def _chunks(indices: Sequence[int], size: int) -> list[Sequence[int]]:
  return [indices[i : i + size] for i in range(0, len(indices), size)]


def _make_record(
  example: JudgingExample,
  part: str,
  prompt: Sequence[int],
  texts: Sequence[Sequence[int]],
  text_indices: Sequence[int],
  labels: Sequence[bool],
  weight: float = 1.0,
) -> LabelledRecord:
  tokenized = TokenizedExample(
    f'{example.id} {part}',
    token_array(prompt),
    tuple(token_array(text) for text in texts),
    SOURCE,
  )
  return LabelledRecord(
    tokenized,
    example.id,
    labels=tuple(map(int, labels)),
    weights=(weight,) * len(labels),
    text_indices=tuple(text_indices),
  )


def _weight_judgements(
  records: Sequence[LabelledRecord], balance: bool, name: str
) -> list[LabelledRecord]:
  """Returns records with weights of 1 or, balanced, of at least 1.

  Raises:
    UserError: all labels are equal.
  """
  counts = collections.Counter(label for x in records for label in x.labels)
  for label, word in ((1, 'right'), (0, 'wrong')):
    if not counts[label]:
      raise UserError(
        f'{name}: none of {counts.total()} judgements is {word}, so there is '
        'nothing to learn; give samples of other examples or another model, or '
        'sample at a higher temperature'
      )
  if not balance:
    return list(records)
  most = max(counts.values())
  weights = {label: most / count for label, count in counts.items()}
  return [
    dataclasses.replace(x, weights=tuple(weights[label] for label in x.labels))
    for x in records
  ]


def _scale_weights(records: Sequence[LabelledRecord]) -> list[LabelledRecord]:
  """Scales all weights so that the smallest is 1; RewardBatch says why."""
  smallest = min(weight for x in records for weight in x.weights)
  return [
    dataclasses.replace(x, weights=tuple(w / smallest for w in x.weights))
    for x in records
  ]


def make_reward_batch(
  batch: Batch,
  info: BatchInfo,
  records: Mapping[str, LabelledRecord],
  local_indices: np.ndarray,
) -> RewardBatch:
  """Adds labels and weights to this process's part of a batch.

  Args:
    batch: tokens of this process's prompts.
    info: the global batch.
    records: by id of the tokenized example.
    local_indices: positions in the global batch of the prompts in `batch`.
  """
  assert batch.generation_lengths is not None
  shape = batch.generation_lengths.shape  # [p, R]
  # NumPy arrays; jax.Array is the declared type of the fields that they fill.
  labels: Any = np.zeros(shape, np.float32)
  weights: Any = np.zeros(shape, np.float32)
  for p, index in enumerate(local_indices):
    record_id = info.example_ids[index]
    if record_id is None:  # a padding prompt
      continue
    record = records[record_id]
    for r, text in enumerate(info.generation_indices[index]):
      labels[p, r] = record.labels[text]
      weights[p, r] = record.weights[text]
  return RewardBatch(batch, labels, weights)


def label_digest(records: Iterable[LabelledRecord]) -> str:
  """Returns a hash of all labels and weights.

  The position of the batch iterator identifies the tokens only.
  """
  digest = hashlib.sha256()
  for x in records:
    row = [x.tokenized.id, x.labels, x.weights]
    digest.update(json.dumps(row).encode() + b'\n')
  return digest.hexdigest()[:12]
