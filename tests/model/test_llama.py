"""The Llama-style decoder: shared prompts, packed texts and decoding.

tests/peers compares it with transformers. Here it is compared with itself, in
each place that could forget that a part is turned off.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grm_jax.model import logprobs
from grm_jax.model.batch import Batch
from grm_jax.model.config import LLAMA
from grm_jax.model.init import abstract_params, init_params
from grm_jax.sampling import decode_weights
from grm_jax.sampling.engine import Engine
from grm_jax.sampling.request import Request
from grm_jax.training import flops
from tests.model import tiny


@pytest.fixture(scope='module')
def model():
  return tiny.gemma(**LLAMA)


@pytest.fixture(scope='module')
def params(model):
  return tiny.params(model)


def separate_logps(model, params, tokens):
  """Returns log-probabilities of tokens 1, 2, ... of a single sequence."""
  batch = Batch(jnp.asarray([tokens], jnp.int32), jnp.asarray([len(tokens)]))
  return np.asarray(logprobs.prompt_logps(model, params, batch)[0][0])


def test_post_norms_have_no_parameters(model):
  names = {
    '/'.join(key.key for key in path)
    for path, _ in jax.tree_util.tree_leaves_with_path(abstract_params(model))
  }
  assert not [x for x in names if 'post' in x]
  assert {f'pairs/{x}/pre_mlp_norm/scale' for x in ('local', 'global')} <= names


def test_initial_norms_multiply_by_one(model):
  params = init_params(model, jax.random.key(0))
  assert np.all(np.asarray(params['final_norm']['scale']) == 1.0)


@pytest.mark.parametrize('field', sorted(LLAMA))
def test_every_field_affects_the_output(model, params, field):
  """One field is Gemma-2's, all others are Llama's."""
  gemma_value = getattr(tiny.CONFIG, field)
  mixed_model = tiny.gemma(**LLAMA | {field: gemma_value})
  mixed_params = params
  if field == 'post_norms':
    mixed_params = tiny.params(mixed_model)
  tokens = np.arange(1, 20)
  mixed = separate_logps(mixed_model, mixed_params, tokens)
  assert np.abs(mixed - separate_logps(model, params, tokens)).max() > 1e-4


def test_shared_prompts_equal_separate_sequences(model, params):
  batch = tiny.batch([3, 9], 10, [[4, 0], [2, 7]], 7)
  logps, _ = logprobs.generation_logps(model, params, batch)
  for p, r in np.ndindex(2, 2):
    start, count = batch.prompt_lengths[p], batch.generation_lengths[p, r]
    text = np.concatenate(
      [batch.prompts[p, :start], batch.generations[p, r, :count]]
    )
    expected = separate_logps(model, params, text)[start - 1 :]
    np.testing.assert_allclose(logps[p, r, :count], expected, atol=2e-5)


def test_packed_texts_equal_separate_sequences(model, params):
  rng = np.random.default_rng(3)
  parts = [rng.integers(1, 250, n) for n in (5, 11, 2)]
  row = np.concatenate(parts)
  segments = np.repeat([1, 2, 3], [5, 11, 2])
  batch = Batch(
    jnp.asarray(row[None], jnp.int32),
    jnp.asarray([len(row)]),
    segment_ids=jnp.asarray(segments[None], jnp.int32),
    loss_mask=jnp.ones((1, len(row)), bool),
  )
  logps, _ = logprobs.prompt_logps(model, params, batch)
  start = 0
  for part in parts:
    packed = np.asarray(logps[0, start : start + len(part) - 1])
    expected = separate_logps(model, params, part)
    np.testing.assert_allclose(packed, expected, atol=2e-5)
    start += len(part)


def test_sampled_tokens_have_the_log_probabilities_of_training(model, params):
  """Without a window, all caches grow with the sequence."""
  weights, _ = decode_weights.place(model, params)
  engine = Engine(
    model,
    prompts=2,
    generations_per_prompt=2,
    max_new_tokens=24,
    prompt_buckets=(8, 32),
    decode_steps_per_call=5,
  )
  prompts = {'a': list(range(1, 8)), 'b': list(range(20, 50))}
  requests = [Request(name, ids, 3) for name, ids in prompts.items()]
  generations = list(engine.run(weights, requests))
  assert len(generations) == 6
  for generation in generations:
    prompt = prompts[generation.request_id]
    text = [*prompt, *generation.tokens.tolist()]
    expected = separate_logps(model, params, np.array(text))
    expected = expected[len(prompt) - 1 :]
    np.testing.assert_allclose(generation.model_logps, expected, atol=5e-5)


def test_attention_flops_without_a_window():
  config = dataclasses.replace(tiny.CONFIG, window=None)
  wide = dataclasses.replace(tiny.CONFIG, window=10**6)
  lengths = [50, 3], [[20, 0], [4, 9]]
  assert flops.forward(config, *lengths) == flops.forward(wide, *lengths)
  assert flops.decode(config, 500) == flops.decode(wide, 500)
