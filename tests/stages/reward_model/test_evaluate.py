"""Figures of held-out values by hand, and values against the model's own."""

import math

import numpy as np
import pytest

from grm_jax.data import tokenized_example
from grm_jax.judgement.prompt_format import PromptFormat
from grm_jax.judges.baselines.scalar_rm import META
from grm_jax.model import logprobs
from grm_jax.model.batch import Batch
from grm_jax.sharding import mesh, rules
from grm_jax.stages.reward_model import data as rm_data
from grm_jax.stages.reward_model.data import RewardDataset
from grm_jax.stages.reward_model.evaluate import RewardModelEvaluator
from tests.judges.fake import words
from tests.messages import names, naming, setting
from tests.model import tiny
from tests.stages.reward_model.test_data import (
  EXAMPLES_OF_SEVERAL,
  LIMITS,
  PAIR,
  example,
  sample,
)

LN3 = math.log(3)  # of probability 3/4
FIRST = example('first', 'good', 'bad', best=0)
LONE = example('lone', 'x', rewards=(1.0,))

# Of PAIR, whose best is 1, votes are right; of FIRST only guided ones are.
SAMPLES = {
  'pair': [
    sample('pair', (0, 1), *x) for x in ((1, 5), (5, 6), (4, 8), (7, 6))
  ],
  'first': [
    sample('first', (0, 1), 9, 2),
    sample('first', (0, 1), 1, 5),
    sample('first', (1, 0), 6, 2),  # as they were shown
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

FORMS = PromptFormat(META, 'single')


def held_out(kind='meta', model=None, limits=LIMITS, data=None, prompts=1):
  if data is None:
    data = RewardDataset({x.id: x for x in (PAIR, FIRST, LONE)}, SAMPLES)
  rows = rm_data.rows_of(kind, data, FORMS, words(), limits, 'held-out data')
  return RewardModelEvaluator(
    kind,
    data,
    rows,
    model or tiny.gemma(scalar=True),
    FORMS,
    prompts=prompts,
    limits=limits,
    seed=0,
  )


def measured(judge, values, workdir, monkeypatch):
  """Its figures, were these the values by example and place."""
  found = [tuple(values[x.example, i] for i in x.places) for x in judge._rows]
  monkeypatch.setattr(judge, 'values', lambda params: found)
  return judge.measure({}, str(workdir))


def test_figures_of_a_meta_rm(tmp_path, monkeypatch):
  found = measured(held_out(), VALUES, tmp_path, monkeypatch)
  # Right: ln 3, -ln 3 and ln 3 of PAIR, ln 3 of FIRST, 0 of LONE. Wrong:
  # -ln 3 of PAIR; -ln 3, -2 and -ln 3 of FIRST.
  assert found['count'] == 9 and found['right'] == pytest.approx(5 / 9)
  # Of 20 pairs, -ln 3 is as high as three wrong ones and above the fourth.
  assert found['auc'] == pytest.approx((4 * 4 + 3 / 2 + 1) / 20)
  # Wrong ones weigh 5/4 each: five of ten parts; 0 counts as wrong.
  assert found['accuracy'] == pytest.approx((3 + 4 * 5 / 4) / 10)
  low = 1 / (1 + math.exp(2))
  logs = [3 * math.log(3 / 4), math.log(1 / 4), math.log(1 / 2)]
  logs += [5 / 4 * 3 * math.log(3 / 4), 5 / 4 * math.log(1 - low)]
  assert found['log_loss'] == pytest.approx(-sum(logs) / 10)
  # Bins of a tenth: 3/4 (3 parts, all right), 1/4 (1 right of 19/4 parts),
  # 1/2 (1 part, right), 0.12 (5/4 parts, wrong).
  error = 3 / 4 + (19 / 4 * 1 / 4 - 1) + 1 / 2 + 5 / 4 * low
  assert found['calibration_error'] == pytest.approx(error / 10)
  picture = (tmp_path / 'calibration.png').read_bytes()
  assert picture.startswith(b'\x89PNG')


def test_votes_of_a_meta_rm(tmp_path, monkeypatch):
  found = measured(held_out(), VALUES, tmp_path, monkeypatch)
  # PAIR: 17 to 25, guided 5 to 13, one 1 to 5. FIRST: 12 to 13, guided 10
  # to 7, one 9 to 2.
  assert found['votes_examples'] == 2
  assert found['voting_4'] == 1 / 2
  assert found['guided_4'] == 1.0
  assert found['best_of_4'] == 1.0
  # A single judgement: three of four, and one of four, are right.
  for name in ('voting_1', 'guided_1', 'best_of_1'):
    assert found[name] == (3 / 4 + 1 / 4) / 2
  assert {k for k in found if k.startswith('voting')} == {
    f'voting_{k}' for k in (1, 2, 4)
  }


def test_examples_with_fewer_judgements_have_no_votes(
  tmp_path, monkeypatch, caplog
):
  more = RewardDataset(
    {x.id: x for x in (PAIR, FIRST, LONE)},
    SAMPLES | {'first': SAMPLES['first'][:3]},
  )
  with caplog.at_level('WARNING'):
    judge = held_out(data=more)
  assert any(names(x, 4, 1, 2) for x in caplog.messages)
  found = measured(judge, VALUES, tmp_path, monkeypatch)
  assert found['votes_examples'] == 1 and found['voting_4'] == 1.0


def test_figures_of_bradley_terry(tmp_path, monkeypatch):
  judge = held_out('bradley_terry', data=RewardDataset(EXAMPLES_OF_SEVERAL, {}))
  # THREE's best is 0 and beats only one of two, PAIR's is 1 and beats 0.
  values = {
    ('pair', 1): LN3,
    ('pair', 0): 0.0,
    ('three', 0): 0.0,
    ('three', 1): -LN3,
    ('three', 2): LN3,
  }
  found = measured(judge, values, tmp_path, monkeypatch)
  # PAIR weighs 2, each pair of THREE 1; all in both orders.
  assert found['count'] == 6
  assert found['accuracy'] == pytest.approx(3 / 4)
  logs = 3 * math.log(3 / 4) + math.log(1 / 4)
  assert found['log_loss'] == pytest.approx(-logs / 4)
  assert found['best_of_n'] == 1 / 2
  assert found['calibration_error'] == pytest.approx(0, abs=1e-9)
  # ln 3 twice and -ln 3 once, over its negatives.
  assert found['auc'] == pytest.approx((2 * 2 + 4 / 2) / 9)


def test_figures_of_pairs(tmp_path, monkeypatch):
  judge = held_out('pair', data=RewardDataset({'pair': PAIR}, {}))
  values = {('pair', 0): 2.0, ('pair', 1): 1.0}  # by the second of the pair
  found = measured(judge, values, tmp_path, monkeypatch)
  assert found['auc'] == 1.0 and found['accuracy'] == 1 / 2
  assert found['count'] == 2 and 'best_of_n' not in found


def test_values_are_the_models(tmp_path):
  """Padded, batched and split over devices, against one by one."""
  layout = rules.layout(mesh.make_mesh(fsdp=8), rules.RULES)
  model = tiny.gemma(layout, scalar=True, vocab_size=1024)
  params = tiny.params(model)
  limits = tokenized_example.limits((256, 600), (16, 64), 2)
  judge = held_out(model=model, limits=limits, prompts=8)
  found = judge.values(params)
  alone = tiny.gemma(scalar=True, vocab_size=1024)
  for row, values in zip(judge._rows[::3], found[::3], strict=True):
    assert len(values) == len(row.labels)
    for own, value in zip(row.record.generations, values, strict=True):
      prompt = row.record.prompt[None]
      one = Batch(
        prompt,
        np.array([prompt.shape[1]], np.int32),
        own[None, None],
        np.array([[len(own)]], np.int32),
      )
      expected = logprobs.values(alone, tiny.params(alone), one)
      assert value == pytest.approx(float(expected[0, 0]), abs=1e-4)


def test_prompts_that_the_mesh_cannot_split():
  layout = rules.layout(mesh.make_mesh(fsdp=8), rules.RULES)
  model = tiny.gemma(layout, scalar=True)
  with pytest.raises(
    ValueError, match=naming(*setting('evaluation.prompts', 4), 8)
  ):
    held_out(model=model, prompts=4)
