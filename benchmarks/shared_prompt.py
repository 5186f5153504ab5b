r"""What computing each prompt once is worth: one update's gradients.

  python -m benchmarks.shared_prompt --repeats 5

Gradients of the log-probability of R generations of each of P prompts, three
ways, on the devices here: grm_jax with the prompt shared, grm_jax with the
prompt repeated for every generation, and transformers (torch) with the prompt
repeated, where it is installed. All three are the same function in float32
(their losses are compared first). The contenders take turns, so that a busy
machine is busy for all; medians and ratios are printed, and JSON with --json.
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
from benchmarks.interleaved_timing import Timed, ratio, turns
from grm_jax.checkpoint.huggingface import save as hf_save
from grm_jax.model import logprobs
from grm_jax.model.batch import Batch
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.model.config import ModelConfig
from grm_jax.model.init import init_params
from grm_jax.model.transformer import Transformer
from grm_jax.sharding import mesh

OURS = 'grm_jax, prompt shared'
SIZE = ModelConfig(
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
  """The same texts as P prompts of R generations, and as P * R sequences."""
  rng = np.random.default_rng(0)
  p, s = options.prompts, options.prompt_size
  r, t = options.generations, options.generation_size
  prompts = rng.integers(4, SIZE.vocab_size, (p, s), np.int32)
  own = rng.integers(4, SIZE.vocab_size, (p, r, t), np.int32)
  shared = Batch(prompts, np.full(p, s), own, np.full((p, r), t))
  whole = np.concatenate([np.repeat(prompts, r, 0), own.reshape(p * r, t)], 1)
  repeated = Batch(whole, np.full(p * r, s + t))
  return jax.tree.map(jnp.asarray, (shared, repeated))


def ours(model: Transformer, params: dict, batch: Batch, cut: int) -> Callable:
  """() -> the loss, after its gradients are there."""

  def loss(params):
    if batch.generations is not None:
      return -jnp.sum(logprobs.generation_logps(model, params, batch)[0])
    logps, _ = logprobs.prompt_logps(model, params, batch)
    return -jnp.sum(logps[:, cut - 1 :])

  step = jax.jit(jax.value_and_grad(loss))
  return lambda: float(jax.block_until_ready(step(params))[0])


def theirs(
  model: Transformer, params: dict, batch: Batch, cut: int
) -> Callable:
  """The same by transformers."""
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
    logits = network(tokens, use_cache=False).logits[:, cut - 1 : -1]
    logps = torch.log_softmax(logits, -1)
    chosen = logps.gather(-1, tokens[:, cut:, None].long())
    loss = -chosen.sum()
    loss.backward()
    return loss.item()

  return step


def measure(contenders: dict[str, Callable], repeats: int) -> dict[str, Timed]:
  """Rounds of each, in turns; RuntimeError if their losses differ."""
  runs = {name: lambda _, step=x: step() for name, x in contenders.items()}
  found = turns(runs, repeats, 'shared_prompt')
  first = found[OURS].results[0]
  losses = {name: timed.results for name, timed in found.items()}
  if any(abs(x - first) > 1e-4 * abs(first) for x in sum(losses.values(), [])):
    raise RuntimeError(f'they compute other losses: {losses}')
  return found


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--prompts', type=int, default=2)
  parser.add_argument('--prompt-size', type=int, default=512)
  parser.add_argument('--generations', type=int, default=4)
  parser.add_argument('--generation-size', type=int, default=128)
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--json', help='also write the result there')
  options = parser.parse_args()
  shared, repeated = batches(options)
  # As torch does: no remat of layers.
  compute = ComputeConfig(remat='none', head_chunk=512)
  model = Transformer(SIZE, compute, mesh.one_device())
  params = init_params(model, jax.random.key(0))
  cut = options.prompt_size
  contenders = {
    OURS: ours(model, params, shared, cut),
    'grm_jax, prompt repeated': ours(model, params, repeated, cut),
  }
  if importlib.util.find_spec('transformers'):
    name = 'transformers, prompt repeated'
    contenders[name] = theirs(model, params, repeated, cut)
  here = hardware.here()
  print(hardware.line(here))
  found = measure(contenders, options.repeats)
  print(f'{"":32} {"seconds":>8} {"ratio, spread":>18}')
  for name, timed in found.items():
    print(f'{name:32} {timed.median:8.3f} {ratio(timed, found[OURS])!s:>18}')
  tokens = {'shared': _tokens(shared), 'repeated': _tokens(repeated)}
  print('tokens computed:', tokens)
  result = {
    'settings': vars(options),
    **here,
    'tokens': tokens,
    'seconds': {name: timed.seconds for name, timed in found.items()},
    'times_ours': {
      name: dataclasses.asdict(ratio(timed, found[OURS]))
      for name, timed in found.items()
    },
  }
  harness.write(options.json, result)


def _tokens(batch: Batch) -> int:
  own = 0 if batch.generations is None else batch.generations.size
  return int(batch.prompts.size + own)


if __name__ == '__main__':
  main()
