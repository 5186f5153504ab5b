"""Metrics of values by hand, and values against the model's own."""

import math

import numpy as np
import pytest

from grm_jax.data import tokenized_example
from grm_jax.judgement.prompt_format import PromptFormat
from grm_jax.judges.meta_rm import META
from grm_jax.model import logprobs
from grm_jax.model.batch import Batch
from grm_jax.sharding import mesh, rules
from grm_jax.stages.reward_model import data as rm_data
from grm_jax.stages.reward_model.data import RewardDataset
from grm_jax.stages.reward_model.evaluate import RewardModelEvaluator
from tests.judges.fake import load_tokenizer
from tests.messages import names, naming, setting
from tests.model import tiny
from tests.stages.reward_model.test_data import (
  EXAMPLES_OF_SEVERAL,
  PAIR,
  SHAPE,
  example,
  sample,
)

LN3 = math.log(3)  # of probability 3/4
FIRST = example('first', 'good', 'bad', best=0)
LONE = example('lone', 'x', rewards=(1.0,))

# Votes on PAIR, whose best is 1, are right; on FIRST only guided votes are.
SAMPLES = {
  'pair': [
    sample('pair', (0, 1), *x) for x in ((1, 5), (5, 6), (4, 8), (7, 6))
  ],
  'first': [
    sample('first', (0, 1), 9, 2),
    sample('first', (0, 1), 1, 5),
    sample('first', (1, 0), 6, 2),  # by position in the prompt
    sample('first', (0, 1), text='?'),
  ],
  'lone': [sample('lone', (0,), 1)],
}
VALUES = {
  ('pair', 0): LN3,
  ('pair', 1): -LN3,
  ('pair', 2): LN3,
  ('pair', 3): -LN3,
  ('first', 0): LN3,
  ('first', 1): -LN3,
  ('first', 2): -2.0,
  ('first', 3): -LN3,
  ('lone', 0): 0.0,
}

PROMPT_FORMAT = PromptFormat(META, 'single')


def make_evaluator(
  kind='meta', model=None, batch_shape=SHAPE, data=None, prompts=1, **options
):
  if data is None:
    data = RewardDataset({x.id: x for x in (PAIR, FIRST, LONE)}, SAMPLES)
  records = rm_data.make_records(
    kind,
    data,
    PROMPT_FORMAT,
    load_tokenizer(),
    batch_shape,
    'held-out data',
    **options,
  )
  return RewardModelEvaluator(
    kind,
    data,
    records,
    model or tiny.gemma(scalar=True),
    PROMPT_FORMAT,
    prompts=prompts,
    batch_shape=batch_shape,
    seed=0,
  )


def measure(evaluator, values, workdir, monkeypatch):
  """Returns the metrics if the model gave these values.

  Args:
    evaluator: the evaluator.
    values: by example id and text index.
    workdir: folder for the plot.
    monkeypatch: replaces the model.
  """
  by_record = [
    tuple(values[x.example_id, i] for i in x.text_indices)
    for x in evaluator._records
  ]
  monkeypatch.setattr(evaluator, 'values', lambda params: by_record)
  return evaluator.measure({}, str(workdir))


def test_metrics_of_a_meta_rm(tmp_path, monkeypatch):
  evaluator = make_evaluator(balance=True)
  metrics = measure(evaluator, VALUES, tmp_path, monkeypatch)
  # Right: ln 3, -ln 3 and ln 3 of PAIR, ln 3 of FIRST, 0 of LONE. Wrong:
  # -ln 3 of PAIR; -ln 3, -2 and -ln 3 of FIRST.
  assert metrics['count'] == 9 and metrics['positive_rate'] == pytest.approx(
    5 / 9
  )
  # Among 20 pairs, -ln 3 is as high as three wrong ones and above the fourth.
  assert metrics['auc'] == pytest.approx((4 * 4 + 3 / 2 + 1) / 20)
  # The four wrong ones have weight 5/4, in total half of 10; 0 counts as wrong.
  assert metrics['accuracy'] == pytest.approx((3 + 4 * 5 / 4) / 10)
  low = 1 / (1 + math.exp(2))
  logs = [3 * math.log(3 / 4), math.log(1 / 4), math.log(1 / 2)]
  logs += [5 / 4 * 3 * math.log(3 / 4), 5 / 4 * math.log(1 - low)]
  assert metrics['log_loss'] == pytest.approx(-sum(logs) / 10)
  # Bins of a tenth: 3/4 (3 parts, all right), 1/4 (1 right of 19/4 parts),
  # 1/2 (1 part, right), 0.12 (5/4 parts, wrong).
  error = 3 / 4 + (19 / 4 * 1 / 4 - 1) + 1 / 2 + 5 / 4 * low
  assert metrics['calibration_error'] == pytest.approx(error / 10)
  picture = (tmp_path / 'calibration.png').read_bytes()
  assert picture.startswith(b'\x89PNG')


def test_accuracy_without_weights(tmp_path, monkeypatch):
  metrics = measure(make_evaluator(), VALUES, tmp_path, monkeypatch)
  assert metrics['accuracy'] == pytest.approx((3 + 4) / 9)


def test_votes_of_a_meta_rm(tmp_path, monkeypatch):
  metrics = measure(make_evaluator(), VALUES, tmp_path, monkeypatch)
  # Sums of scores. PAIR: 17 to 25, guided 5 to 13, best of 4 1 to 5. FIRST: 12
  # to 13, guided 10 to 7, best of 4 9 to 2.
  assert metrics['votes_examples'] == 2
  assert metrics['voting_4'] == 1 / 2
  assert metrics['guided_4'] == 1.0
  assert metrics['best_of_4'] == 1.0
  # Single judgements: three of four and one of four are right.
  for name in ('voting_1', 'guided_1', 'best_of_1'):
    assert metrics[name] == (3 / 4 + 1 / 4) / 2
  assert {k for k in metrics if k.startswith('voting')} == {
    f'voting_{k}' for k in (1, 2, 4)
  }


def test_examples_with_fewer_judgements_do_not_vote(
  tmp_path, monkeypatch, caplog
):
  more = RewardDataset(
    {x.id: x for x in (PAIR, FIRST, LONE)},
    SAMPLES | {'first': SAMPLES['first'][:3]},
  )
  with caplog.at_level('WARNING'):
    evaluator = make_evaluator(data=more)
  assert any(names(x, 4, 1, 2) for x in caplog.messages)
  metrics = measure(evaluator, VALUES, tmp_path, monkeypatch)
  assert metrics['votes_examples'] == 1 and metrics['voting_4'] == 1.0


def test_metrics_of_bradley_terry(tmp_path, monkeypatch):
  evaluator = make_evaluator(
    'bradley_terry', data=RewardDataset(EXAMPLES_OF_SEVERAL, {})
  )
  # THREE's best is 0 and beats only one of two, PAIR's is 1 and beats 0.
  values = {
    ('pair', 1): LN3,
    ('pair', 0): 0.0,
    ('three', 0): 0.0,
    ('three', 1): -LN3,
    ('three', 2): LN3,
  }
  metrics = measure(evaluator, values, tmp_path, monkeypatch)
  # The pair of PAIR has weight 2, each pair of THREE 1; all in both orders.
  assert metrics['count'] == 6
  assert metrics['accuracy'] == pytest.approx(3 / 4)
  logs = 3 * math.log(3 / 4) + math.log(1 / 4)
  assert metrics['log_loss'] == pytest.approx(-logs / 4)
  assert metrics['best_of_n'] == 1 / 2
  assert metrics['calibration_error'] == pytest.approx(0, abs=1e-9)
  # ln 3 twice and -ln 3 once, against their negatives.
  assert metrics['auc'] == pytest.approx((2 * 2 + 4 / 2) / 9)


def test_metrics_of_pairs(tmp_path, monkeypatch):
  evaluator = make_evaluator('pair', data=RewardDataset({'pair': PAIR}, {}))
  values = {('pair', 0): 2.0, ('pair', 1): 1.0}  # by the second of the pair
  metrics = measure(evaluator, values, tmp_path, monkeypatch)
  assert metrics['auc'] == 1.0 and metrics['accuracy'] == 1 / 2
  assert metrics['count'] == 2 and 'best_of_n' not in metrics


def test_values_are_the_models(tmp_path):
  """Padded, batched and split over devices, against one text at a time."""
  layout = rules.make_layout(mesh.make_mesh(fsdp=8), rules.RULES)
  model = tiny.gemma(layout, scalar=True, vocab_size=1024)
  params = tiny.params(model)
  batch_shape = tokenized_example.BatchShape((256, 600), (16, 64), 2)
  evaluator = make_evaluator(model=model, batch_shape=batch_shape, prompts=8)
  all_values = evaluator.values(params)
  alone = tiny.gemma(scalar=True, vocab_size=1024)
  for record, values in zip(
    evaluator._records[::3], all_values[::3], strict=True
  ):
    assert len(values) == len(record.labels)
    for text, value in zip(record.tokenized.generations, values, strict=True):
      prompt = record.tokenized.prompt[None]
      batch = Batch(
        prompt,
        np.array([prompt.shape[1]], np.int32),
        text[None, None],
        np.array([[len(text)]], np.int32),
      )
      expected = logprobs.values(alone, tiny.params(alone), batch)
      assert value == pytest.approx(float(expected[0, 0]), abs=1e-4)


def test_the_mesh_does_not_divide_prompts():
  layout = rules.make_layout(mesh.make_mesh(fsdp=8), rules.RULES)
  model = tiny.gemma(layout, scalar=True)
  with pytest.raises(
    ValueError, match=naming(*setting('evaluation.concurrent_prompts', 4), 8)
  ):
    make_evaluator(model=model, prompts=4)
