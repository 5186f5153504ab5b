"""Generation against full forward passes, and what it must not depend on."""

import logging

import jax
import numpy as np
import pytest

from grm_jax.errors import UserError
from grm_jax.model import logprobs
from grm_jax.model.batch import Batch
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.sampling import decode_weights
from grm_jax.sampling.engine import Engine
from grm_jax.sampling.request import Generation, RejectedRequest, Request
from grm_jax.sampling.token_sampling import truncate
from tests.messages import names, naming
from tests.model import tiny
from tests.sampling.test_token_sampling import settings

MODEL = tiny.gemma()  # window 6, 250 live rows of 256
PARAMS = tiny.params(MODEL)
WEIGHTS, _ = decode_weights.place(MODEL, PARAMS)
STOP = tuple(range(10, 20))
SIZE = 24  # own tokens cross the window four times
_RNG = np.random.default_rng(0)
# One shorter than the window, one that crosses it, one that fills the bucket.
PROMPTS = [_RNG.integers(10, 250, n).tolist() for n in (3, 11, 16)]
CUT = {'top_p': 0.8, 'top_k': 50}


SHAPES = dict(
  prompts=3,
  generations_per_prompt=4,
  max_new_tokens=SIZE,
  decode_steps_per_call=5,
  prompt_buckets=(16,),
)


def engine(**changes):
  return Engine(MODEL, **SHAPES | {'stop_ids': STOP} | changes)


def asked(num_samples, order=(0, 1, 2), **fields):
  return [
    Request(str(i), PROMPTS[i], num_samples, tag=i, **fields) for i in order
  ]


def by_name(items):
  """{(request, sample): Generation}, each once."""
  items = list(items)
  found = {(g.request_id, g.sample): g for g in items}
  assert len(found) == len(items)
  return found


@jax.jit
def _all_logits(batch):
  hidden = MODEL.apply({'params': PARAMS}, batch).prompt
  return logprobs.logits(MODEL, PARAMS['embedder']['table'], hidden)[0]


def full_logits(prompt, tokens):
  """float32 [n, V] by one forward pass over prompt and tokens."""
  text = [*prompt, *tokens]
  padded = np.zeros((1, 16 + SIZE), np.int32)
  padded[0, : len(text)] = text
  x = _all_logits(Batch(padded, np.array([len(text)], np.int32)))
  return x[len(prompt) - 1 : len(text) - 1]


@pytest.fixture(scope='module')
def drawn():
  """Four samples of each prompt with truncation."""
  return by_name(engine().run(WEIGHTS, asked(4, seed=1, **CUT)))


def assert_same(found, expected):
  assert set(found) == set(expected)
  for name, g in expected.items():
    np.testing.assert_array_equal(found[name].tokens, g.tokens)
    assert found[name].finish == g.finish
    for logps in ('sampling_logps', 'model_logps'):
      np.testing.assert_allclose(
        getattr(found[name], logps), getattr(g, logps), atol=1e-4
      )


def test_logps_equal_a_full_forward_pass(drawn):
  for g in drawn.values():
    x = full_logits(PROMPTS[g.tag], g.tokens)
    n = len(g.tokens)
    logps = jax.nn.log_softmax(x)[np.arange(n), g.tokens]
    np.testing.assert_allclose(g.model_logps, logps, atol=1e-5)
    cut = truncate(x, settings(n, **CUT))
    logps = jax.nn.log_softmax(cut)[np.arange(n), g.tokens]
    np.testing.assert_allclose(g.sampling_logps, logps, atol=1e-4)


def test_lengths_and_reasons(drawn):
  assert len(drawn) == 12
  assert {g.finish for g in drawn.values()} == {'stop', 'length'}
  for g in drawn.values():
    assert len(g.tokens) == len(g.sampling_logps) == len(g.model_logps)
    assert not set(g.tokens[:-1].tolist()) & set(STOP)
    if g.finish == 'stop':
      assert g.tokens[-1] in STOP
    else:
      assert len(g.tokens) == SIZE and g.tokens[-1] not in STOP


def test_samples_draw_apart_from_the_first_token_on():
  """One draw for all rows is a known bug of samplers."""
  many = by_name(
    engine(generations_per_prompt=8).run(
      WEIGHTS, asked(32, order=(0,), max_tokens=1)
    )
  )
  assert len(many) == 32
  assert len({int(g.tokens[0]) for g in many.values()}) > 16


@pytest.mark.parametrize(
  'shape',
  [
    {'generations_per_prompt': 1, 'prompts': 1},
    {'generations_per_prompt': 3, 'decode_steps_per_call': 1},
    {'prompts': 1, 'generations_per_prompt': 8, 'decode_steps_per_call': SIZE},
    {'prompts': 2, 'prompt_buckets': (4, 12, 32)},
    {'generations_per_prompt': 2, 'num_cache_lengths': 3},
    {
      'prompts': 4,
      'generations_per_prompt': 5,
      'decode_steps_per_call': 2,
      'num_cache_lengths': 99,
    },
    {
      'prompts': 2,
      'generations_per_prompt': 2,
      'decode_steps_per_call': 7,
      'prefill_prompts': 3,
    },
  ],
  ids=str,
)
def test_a_sample_depends_on_seed_request_and_sample_only(drawn, shape):
  """Rows begin at other steps and in other slots; nothing may show."""
  made = engine(**shape)
  for order in ([2, 0, 1], [1, 2, 0]):
    again = by_name(made.run(WEIGHTS, asked(4, order, seed=1, **CUT)))
    assert_same(again, drawn)


def test_own_caches_are_read_as_far_as_the_longest_row():
  """Whole calls of 5 steps; what is not needed is not even compiled."""
  made = engine(num_cache_lengths=3)
  assert made.compiled.shapes.cache_lengths() == [10, 15, 20]
  assert [made.compiled.shapes.cache_length(x) for x in (0, 10, 15, 20)] == [
    10,
    10,
    15,
    20,
  ]
  assert engine(
    decode_steps_per_call=99, num_cache_lengths=3
  ).compiled.shapes.cache_lengths() == [99]
  for most, count in ((15, 5), (16, 6), (24, 7)):
    list(
      made.run(WEIGHTS, asked(2, order=(0,), max_tokens=most, temperature=9.0))
    )
    assert made.compiled.count() == count


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_not_a_bit_depends_on_what_else_runs(dtype):
  """Other slots and rows, begun at other steps, beside others that leave.

  A last bit that differed would now and then be another token.
  """
  model = tiny.gemma(compute=ComputeConfig(dtype=dtype))
  weights, _ = decode_weights.place(model, PARAMS)
  made = Engine(model, **SHAPES)
  alone = by_name(made.run(weights, asked(6, seed=1)))
  for order in (1, 2, 3):
    rng = np.random.default_rng(order)
    others = [
      Request(f'other{i}', PROMPTS[i % 3], 3, 1 + int(rng.integers(SIZE)))
      for i in range(12)
    ]
    mixed = [*asked(6, seed=1), *others]
    rng.shuffle(mixed)
    leave = [f'other{i}' for i in rng.integers(0, 12, 200)]
    found = by_name(
      made.run(weights, mixed, dropped=lambda it=leave: [it.pop()])
    )
    for name, g in alone.items():
      np.testing.assert_array_equal(found[name].tokens, g.tokens)
      np.testing.assert_array_equal(found[name].model_logps, g.model_logps)


def test_many_requests_through_few_rows():
  """Every row of the small engine is given to others many times."""
  rng = np.random.default_rng(5)
  requests = [
    Request(
      f'r{i}',
      rng.integers(10, 250, rng.integers(1, 17)).tolist(),
      num_samples=int(rng.integers(1, 6)),
      max_tokens=int(rng.integers(1, SIZE + 1)),
      temperature=float(rng.choice([0, 0.7, 1.3])),
      top_k=int(rng.choice([0, 5])),
      seed=i % 2,
    )
    for i in range(30)
  ]
  small = engine(
    prompts=2,
    generations_per_prompt=2,
    prompt_buckets=(4, 8, 16),
    decode_steps_per_call=3,
  )
  wide = engine(prompts=6, generations_per_prompt=4, decode_steps_per_call=SIZE)
  found = by_name(small.run(WEIGHTS, iter(requests)))
  assert len(found) == sum(r.num_samples for r in requests)
  assert_same(found, by_name(wide.run(WEIGHTS, requests)))
  # A row is busy from its first call to the end of its last one.
  assert small.stats.occupancy > 0.6 > wide.stats.occupancy
  assert small.stats.prompts == 30
  tokens = sum(len(g.tokens) for g in found.values())
  assert small.stats.tokens == wide.stats.tokens == tokens


def test_rows_that_never_have_work_are_told(caplog):
  made = engine(generations_per_prompt=4)
  with caplog.at_level(logging.INFO, 'absl'):
    list(made.run(WEIGHTS, asked(2), progress='few'))
    list(made.run(WEIGHTS, asked(4), progress='enough'))
    list(made.run(WEIGHTS, asked(1)))
  few, enough = [x.getMessage() for x in caplog.records]
  assert names(few, 'few', 'samples', 2, 4)
  assert names(enough, 'enough') and not names(enough, 'samples')


def test_another_seed_or_request_draws_otherwise(drawn):
  seed = by_name(engine().run(WEIGHTS, asked(4, seed=2, **CUT)))
  moved = [
    Request(f'other {i}', p, 4, seed=1, **CUT) for i, p in enumerate(PROMPTS)
  ]
  moved = by_name(engine().run(WEIGHTS, moved))
  for (request, sample), g in drawn.items():
    for other in (seed[request, sample], moved[f'other {request}', sample]):
      assert not np.array_equal(other.tokens, g.tokens)


def test_greedy_equals_the_likeliest_token_step_by_step():
  made = engine(generations_per_prompt=2, stop_ids=())
  for g in made.run(WEIGHTS, asked(2, temperature=0)):
    x = full_logits(PROMPTS[g.tag], g.tokens)
    np.testing.assert_array_equal(np.argmax(x, -1), g.tokens)
    assert len(g.tokens) == SIZE and g.finish == 'length'
    assert not g.sampling_logps.any()


def test_forbidden_and_dead_ids_are_never_drawn():
  forbidden = [i for i in range(250) if i % 4]
  made = engine(forbidden_ids=forbidden, stop_ids=())
  found = list(made.run(WEIGHTS, asked(8, temperature=50.0)))
  tokens = np.concatenate([g.tokens for g in found])
  assert len(tokens) == 3 * 8 * SIZE
  assert set(tokens.tolist()) <= set(range(0, 250, 4))


def test_no_compilation_after_warm_up():
  made = engine(
    prompts=2,
    generations_per_prompt=2,
    prompt_buckets=(4, 8, 16),
    num_cache_lengths=2,
  )
  assert made.warm_up(WEIGHTS) == made.compiled.max_count() == 25
  rng = np.random.default_rng(1)
  events = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda name, _, **kw: events.append(name)
  )
  prompts = [rng.integers(10, 250, n).tolist() for n in rng.permutation(20)]
  hows = [{}, {'temperature': 0.3}, {'top_k': 4}, {'top_p': 0.9, 'min_p': 0.1}]
  requests = [
    Request(str(i), p, 3, max_tokens=1 + i, seed=i, **hows[i % 4])
    for i, p in enumerate(prompts)
  ]
  items = list(made.run(WEIGHTS, requests))
  jax.monitoring.clear_event_listeners()
  refused = [x for x in items if isinstance(x, RejectedRequest)]
  # Lengths 0 and 17 to 19 do not fit.
  assert len(refused) == 4 and len(items) == 4 + 16 * 3
  assert made.compiled.count() == 25
  assert not [name for name in events if 'backend_compile' in name]


REFUSED = [
  ({'prompt': [1] * 17}, ['prompt', 17, 16]),
  ({'prompt': []}, ['prompt']),
  ({'prompt': [1, 250]}, ['prompt', 250, 249]),
  ({'max_tokens': 25}, ['max_tokens', 25, 24]),
  ({'max_tokens': 0}, ['max_tokens', 0]),
  ({'num_samples': 0}, ['num_samples', 0]),
  ({'temperature': -1}, ['temperature', -1]),
  ({'temperature': float('nan')}, ['temperature', 'nan']),
  ({'top_p': 0.0}, ['top_p', 0.0]),
  ({'stop': ('x',)}, ['stop']),
]


@pytest.mark.parametrize('fields, words', REFUSED, ids=str)
def test_a_request_that_cannot_be_done_is_refused(fields, words):
  made = engine()
  wrong = Request(**({'id': 'wrong', 'prompt': [1]} | fields))
  (refusal,) = made.run(WEIGHTS, [wrong])
  assert refusal.request_id == 'wrong' and names(refusal.reason, *words)
  assert made.compiled.count() == 0


def test_the_others_go_on(drawn):
  wrong = [
    Request(f'wrong {i}', **({'prompt': [1]} | fields))
    for i, (fields, _) in enumerate(REFUSED)
  ]
  right = asked(4, seed=1, **CUT)
  mixed = [*wrong[:4], right[0], right[0], *wrong[4:], *right[1:]]
  items = list(engine(prompts=2).run(WEIGHTS, mixed))
  refused = {x.request_id for x in items if isinstance(x, RejectedRequest)}
  # The second of two equal ids at work at once is refused as well.
  assert refused == {r.id for r in wrong} | {'0'}
  assert_same(by_name(x for x in items if isinstance(x, Generation)), drawn)


def test_an_abandoned_run_leaves_the_engine_usable(drawn):
  made = engine(generations_per_prompt=2, decode_steps_per_call=2)
  next(made.run(WEIGHTS, asked(4, seed=3)))
  assert_same(by_name(made.run(WEIGHTS, asked(4, seed=1, **CUT))), drawn)


def test_generations_are_handed_out_while_the_device_works():
  made = engine(
    prompts=1, generations_per_prompt=1, decode_steps_per_call=2, stop_ids=()
  )
  calls = []
  decode = made.compiled.decode

  def counted(*arguments):
    calls.append(1)
    return decode(*arguments)

  made.compiled.decode = counted
  requests = [Request(str(i), PROMPTS[0], max_tokens=4) for i in range(3)]
  # Two calls for each generation; the next one's first has begun already.
  assert [len(calls) for _ in made.run(WEIGHTS, requests)] == [3, 5, 6]


def test_a_request_can_wait_for_what_another_one_generates(drawn):
  first, *others = asked(4, seed=1, **CUT)
  seen, pauses = [], []

  def requests():
    yield first
    while len(seen) < first.num_samples:
      pauses.append(1)
      yield None  # at the end there is nothing at work either
    yield from others

  found = []
  for item in engine(prompts=2).run(WEIGHTS, requests()):
    seen.append(item)
    found.append(item)
  assert pauses
  assert_same(by_name(found), drawn)
  names = [g.request_id for g in found]
  assert names[:4] == ['0'] * 4


@pytest.mark.parametrize(
  'changes, error, words',
  [
    ({'generations_per_prompt': 0}, UserError, ['generations_per_prompt', 0]),
    ({'decode_steps_per_call': 0}, UserError, ['decode_steps_per_call', 0]),
    ({'prompt_buckets': ()}, UserError, ['prompt_buckets']),
    ({'stop_ids': (250,)}, ValueError, [250]),
    ({'forbidden_ids': (-1,)}, ValueError, [-1]),
  ],
  ids=str,
)
def test_bad_engines(changes, error, words):
  with pytest.raises(error, match=naming(*words)):
    engine(**changes)


def test_requests_that_are_dropped_make_place_and_change_nothing(drawn):
  """One slot: the second prompt begins when the first is dropped."""
  machine = engine(prompts=1)

  def dropped():
    return {'0'} if machine.stats.calls == 2 else ()

  found = by_name(
    machine.run(WEIGHTS, asked(4, seed=1, **CUT), dropped=dropped)
  )
  assert {name for name, _ in found} >= {'1', '2'}
  left = {name: g for name, g in found.items() if name[0] != '0'}
  expected = {name: g for name, g in drawn.items() if name[0] != '0'}
  assert_same(left, expected)
  # Ten tokens were drawn of it before: what had ended by then came out.
  for name, g in found.items():
    if name[0] == '0':
      assert len(g.tokens) <= 10
      np.testing.assert_array_equal(g.tokens, drawn[name].tokens)
  missing = set(drawn) - set(found)
  assert missing and {name for name, _ in missing} == {'0'}


def test_what_is_dropped_before_it_came_is_still_done(drawn):
  found = by_name(
    engine().run(WEIGHTS, asked(4, seed=1, **CUT), dropped=lambda: {'nobody'})
  )
  assert_same(found, drawn)
