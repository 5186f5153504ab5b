"""Generations equal full forward passes and do not depend on scheduling."""

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
from tests.sampling.test_token_sampling import make_params

MODEL = tiny.gemma()  # window 6, 250 live rows of 256
PARAMS = tiny.params(MODEL)
WEIGHTS, _ = decode_weights.place(MODEL, PARAMS)
STOP = tuple(range(10, 20))
MAX_NEW_TOKENS = 24  # generations cross the window four times
_RNG = np.random.default_rng(0)
# One shorter than the window, one that crosses it, one that fills the bucket.
PROMPTS = [_RNG.integers(10, 250, n).tolist() for n in (3, 11, 16)]
CUT = {'top_p': 0.8, 'top_k': 50}


SHAPES = dict(
  prompts=3,
  generations_per_prompt=4,
  max_new_tokens=MAX_NEW_TOKENS,
  decode_steps_per_call=5,
  prompt_buckets=(16,),
)


def engine(**changes):
  return Engine(MODEL, **SHAPES | {'stop_ids': STOP} | changes)


def make_requests(num_samples, order=(0, 1, 2), **fields):
  return [
    Request(str(i), PROMPTS[i], num_samples, tag=i, **fields) for i in order
  ]


def by_name(items):
  """Returns {(request id, sample): Generation}; each must be there once."""
  items = list(items)
  by_key = {(g.request_id, g.sample): g for g in items}
  assert len(by_key) == len(items)
  return by_key


@jax.jit
def _all_logits(batch):
  hidden = MODEL.apply({'params': PARAMS}, batch).prompt
  return logprobs.logits(MODEL, PARAMS['embedder']['table'], hidden)[0]


def full_logits(prompt, tokens):
  """Returns float32 [n, V] by one forward pass over prompt and tokens."""
  text = [*prompt, *tokens]
  padded = np.zeros((1, 16 + MAX_NEW_TOKENS), np.int32)
  padded[0, : len(text)] = text
  x = _all_logits(Batch(padded, np.array([len(text)], np.int32)))
  return x[len(prompt) - 1 : len(text) - 1]


@pytest.fixture(scope='module')
def sampled():
  """Four samples of each prompt, with truncation."""
  return by_name(engine().run(WEIGHTS, make_requests(4, seed=1, **CUT)))


def assert_same(generations, expected):
  assert set(generations) == set(expected)
  for name, g in expected.items():
    np.testing.assert_array_equal(generations[name].tokens, g.tokens)
    assert generations[name].finish == g.finish
    for logps in ('sampling_logps', 'model_logps'):
      np.testing.assert_allclose(
        getattr(generations[name], logps), getattr(g, logps), atol=1e-4
      )


@pytest.mark.parametrize('stop', [(), ('never',)])
def test_a_sample_without_a_text_does_not_end_the_others(stop):
  """The detokenizer raises at one token, as at a dead id."""
  results = list(engine().run(WEIGHTS, make_requests(4, seed=1)))
  bad_token = int(results[0].tokens[0])

  def detokenize(ids):
    if bad_token in ids:
      raise ValueError(f'cannot decode id {bad_token}')
    return ' '.join(map(str, ids))

  faulty = engine(detokenize=detokenize)
  items = list(faulty.run(WEIGHTS, make_requests(4, seed=1, stop=stop)))
  rejected = [x for x in items if isinstance(x, RejectedRequest)]
  good = [x for x in results if bad_token not in x.tokens]
  assert len(rejected) == len(results) - len(good) > 0 and good
  assert all(names(x.reason, bad_token) and x.tag is not None for x in rejected)
  assert_same(
    by_name(x for x in items if isinstance(x, Generation)), by_name(good)
  )


def test_logps_equal_a_full_forward_pass(sampled):
  for g in sampled.values():
    x = full_logits(PROMPTS[g.tag], g.tokens)
    n = len(g.tokens)
    logps = jax.nn.log_softmax(x)[np.arange(n), g.tokens]
    np.testing.assert_allclose(g.model_logps, logps, atol=1e-5)
    cut = truncate(x, make_params(n, **CUT))
    logps = jax.nn.log_softmax(cut)[np.arange(n), g.tokens]
    np.testing.assert_allclose(g.sampling_logps, logps, atol=1e-4)


def test_lengths_and_finish(sampled):
  assert len(sampled) == 12
  assert {g.finish for g in sampled.values()} == {'stop', 'length'}
  for g in sampled.values():
    assert len(g.tokens) == len(g.sampling_logps) == len(g.model_logps)
    assert not set(g.tokens[:-1].tolist()) & set(STOP)
    if g.finish == 'stop':
      assert g.tokens[-1] in STOP
    else:
      assert len(g.tokens) == MAX_NEW_TOKENS and g.tokens[-1] not in STOP


def test_samples_differ_at_the_first_token():
  """Sharing one random number between rows is a known bug of samplers."""
  many = by_name(
    engine(generations_per_prompt=8).run(
      WEIGHTS, make_requests(32, order=(0,), max_tokens=1)
    )
  )
  assert len(many) == 32
  assert len({int(g.tokens[0]) for g in many.values()}) > 16


@pytest.mark.parametrize(
  'shape',
  [
    {'generations_per_prompt': 1, 'prompts': 1},
    {'generations_per_prompt': 3, 'decode_steps_per_call': 1},
    {
      'prompts': 1,
      'generations_per_prompt': 8,
      'decode_steps_per_call': MAX_NEW_TOKENS,
    },
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
def test_a_sample_depends_on_seed_key_and_number_only(sampled, shape):
  """Rows start at other steps and in other slots."""
  sampler = engine(**shape)
  for order in ([2, 0, 1], [1, 2, 0]):
    again = by_name(
      sampler.run(WEIGHTS, make_requests(4, order, seed=1, **CUT))
    )
    assert_same(again, sampled)


def test_cache_length_covers_the_longest_row():
  """Multiples of 5 steps; functions that are not needed are not compiled."""
  sampler = engine(num_cache_lengths=3)
  assert sampler.compiled.shapes.cache_lengths() == [10, 15, 20]
  assert [sampler.compiled.shapes.cache_length(x) for x in (0, 10, 15, 20)] == [
    10,
    10,
    15,
    20,
  ]
  assert engine(
    decode_steps_per_call=99, num_cache_lengths=3
  ).compiled.shapes.cache_lengths() == [99]
  for max_tokens, count in ((15, 5), (16, 6), (24, 7)):
    list(
      sampler.run(
        WEIGHTS,
        make_requests(2, order=(0,), max_tokens=max_tokens, temperature=9.0),
      )
    )
    assert sampler.compiled.count() == count


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_generations_are_bit_identical_beside_other_requests(dtype):
  """Slots, rows, first steps and cancelled requests beside it vary.

  A difference in the last bit would sometimes change a token.
  """
  model = tiny.gemma(compute=ComputeConfig(dtype=dtype))
  weights, _ = decode_weights.place(model, PARAMS)
  sampler = Engine(model, **SHAPES)
  alone = by_name(sampler.run(weights, make_requests(6, seed=1)))
  for order in (1, 2, 3):
    rng = np.random.default_rng(order)
    other_requests = [
      Request(
        f'other{i}', PROMPTS[i % 3], 3, 1 + int(rng.integers(MAX_NEW_TOKENS))
      )
      for i in range(12)
    ]
    mixed = [*make_requests(6, seed=1), *other_requests]
    rng.shuffle(mixed)
    cancelled = [f'other{i}' for i in rng.integers(0, 12, 200)]
    generations = by_name(
      sampler.run(weights, mixed, dropped=lambda it=cancelled: [it.pop()])
    )
    for name, g in alone.items():
      np.testing.assert_array_equal(generations[name].tokens, g.tokens)
      np.testing.assert_array_equal(
        generations[name].model_logps, g.model_logps
      )


def test_many_requests_through_few_rows():
  """The small engine refills every row many times."""
  rng = np.random.default_rng(5)
  requests = [
    Request(
      f'r{i}',
      rng.integers(10, 250, rng.integers(1, 17)).tolist(),
      num_samples=int(rng.integers(1, 6)),
      max_tokens=int(rng.integers(1, MAX_NEW_TOKENS + 1)),
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
  wide = engine(
    prompts=6, generations_per_prompt=4, decode_steps_per_call=MAX_NEW_TOKENS
  )
  generations = by_name(small.run(WEIGHTS, iter(requests)))
  assert len(generations) == sum(r.num_samples for r in requests)
  assert_same(generations, by_name(wide.run(WEIGHTS, requests)))
  assert small.stats.occupancy > 0.6 > wide.stats.occupancy
  assert small.stats.prompts == 30
  tokens = sum(len(g.tokens) for g in generations.values())
  assert small.stats.tokens == wide.stats.tokens == tokens


def test_the_log_reports_rows_without_samples(caplog):
  sampler = engine(generations_per_prompt=4)
  with caplog.at_level(logging.INFO, 'absl'):
    list(sampler.run(WEIGHTS, make_requests(2), progress='few'))
    list(sampler.run(WEIGHTS, make_requests(4), progress='enough'))
    list(sampler.run(WEIGHTS, make_requests(1)))
  few, enough = [x.getMessage() for x in caplog.records]
  assert names(few, 'few', 'samples', 2, 4)
  assert names(enough, 'enough') and not names(enough, 'samples')


def test_another_seed_or_key_changes_the_samples(sampled):
  other_seed = by_name(engine().run(WEIGHTS, make_requests(4, seed=2, **CUT)))
  requests = [
    Request(f'other {i}', p, 4, seed=1, **CUT) for i, p in enumerate(PROMPTS)
  ]
  other_key = by_name(engine().run(WEIGHTS, requests))
  for (request, sample), g in sampled.items():
    for other in (
      other_seed[request, sample],
      other_key[f'other {request}', sample],
    ):
      assert not np.array_equal(other.tokens, g.tokens)


def test_greedy_takes_the_most_likely_token():
  sampler = engine(generations_per_prompt=2, stop_ids=())
  for g in sampler.run(WEIGHTS, make_requests(2, temperature=0)):
    x = full_logits(PROMPTS[g.tag], g.tokens)
    np.testing.assert_array_equal(np.argmax(x, -1), g.tokens)
    assert len(g.tokens) == MAX_NEW_TOKENS and g.finish == 'length'
    assert not g.sampling_logps.any()


def test_forbidden_and_dead_ids_are_never_sampled():
  forbidden = [i for i in range(250) if i % 4]
  sampler = engine(forbidden_ids=forbidden, stop_ids=())
  generations = list(sampler.run(WEIGHTS, make_requests(8, temperature=50.0)))
  tokens = np.concatenate([g.tokens for g in generations])
  assert len(tokens) == 3 * 8 * MAX_NEW_TOKENS
  assert set(tokens.tolist()) <= set(range(0, 250, 4))


def test_no_compilation_after_warm_up():
  sampler = engine(
    prompts=2,
    generations_per_prompt=2,
    prompt_buckets=(4, 8, 16),
    num_cache_lengths=2,
  )
  assert sampler.warm_up(WEIGHTS) == sampler.compiled.max_count() == 25
  rng = np.random.default_rng(1)
  events = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda name, _, **kw: events.append(name)
  )
  prompts = [rng.integers(10, 250, n).tolist() for n in rng.permutation(20)]
  sampling = [
    {},
    {'temperature': 0.3},
    {'top_k': 4},
    {'top_p': 0.9, 'min_p': 0.1},
  ]
  requests = [
    Request(str(i), p, 3, max_tokens=1 + i, seed=i, **sampling[i % 4])
    for i, p in enumerate(prompts)
  ]
  items = list(sampler.run(WEIGHTS, requests))
  jax.monitoring.clear_event_listeners()
  rejected = [x for x in items if isinstance(x, RejectedRequest)]
  # Lengths 0 and 17 to 19 do not fit.
  assert len(rejected) == 4 and len(items) == 4 + 16 * 3
  assert sampler.compiled.count() == 25
  assert not [name for name in events if 'backend_compile' in name]


REJECTED = [
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


@pytest.mark.parametrize('fields, message', REJECTED, ids=str)
def test_invalid_requests_are_rejected(fields, message):
  sampler = engine()
  wrong = Request(**({'id': 'wrong', 'prompt': [1], 'tag': ('a', 1)} | fields))
  (rejected,) = sampler.run(WEIGHTS, [wrong])
  assert (rejected.request_id, rejected.tag) == ('wrong', ('a', 1))
  assert names(rejected.reason, *message)
  assert sampler.compiled.count() == 0


def test_valid_requests_continue_beside_rejected_ones(sampled):
  wrong = [
    Request(f'wrong {i}', **({'prompt': [1]} | fields))
    for i, (fields, _) in enumerate(REJECTED)
  ]
  right = make_requests(4, seed=1, **CUT)
  mixed = [*wrong[:4], right[0], right[0], *wrong[4:], *right[1:]]
  items = list(engine(prompts=2).run(WEIGHTS, mixed))
  rejected = {x.request_id for x in items if isinstance(x, RejectedRequest)}
  # The second of two equal ids at one time is rejected too.
  assert rejected == {r.id for r in wrong} | {'0'}
  assert_same(by_name(x for x in items if isinstance(x, Generation)), sampled)


def test_an_abandoned_run_leaves_the_engine_usable(sampled):
  sampler = engine(generations_per_prompt=2, decode_steps_per_call=2)
  next(sampler.run(WEIGHTS, make_requests(4, seed=3)))
  assert_same(
    by_name(sampler.run(WEIGHTS, make_requests(4, seed=1, **CUT))), sampled
  )


def test_generations_are_returned_while_the_device_is_busy():
  sampler = engine(
    prompts=1, generations_per_prompt=1, decode_steps_per_call=2, stop_ids=()
  )
  calls = []
  decode = sampler.compiled.decode

  def counted(*arguments):
    calls.append(1)
    return decode(*arguments)

  sampler.compiled.decode = counted
  requests = [Request(str(i), PROMPTS[0], max_tokens=4) for i in range(3)]
  # Two calls per generation; the next generation's first call has started.
  assert [len(calls) for _ in sampler.run(WEIGHTS, requests)] == [3, 5, 6]


def test_a_request_can_depend_on_an_earlier_generation(sampled):
  first, *other_requests = make_requests(4, seed=1, **CUT)
  seen, pauses = [], []

  def requests():
    yield first
    while len(seen) < first.num_samples:
      pauses.append(1)
      yield None  # at the end the engine is idle too
    yield from other_requests

  generations = []
  for item in engine(prompts=2).run(WEIGHTS, requests()):
    seen.append(item)
    generations.append(item)
  assert pauses
  assert_same(by_name(generations), sampled)
  names = [g.request_id for g in generations]
  assert names[:4] == ['0'] * 4


@pytest.mark.parametrize(
  'changes, error, message',
  [
    ({'generations_per_prompt': 0}, UserError, ['generations_per_prompt', 0]),
    ({'decode_steps_per_call': 0}, UserError, ['decode_steps_per_call', 0]),
    ({'prompt_buckets': ()}, UserError, ['prompt_buckets']),
    ({'stop_ids': (250,)}, ValueError, [250]),
    ({'forbidden_ids': (-1,)}, ValueError, [-1]),
  ],
  ids=str,
)
def test_invalid_engines(changes, error, message):
  with pytest.raises(error, match=naming(*message)):
    engine(**changes)


def test_cancelled_requests_free_their_slots(sampled):
  """One slot: the second prompt starts when the first is cancelled."""
  sampler = engine(prompts=1)

  def dropped():
    return {'0'} if sampler.stats.calls == 2 else ()

  generations = by_name(
    sampler.run(WEIGHTS, make_requests(4, seed=1, **CUT), dropped=dropped)
  )
  assert {name for name, _ in generations} >= {'1', '2'}
  left = {name: g for name, g in generations.items() if name[0] != '0'}
  expected = {name: g for name, g in sampled.items() if name[0] != '0'}
  assert_same(left, expected)
  # It had ten tokens: its samples that had ended by then were returned.
  for name, g in generations.items():
    if name[0] == '0':
      assert len(g.tokens) <= 10
      np.testing.assert_array_equal(g.tokens, sampled[name].tokens)
  missing = set(sampled) - set(generations)
  assert missing and {name for name, _ in missing} == {'0'}


def test_cancelling_an_unknown_id_is_harmless(sampled):
  generations = by_name(
    engine().run(
      WEIGHTS, make_requests(4, seed=1, **CUT), dropped=lambda: {'nobody'}
    )
  )
  assert_same(generations, sampled)
