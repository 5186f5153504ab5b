"""Generation against full forward passes, and what it must not depend on."""

import jax
import numpy as np
import pytest

from grm_jax.model import head
from grm_jax.model.batch import Batch
from grm_jax.sampling.choose import settings, truncate
from grm_jax.sampling.generate import Sampler
from tests.model import tiny

MODEL = tiny.gemma()  # window 6, 250 live rows of 256
PARAMS = tiny.params(MODEL)
STOP = tuple(range(10, 20))
SIZE = 24  # own tokens cross the window four times
_RNG = np.random.default_rng(0)
# One shorter than the window, one that crosses it, one that fills the bucket.
PROMPTS = [_RNG.integers(10, 250, n).tolist() for n in (3, 11, 16)]


def sampler(prompts=3, rows=4, buckets=(16,), **changes):
  options = {'size': SIZE, 'stop_ids': STOP} | changes
  return Sampler(
    MODEL, PARAMS, prompts=prompts, rows=rows, buckets=buckets, **options
  )


def by_name(generations):
  """{(request, sample): Generation}, each once."""
  generations = list(generations)
  found = {(g.request, g.sample): g for g in generations}
  assert len(found) == len(generations)
  return found


@jax.jit
def _all_logits(batch):
  hidden = MODEL.apply({'params': PARAMS}, batch).prompt
  return head.logits(MODEL, PARAMS['embedder']['table'], hidden)[0]


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
  return by_name(sampler().generate(PROMPTS, 4, seed=1, top_p=0.8, top_k=50))


def test_logps_equal_a_full_forward_pass(drawn):
  for (request, _), g in drawn.items():
    x = full_logits(PROMPTS[request], g.tokens)
    n = len(g.tokens)
    logps = jax.nn.log_softmax(x)[np.arange(n), g.tokens]
    np.testing.assert_allclose(g.model_logps, logps, atol=1e-5)
    cut = truncate(x, settings((n,), top_p=0.8, top_k=50))
    logps = jax.nn.log_softmax(cut)[np.arange(n), g.tokens]
    np.testing.assert_allclose(g.drawn_logps, logps, atol=1e-4)


def test_lengths_and_reasons(drawn):
  finishes = {g.finish for g in drawn.values()}
  assert finishes == {'stop', 'length'}
  for g in drawn.values():
    assert len(g.tokens) == len(g.drawn_logps) == len(g.model_logps)
    assert not set(g.tokens[:-1].tolist()) & set(STOP)
    if g.finish == 'stop':
      assert g.tokens[-1] in STOP
    else:
      assert len(g.tokens) == SIZE and g.tokens[-1] not in STOP


def test_samples_draw_apart_from_the_first_token_on(drawn):
  """One draw for all rows is a known bug of samplers."""
  many = by_name(sampler(rows=8).generate(PROMPTS[:1], 32, max_tokens=1))
  assert len({int(g.tokens[0]) for g in many.values()}) > 16


@pytest.mark.parametrize(
  'shape',
  [
    {'rows': 1},
    {'rows': 3},
    {'prompts': 1, 'rows': 8},
    {'prompts': 2, 'buckets': (4, 12, 32)},
  ],
  ids=str,
)
def test_a_sample_depends_on_seed_request_and_sample_only(drawn, shape):
  order = [2, 0, 1]
  again = by_name(
    sampler(**shape).generate(
      [PROMPTS[i] for i in order],
      4,
      seed=1,
      requests=order,
      top_p=0.8,
      top_k=50,
    )
  )
  assert set(again) == set(drawn)
  for name, g in drawn.items():
    np.testing.assert_array_equal(again[name].tokens, g.tokens)
    np.testing.assert_allclose(
      again[name].drawn_logps, g.drawn_logps, atol=1e-4
    )


def test_another_seed_or_request_draws_otherwise(drawn):
  how = {'top_p': 0.8, 'top_k': 50}
  seed = by_name(sampler().generate(PROMPTS, 4, seed=2, **how))
  moved = by_name(
    sampler().generate(PROMPTS, 4, seed=1, requests=[7, 8, 9], **how)
  )
  for (request, sample), g in drawn.items():
    for other in (seed[request, sample], moved[request + 7, sample]):
      assert not np.array_equal(other.tokens, g.tokens)


def test_greedy_equals_the_likeliest_token_step_by_step():
  for g in sampler(rows=2, stop_ids=()).generate(PROMPTS, 2, temperature=0):
    x = full_logits(PROMPTS[g.request], g.tokens)
    np.testing.assert_array_equal(np.argmax(x, -1), g.tokens)
    assert len(g.tokens) == SIZE and g.finish == 'length'
    assert not g.drawn_logps.any()


def test_forbidden_and_dead_ids_are_never_drawn():
  forbidden = [i for i in range(250) if i % 4]
  found = sampler(forbidden=forbidden, stop_ids=()).generate(
    PROMPTS, 8, temperature=50.0
  )
  tokens = np.concatenate([g.tokens for g in found])
  assert len(tokens) == 3 * 8 * SIZE
  assert set(tokens.tolist()) <= set(range(0, 250, 4))


def test_max_tokens_is_not_compiled_in():
  maker = sampler()
  for most in (1, 2, 7):
    found = list(maker.generate(PROMPTS, 1, max_tokens=most))
    assert max(len(g.tokens) for g in found) == most
  assert maker.programs() == 3


def test_no_compilation_after_warm_up():
  maker = sampler(prompts=2, rows=2, buckets=(4, 8, 16))
  assert maker.warm_up() == 9
  rng = np.random.default_rng(1)
  events = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda name, _, **kw: events.append(name)
  )
  prompts = [rng.integers(10, 250, n).tolist() for n in range(1, 17)]
  for number, how in enumerate(
    [{}, {'temperature': 0.3}, {'top_k': 4}, {'top_p': 0.9, 'min_p': 0.1}]
  ):
    found = list(maker.generate(prompts, 3, seed=number, **how))
    assert len(found) == 48
  jax.monitoring.clear_event_listeners()
  assert maker.programs() == 9
  assert not [name for name in events if 'backend_compile' in name]


@pytest.mark.parametrize(
  'arguments, message',
  [
    (([[1] * 17], 1), '17 tokens, the longest bucket 16'),
    (([[]], 1), 'no tokens'),
    (([[1]], 1, {'max_tokens': 25}), 'max_tokens is 25, must be 1 to 24'),
    (([[1]], 1, {'requests': [1, 2]}), '1 prompts, 2 requests'),
    (([[1]], 1, {'temperature': -1}), 'temperature is -1'),
  ],
  ids=str,
)
def test_what_cannot_be_done_is_refused_before_any_work(arguments, message):
  *positional, how = (*arguments, {})[:3]
  maker = sampler()
  with pytest.raises(ValueError, match=message):
    maker.generate(*positional, **how)
  assert maker.programs() == 0


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'rows': 0}, 'rows is 0'),
    ({'buckets': ()}, 'the smallest bucket is 0'),
    ({'stop_ids': (250,)}, 'id 250 is not below 250'),
    ({'forbidden': (-1,)}, 'id -1'),
  ],
  ids=str,
)
def test_bad_samplers(changes, message):
  with pytest.raises(ValueError, match=message):
    sampler(**changes)
