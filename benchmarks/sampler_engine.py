"""The Engine under measurement."""

import argparse
import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.sampler_baselines import BOS_ID, Contender
from benchmarks.workload import Case
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.model.config import ModelConfig
from grm_jax.model.init import init_params
from grm_jax.model.transformer import Transformer
from grm_jax.sampling import decode_state, decode_weights
from grm_jax.sampling.engine import Engine
from grm_jax.sampling.request import Generation, RejectedRequest, Request
from grm_jax.sharding import mesh


# Without eq, so that caches can be keyed by it.
@dataclasses.dataclass(frozen=True, eq=False)
class Bench:
  """What every measurement is given."""

  model: Transformer
  params: dict
  weights: decode_state.DecodeWeights
  options: argparse.Namespace


def make_bench(size: ModelConfig, options: argparse.Namespace) -> Bench:
  """A random model of that size, ready to decode."""
  model = Transformer(size, ComputeConfig(), mesh.one_device())
  params = init_params(model, jax.random.key(0))
  # As they are born, layers hardly change the embedding and a tied head
  # repeats the last token; louder ones make the comparison of tokens a check.
  for kind in params['pairs'].values():
    for name in ('post_attention_norm', 'post_mlp_norm'):
      kind[name]['scale'] = jnp.full_like(kind[name]['scale'], 3.0)
  weights, _ = decode_weights.place(model, params)
  return Bench(model, params, weights, options)


def make_engine(
  bench: Bench,
  prompts: int,
  rows: int,
  size: int,
  buckets: Sequence[int],
  stop_ids: Sequence[int] = (),
  chunk: int | None = None,
) -> Engine:
  """The one place that knows how an Engine is made; everything compiled."""
  engine = Engine(
    bench.model,
    prompts=prompts,
    generations_per_prompt=rows,
    max_new_tokens=size,
    prompt_buckets=buckets,
    decode_steps_per_call=chunk or bench.options.chunk,
    stop_ids=stop_ids,
  )
  engine.warm_up(bench.weights)
  return engine


def generate(
  engine: Engine,
  weights: decode_state.DecodeWeights,
  requests: Sequence[Request],
) -> list[Generation]:
  """Everything the engine makes of the requests."""
  found = list(engine.run(weights, requests))
  for item in found:
    if isinstance(item, RejectedRequest):
      raise RuntimeError(
        f'request {item.request_id} was refused: {item.reason}'
      )
  return found


def random_prompts(bench: Bench, sizes: Sequence[int]) -> list[list[int]]:
  """Prompts of the given numbers of tokens, bos first."""
  rng, most = np.random.default_rng(0), bench.model.config.vocab_size
  return [[BOS_ID, *rng.integers(4, most, n - 1).tolist()] for n in sizes]


def ours(bench: Bench) -> Contender:
  """The Engine as a contender, see sampler_peers.py."""

  def prepare(case, prompts, temperature):
    engine = make_engine(
      bench, case.prompts, case.rows, case.new_tokens, (case.prompt_size,)
    )
    return engine_run(engine, bench.weights, case, prompts, temperature)

  return prepare


def engine_run(
  engine: Engine,
  weights: decode_state.DecodeWeights,
  case: Case,
  prompts: Sequence[Sequence[int]],
  temperature: float = 1.0,
) -> Callable[[int], np.ndarray]:
  """Seed -> tokens [P, R, T] of a case."""

  def run(seed):
    requests = [
      Request(
        id=str(number),
        prompt=prompt,
        num_samples=case.rows,
        max_tokens=case.new_tokens,
        temperature=temperature,
        seed=seed,
        tag=number,
      )
      for number, prompt in enumerate(prompts)
    ]
    found = generate(engine, weights, requests)
    found.sort(key=lambda item: (item.tag, item.sample))
    tokens = np.stack([item.tokens for item in found])
    return tokens.reshape(case.prompts, case.rows, -1)

  return run


def cache_bytes(engine: Engine) -> int:
  """Returns the bytes of the keys and values of a run in the longest bucket."""
  compiled = engine.compiled
  slots = compiled.empty_slots(compiled.shapes.prompt_buckets[-1])
  arrays = (slots.caches, compiled.init_state().caches)
  return sum(x.nbytes for x in jax.tree.leaves(arrays))
