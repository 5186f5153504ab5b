"""Metrics of hand-made judgements, and evaluations with new weights."""

import dataclasses
import functools
import tempfile

import jax
import pytest

from grm_jax.errors import UserError
from grm_jax.judgement.example import JudgingExample, Turn
from grm_jax.judgement.judgement import JudgedExample, Judgement
from grm_jax.judges import evaluation_during_training
from grm_jax.judges.evaluation_during_training import (
  EvalMetrics,
  JudgeEvaluator,
)
from grm_jax.judges.factory import make_engine
from grm_jax.judges.generative import JudgeConfig
from grm_jax.model import config as model_config
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.model.transformer import Transformer
from grm_jax.sharding import mesh
from grm_jax.tokenizer import tiny as tiny_tokenizer
from tests.messages import names, naming
from tests.model import tiny

SHAPES = dict(
  prompts=2,
  generations_per_prompt=1,
  max_new_tokens=6,
  decode_steps_per_call=3,
  prompt_buckets=(400,),
)


def example(name, *responses, **fields):
  return JudgingExample(name, (Turn('user', 'q'),), responses, **fields)


PAIR = example('pair', 'a', 'b', best=1)
FOUR = example('four', 'a', 'b', 'c', 'd', best=0)
RIGHT = example('right', 'a', rewards=(1.0,))
WRONG = example('wrong', 'a', rewards=(0.0,))


def sample(scores, order=None, tokens=10, finish='stop'):
  order = tuple(range(len(scores or (0, 0)))) if order is None else order
  return Judgement(order, 'text', tokens, finish, scores)


def judged(example, *samples):
  return JudgedExample(example, samples)


@pytest.mark.parametrize(
  'judged_examples, expected',
  [
    # Correct, winner last; wrong, winner first; a tie; a parse failure.
    (
      [
        judged(PAIR, sample((2, 9))),
        judged(FOUR, sample((3, 8, 1, 1), (1, 0, 2, 3))),
        judged(FOUR, sample((8, 8, 1, 1))),
        judged(PAIR, sample(None)),
      ],
      dict(
        accuracy=1 / 4,
        pair_accuracy=1 / 4,
        parse_failures=1 / 4,
        ties=1 / 4,
        first_position_win_rate=1 / 2,
        examples=2,
      ),
    ),
    # Single responses count for accuracy only; 0 is correct for a wrong one.
    (
      [
        judged(RIGHT, sample((1,))),
        judged(WRONG, sample((0,))),
        judged(WRONG, sample((1,))),
        judged(PAIR, sample((7, 3))),
      ],
      dict(
        accuracy=2 / 4,
        pair_accuracy=0.0,
        first_position_win_rate=1.0,
        examples=3,
      ),
    ),
    # A tie without the best response is wrong, not a tie; it has no winner.
    (
      [judged(FOUR, sample((1, 5, 5, 2))), judged(PAIR, sample((4, 4)))],
      dict(ties=1 / 2, first_position_win_rate=0.0, examples=2),
    ),
    # The order gives the winner's position: here winner 1 stood first.
    (
      [judged(PAIR, sample((2, 9), (1, 0)))],
      dict(
        accuracy=1.0, pair_accuracy=1.0, first_position_win_rate=1.0, examples=1
      ),
    ),
    # All samples count; examples may have different numbers of samples.
    (
      [
        judged(PAIR, sample((2, 9)), sample((9, 2)), sample(None)),
        judged(WRONG, sample((0,))),
      ],
      dict(
        accuracy=2 / 4,
        pair_accuracy=1 / 3,
        parse_failures=1 / 4,
        first_position_win_rate=1 / 2,
        examples=2,
      ),
    ),
    (
      [judged(PAIR, sample(None, None, 6, 'length'), sample((1, 2), None, 3))],
      dict(
        accuracy=1 / 2,
        pair_accuracy=1 / 2,
        parse_failures=1 / 2,
        truncated_fraction=1 / 2,
        mean_generation_length=4.5,
        examples=1,
      ),
    ),
    ([], dict(mean_generation_length=0.0, examples=0)),
  ],
)
def test_eval_metrics(judged_examples, expected):
  zeros = dict.fromkeys([f.name for f in dataclasses.fields(EvalMetrics)], 0.0)
  zeros['mean_generation_length'] = 10.0
  metrics = evaluation_during_training.eval_metrics(judged_examples)
  assert dataclasses.asdict(metrics) == pytest.approx(zeros | expected)


@pytest.mark.parametrize(
  'bad, message',
  [
    (example('x', 'a', 'b'), ['x', 'best']),
    (example('x', 'a'), ['x', 'label']),
  ],
)
def test_examples_need_a_label(bad, message):
  with pytest.raises(UserError, match=naming(*message)):
    evaluation_during_training.eval_metrics([judged(bad, sample(None))])
  # The evaluator raises before training, not at its first evaluation.
  with pytest.raises(UserError, match=naming(*message)):
    evaluator([PAIR, bad])


@functools.cache
def load_tokenizer():
  with tempfile.TemporaryDirectory() as folder:
    return tiny_tokenizer.train(f'{folder}/tokenizer.model')


@functools.cache
def gemma():
  size = dataclasses.replace(
    tiny.CONFIG, vocab_size=model_config.from_name('tiny').vocab_size
  )
  return Transformer(size, ComputeConfig(), mesh.one_device())


def evaluator(examples, **changes):
  config = JudgeConfig(template='practice', single='practice_single')
  return JudgeEvaluator(
    examples, gemma(), load_tokenizer(), config, **SHAPES | changes
  )


def test_invalid_shapes_raise_before_training():
  with pytest.raises(UserError, match=naming('decode_steps_per_call', 0)):
    evaluator([PAIR], decode_steps_per_call=0)


def params_that_write(token):
  """Zeros, but the embedding of one id is twice that of the others.

  Layers add nothing, so the logits are the same at every position, and greedy
  decoding writes this token.
  """
  zeros = jax.tree.map(lambda x: 0 * x, tiny.params(gemma()))

  def leaf(path, x):
    if 'embed' not in jax.tree_util.keystr(path):
      return x
    assert x.shape[0] >= 1024
    return (x + 1).at[token].set(2.0)

  return jax.tree_util.tree_map_with_path(leaf, zeros)


# Five turns, which can be shortened to 200 characters each and no further.
LONG = dataclasses.replace(
  PAIR, id='long', query=(Turn('user', '2?' * 150),) * 5
)


def test_new_parameters_compile_nothing(caplog):
  judge = evaluator([PAIR, LONG, FOUR, RIGHT])
  (letter,) = load_tokenizer().encode('e')
  silent, talkative = (
    params_that_write(i) for i in (load_tokenizer().end_of_turn_id, letter)
  )
  first = judge.measure(silent)
  assert (first.parse_failures, first.truncated_fraction) == (1.0, 0.0)
  assert first.mean_generation_length <= 1
  # The example that fits no prompt is left out, and the log names it.
  assert first.examples == 3
  assert any(names(x, 1, 4, 'long') for x in caplog.messages)
  events = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda name, _, **unused: events.append(name)
  )
  second = judge.measure(talkative)
  again = judge.measure(silent)
  jax.monitoring.clear_event_listeners()
  assert (
    second.truncated_fraction,
    second.mean_generation_length,
    second.examples,
  ) == (
    1.0,
    6.0,
    3,
  )
  assert again == first
  assert not [name for name in events if 'backend_compile' in name]
  texts = [s.text for x in judge.judged(talkative) for s in x.samples]
  assert texts == ['eeeeee'] * 3
  # Between two evaluations the devices hold no second copy of the weights.
  assert judge._judge.weights is None


def test_a_shared_engine_keeps_no_arrays():
  """Rollouts and evaluations share it; caches are freed with each run."""
  engine = make_engine(gemma(), load_tokenizer(), **SHAPES)
  config = JudgeConfig(template='practice', single='practice_single')
  judge = JudgeEvaluator(
    [PAIR, FOUR, RIGHT], gemma(), load_tokenizer(), config, engine
  )
  params = params_that_write(load_tokenizer().end_of_turn_id)
  before = len(jax.live_arrays())
  calls = iter([False, True])
  assert judge.judged(params, stops=lambda: next(calls)) is None
  assert engine.compiled.count() and len(jax.live_arrays()) == before
  # A stopped evaluation does not affect the next one.
  assert len(judge.judged(params)) == 3
  assert len(jax.live_arrays()) == before


@pytest.mark.parametrize(
  'judged_examples, expected',
  [
    # Votes are sums: 9 + 2 against 2 + 8; response 1 is the best.
    ([judged(PAIR, sample((2, 9)), sample((8, 2)))], 1.0),
    ([judged(PAIR, sample((9, 2)), sample((2, 8)))], 0.0),
    ([judged(PAIR, sample((9, 2)), sample((2, 9)))], 1 / 2),
    ([judged(PAIR, sample((2, 9)), sample(None), sample(None))], 1.0),
    ([judged(PAIR, sample(None))], 0.0),
    ([judged(RIGHT, sample((1,)), sample((0,)), sample((1,)))], 1.0),
    ([judged(WRONG, sample((1,)), sample((0,)), sample((1,)))], 0.0),
    # A mean of 1/2 on a label is a tie.
    ([judged(RIGHT, sample((1,)), sample((0,)))], 1 / 2),
    ([judged(WRONG, sample((1,)), sample((0,)))], 1 / 2),
    ([judged(WRONG, sample(None))], 0.0),
    ([judged(PAIR, sample((2, 9))), judged(WRONG, sample((1,)))], 1 / 2),
    ([], 0.0),
  ],
)
def test_voting_accuracy(judged_examples, expected):
  accuracy = evaluation_during_training.voting_accuracy(judged_examples)
  assert accuracy == pytest.approx(expected)
