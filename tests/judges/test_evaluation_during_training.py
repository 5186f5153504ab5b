"""Figures of judgements made by hand, and an engine that changes weights."""

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
  'found, expected',
  [
    # Right and shown last; wrong and shown first; a tie; a failure.
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
    # Single responses count for accuracy only; 0 is right for a wrong one.
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
    # A tie that the best is not in is a mistake, no tie; it has no winner.
    (
      [judged(FOUR, sample((1, 5, 5, 2))), judged(PAIR, sample((4, 4)))],
      dict(ties=1 / 2, first_position_win_rate=0.0, examples=2),
    ),
    # Where a winner was shown goes by the order: here the winner 1 was first.
    (
      [judged(PAIR, sample((2, 9), (1, 0)))],
      dict(
        accuracy=1.0, pair_accuracy=1.0, first_position_win_rate=1.0, examples=1
      ),
    ),
    # Over all samples, of which examples may have different numbers.
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
def test_figures(found, expected):
  nothing = dict.fromkeys(
    [f.name for f in dataclasses.fields(EvalMetrics)], 0.0
  )
  nothing['mean_generation_length'] = 10.0
  figures = dataclasses.asdict(evaluation_during_training.eval_metrics(found))
  assert figures == pytest.approx(nothing | expected)


@pytest.mark.parametrize(
  'bad, words',
  [
    (example('x', 'a', 'b'), ['x', 'best']),
    (example('x', 'a'), ['x', 'label']),
  ],
)
def test_examples_that_do_not_say_what_is_right(bad, words):
  with pytest.raises(UserError, match=naming(*words)):
    evaluation_during_training.eval_metrics([judged(bad, sample(None))])
  # Before training, not at the first measurement.
  with pytest.raises(UserError, match=naming(*words)):
    made([PAIR, bad])


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


def made(examples, **changes):
  settings = JudgeConfig(template='practice', single='practice_single')
  return JudgeEvaluator(
    examples, gemma(), load_tokenizer(), settings, **SHAPES | changes
  )


def test_wrong_sizes_are_seen_before_training():
  with pytest.raises(UserError, match=naming('decode_steps_per_call', 0)):
    made([PAIR], decode_steps_per_call=0)


def params_that_write(favourite):
  """Zeros, but the embedding of one id is twice that of the others.

  All layers add nothing, so that the logits of every place are the same, and
  greedy decoding writes the favourite.
  """
  zeros = jax.tree.map(lambda x: 0 * x, tiny.params(gemma()))

  def leaf(path, x):
    if 'embed' not in jax.tree_util.keystr(path):
      return x
    assert x.shape[0] >= 1024
    return (x + 1).at[favourite].set(2.0)

  return jax.tree_util.tree_map_with_path(leaf, zeros)


# Five turns, which can be cut to 200 characters each and no further.
LONG = dataclasses.replace(
  PAIR, id='long', query=(Turn('user', '2?' * 150),) * 5
)


def test_new_parameters_are_measured_and_nothing_is_compiled_again(caplog):
  judge = made([PAIR, LONG, FOUR, RIGHT])
  (letter,) = load_tokenizer().encode('e')
  silent, talkative = (
    params_that_write(i) for i in (load_tokenizer().end_of_turn_id, letter)
  )
  one = judge.measure(silent)
  assert (one.parse_failures, one.truncated_fraction) == (1.0, 0.0)
  assert one.mean_generation_length <= 1
  # The one that fits no prompt is left out, and named.
  assert one.examples == 3
  assert any(names(x, 1, 4, 'long') for x in caplog.messages)
  events = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda name, _, **unused: events.append(name)
  )
  two = judge.measure(talkative)
  again = judge.measure(silent)
  jax.monitoring.clear_event_listeners()
  assert (two.truncated_fraction, two.mean_generation_length, two.examples) == (
    1.0,
    6.0,
    3,
  )
  assert again == one
  assert not [name for name in events if 'backend_compile' in name]
  written = [s.text for x in judge.judged(talkative) for s in x.samples]
  assert written == ['eeeeee'] * 3
  # Between two evaluations the devices hold no second copy of the weights.
  assert judge._judge.weights is None


def test_an_engine_is_shared_and_keeps_nothing():
  """Rollouts and evaluations use one; their caches end with each of them."""
  engine = make_engine(gemma(), load_tokenizer(), **SHAPES)
  settings = JudgeConfig(template='practice', single='practice_single')
  judge = JudgeEvaluator(
    [PAIR, FOUR, RIGHT], gemma(), load_tokenizer(), settings, engine
  )
  params = params_that_write(load_tokenizer().end_of_turn_id)
  before = len(jax.live_arrays())
  calls = iter([False, True])
  assert judge.judged(params, stops=lambda: next(calls)) is None
  assert engine.compiled.count() and len(jax.live_arrays()) == before
  # One that was stopped leaves nothing behind.
  assert len(judge.judged(params)) == 3
  assert len(jax.live_arrays()) == before


@pytest.mark.parametrize(
  'found, expected',
  [
    # Votes are summed: 9 + 2 against 2 + 8; here 1 is the best.
    ([judged(PAIR, sample((2, 9)), sample((8, 2)))], 1.0),
    ([judged(PAIR, sample((9, 2)), sample((2, 8)))], 0.0),
    ([judged(PAIR, sample((9, 2)), sample((2, 9)))], 1 / 2),
    ([judged(PAIR, sample((2, 9)), sample(None), sample(None))], 1.0),
    ([judged(PAIR, sample(None))], 0.0),
    ([judged(RIGHT, sample((1,)), sample((0,)), sample((1,)))], 1.0),
    ([judged(WRONG, sample((1,)), sample((0,)), sample((1,)))], 0.0),
    # Even votes on a label are a tie as well.
    ([judged(RIGHT, sample((1,)), sample((0,)))], 1 / 2),
    ([judged(WRONG, sample((1,)), sample((0,)))], 1 / 2),
    ([judged(WRONG, sample(None))], 0.0),
    ([judged(PAIR, sample((2, 9))), judged(WRONG, sample((1,)))], 1 / 2),
    ([], 0.0),
  ],
)
def test_voting_accuracy(found, expected):
  assert evaluation_during_training.voting_accuracy(found) == pytest.approx(
    expected
  )
