"""Setup of the grm_jax Engine for the sampler benchmarks."""

import argparse
import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.sampler_baselines import BOS_ID, Contender
from benchmarks.workload import Workload
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.model.config import ModelConfig
from grm_jax.model.init import init_params
from grm_jax.model.transformer import Transformer
from grm_jax.sampling import decode_state, decode_weights
from grm_jax.sampling.engine import Engine
from grm_jax.sampling.request import Generation, RejectedRequest, Request
from grm_jax.sharding import mesh


# eq=False makes instances hashable, which functools.cache needs.
@dataclasses.dataclass(frozen=True, eq=False)
class Bench:
  """Model, weights and options of all measurements."""

  model: Transformer
  params: dict
  weights: decode_state.DecodeWeights
  options: argparse.Namespace


def make_bench(config: ModelConfig, options: argparse.Namespace) -> Bench:
  """Initializes a random model and its decode weights."""
  model = Transformer(config, ComputeConfig(), mesh.one_device())
  params = init_params(model, jax.random.key(0))
  # Freshly initialized layers hardly change the embedding, and the tied head
  # then repeats the last token. Larger norm scales make the comparison of
  # greedy tokens meaningful.
  for kind in params['pairs'].values():
    for name in ('post_attention_norm', 'post_mlp_norm'):
      kind[name]['scale'] = jnp.full_like(kind[name]['scale'], 3.0)
  weights, _ = decode_weights.place(model, params)
  return Bench(model, params, weights, options)


def make_engine(
  bench: Bench,
  prompts: int,
  generations_per_prompt: int,
  max_new_tokens: int,
  prompt_buckets: Sequence[int],
  stop_ids: Sequence[int] = (),
  decode_steps_per_call: int | None = None,
) -> Engine:
  """Makes an Engine and compiles all its functions."""
  engine = Engine(
    bench.model,
    prompts=prompts,
    generations_per_prompt=generations_per_prompt,
    max_new_tokens=max_new_tokens,
    prompt_buckets=prompt_buckets,
    decode_steps_per_call=(
      decode_steps_per_call or bench.options.decode_steps_per_call
    ),
    stop_ids=stop_ids,
  )
  engine.warm_up(bench.weights)
  return engine


def generate(
  engine: Engine,
  weights: decode_state.DecodeWeights,
  requests: Sequence[Request],
) -> list[Generation]:
  """Runs the requests.

  Raises:
    RuntimeError: the engine rejected a request.
  """
  generations = list(engine.run(weights, requests))
  for item in generations:
    if isinstance(item, RejectedRequest):
      raise RuntimeError(
        f'request {item.request_id} was rejected: {item.reason}'
      )
  return generations


def random_prompts(bench: Bench, sizes: Sequence[int]) -> list[list[int]]:
  """Returns random prompts of the given token counts that begin with bos."""
  rng, vocab_size = np.random.default_rng(0), bench.model.config.vocab_size
  return [[BOS_ID, *rng.integers(4, vocab_size, n - 1).tolist()] for n in sizes]


def engine_contender(bench: Bench) -> Contender:
  """Wraps the Engine as a contender; see sampler_baselines.py."""

  def prepare(workload, prompts, temperature):
    engine = make_engine(
      bench,
      workload.prompts,
      workload.generations_per_prompt,
      workload.new_tokens,
      (workload.prompt_size,),
    )
    return engine_run(engine, bench.weights, workload, prompts, temperature)

  return prepare


def engine_run(
  engine: Engine,
  weights: decode_state.DecodeWeights,
  workload: Workload,
  prompts: Sequence[Sequence[int]],
  temperature: float = 1.0,
) -> Callable[[int], np.ndarray]:
  """Returns a function from a seed to tokens [P, R, T]."""

  def run(seed):
    requests = [
      Request(
        id=str(number),
        prompt=prompt,
        num_samples=workload.generations_per_prompt,
        max_tokens=workload.new_tokens,
        temperature=temperature,
        seed=seed,
        tag=number,
      )
      for number, prompt in enumerate(prompts)
    ]
    generations = generate(engine, weights, requests)
    generations.sort(key=lambda item: (item.tag, item.sample))
    tokens = np.stack([item.tokens for item in generations])
    return tokens.reshape(workload.prompts, workload.generations_per_prompt, -1)

  return run


def cache_bytes(engine: Engine) -> int:
  """Returns the bytes of all KV caches with the longest prompt bucket."""
  compiled = engine.compiled
  slots = compiled.empty_slots(compiled.shapes.prompt_buckets[-1])
  arrays = (slots.caches, compiled.init_state().caches)
  return sum(x.nbytes for x in jax.tree.leaves(arrays))
