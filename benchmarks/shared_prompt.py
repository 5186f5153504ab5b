r"""Time of one gradient computation with shared and with repeated prompts.

  python -m benchmarks.shared_prompt --repeats 5

Computes the gradient of the log-probability of R generations for each of P
prompts in three ways on the local devices: grm_jax with each prompt computed
once, grm_jax with the prompt repeated for every generation, and transformers
(torch) with the prompt repeated, if it is installed. All three are the same
function in float32, and the benchmark checks that their losses agree. The
contenders run round-robin, so that background load affects all of them. Prints
medians and ratios; --json also writes JSON.
"""

import argparse
import dataclasses
import importlib.util
import tempfile
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import hardware, harness
from benchmarks.interleaved_timing import Timings, ratio, run_interleaved
from grm_jax.checkpoint.huggingface import save as hf_save
from grm_jax.model import logprobs
from grm_jax.model.batch import Batch
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.model.config import ModelConfig
from grm_jax.model.init import init_params
from grm_jax.model.transformer import Transformer
from grm_jax.sharding import mesh

OURS = 'grm_jax, prompt shared'
CONFIG = ModelConfig(
  num_layers=4,
  width=256,
  mlp_width=1024,
  num_heads=4,
  num_kv_heads=2,
  head_dim=64,
  query_pre_attn_scalar=64,
  vocab_size=4096,
  window=256,
)


def batches(options: argparse.Namespace) -> tuple[Batch, Batch]:
  """Makes the same texts as P prompts with R generations and as P * R rows."""
  rng = np.random.default_rng(0)
  p, s = options.prompts, options.prompt_size
  r, t = options.generations, options.generation_size
  prompts = rng.integers(4, CONFIG.vocab_size, (p, s), np.int32)
  generations = rng.integers(4, CONFIG.vocab_size, (p, r, t), np.int32)
  shared = Batch(prompts, np.full(p, s), generations, np.full((p, r), t))
  sequences = np.concatenate(
    [np.repeat(prompts, r, 0), generations.reshape(p * r, t)], 1
  )  # [P * R, S + T]
  repeated = Batch(sequences, np.full(p * r, s + t))
  return jax.tree.map(jnp.asarray, (shared, repeated))


def grm_jax_step(
  model: Transformer, params: dict, batch: Batch, prompt_size: int
) -> Callable[[], float]:
  """Returns a function that computes the gradients and returns the loss."""

  def loss(params):
    if batch.generations is not None:
      return -jnp.sum(logprobs.generation_logps(model, params, batch)[0])
    logps, _ = logprobs.prompt_logps(model, params, batch)
    return -jnp.sum(logps[:, prompt_size - 1 :])

  step = jax.jit(jax.value_and_grad(loss))
  return lambda: float(jax.block_until_ready(step(params))[0])


def transformers_step(
  model: Transformer, params: dict, batch: Batch, prompt_size: int
) -> Callable[[], float]:
  """Returns the same function, implemented with transformers."""
  import torch
  import transformers

  with tempfile.TemporaryDirectory() as directory:
    hf_save.save_directory(directory, params, model)
    network = transformers.Gemma2ForCausalLM.from_pretrained(
      directory, attn_implementation='eager', dtype=torch.float32
    )
  tokens = torch.tensor(np.asarray(batch.prompts))

  def step():
    network.zero_grad()
    logits = network(tokens, use_cache=False).logits
    logits = logits[:, prompt_size - 1 : -1]  # [P * R, T, V]
    logps = torch.log_softmax(logits, -1)
    token_logps = logps.gather(-1, tokens[:, prompt_size:, None].long())
    loss = -token_logps.sum()
    loss.backward()
    return loss.item()

  return step


def measure(
  contenders: dict[str, Callable[[], float]], repeats: int
) -> dict[str, Timings]:
  """Times the contenders round-robin.

  Raises:
    RuntimeError: their losses differ.
  """
  runs = {name: lambda _, step=x: step() for name, x in contenders.items()}
  timings = run_interleaved(runs, repeats, 'shared_prompt')
  expected = timings[OURS].results[0]
  losses = {name: x.results for name, x in timings.items()}
  if any(
    abs(x - expected) > 1e-4 * abs(expected) for x in sum(losses.values(), [])
  ):
    raise RuntimeError(f'the losses of the contenders differ: {losses}')
  return timings


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--prompts', type=int, default=2)
  parser.add_argument('--prompt-size', type=int, default=512)
  parser.add_argument('--generations', type=int, default=4)
  parser.add_argument('--generation-size', type=int, default=128)
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--json', help='also write the result to this JSON file')
  options = parser.parse_args()
  shared, repeated = batches(options)
  # Without rematerialization, like torch.
  compute = ComputeConfig(remat='none', head_chunk=512)
  model = Transformer(CONFIG, compute, mesh.one_device())
  params = init_params(model, jax.random.key(0))
  contenders = {
    OURS: grm_jax_step(model, params, shared, options.prompt_size),
    'grm_jax, prompt repeated': grm_jax_step(
      model, params, repeated, options.prompt_size
    ),
  }
  if importlib.util.find_spec('transformers'):
    name = 'transformers, prompt repeated'
    contenders[name] = transformers_step(
      model, params, repeated, options.prompt_size
    )
  machine = hardware.describe()
  print(hardware.format_description(machine))
  timings = measure(contenders, options.repeats)
  print(f'{"":32} {"seconds":>8} {"ratio, spread":>18}')
  ratios = {name: ratio(x, timings[OURS]) for name, x in timings.items()}
  for name, x in timings.items():
    print(f'{name:32} {x.median:8.3f} {ratios[name]!s:>18}')
  tokens = {'shared': _num_tokens(shared), 'repeated': _num_tokens(repeated)}
  print('tokens computed:', tokens)
  result = {
    'settings': vars(options),
    **machine,
    'tokens': tokens,
    'seconds': {name: x.seconds for name, x in timings.items()},
    'times_ours': {name: dataclasses.asdict(x) for name, x in ratios.items()},
  }
  harness.write_json(options.json, result)


def _num_tokens(batch: Batch) -> int:
  num_generated = 0 if batch.generations is None else batch.generations.size
  return int(batch.prompts.size + num_generated)


if __name__ == '__main__':
  main()
