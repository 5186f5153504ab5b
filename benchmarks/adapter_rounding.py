r"""How much of what an adapter learned arrives in the weights of the sampler.

  make smollm2
  python -m benchmarks.adapter_rounding --checkpoint=runs/smollm2/model \
    --text=FILE

Trains adapters on nine tenths of the text and compares the log-probabilities of
the rest under weights for sampling with those of the trained model. The weights
are

  nearest: base and adapter merged, rounded to the nearest value: what the
    stages do for an int8 sampler of a base that is not int8;
  dithered: merged, rounded up or down at random: what they do for bfloat16, and
    for an int8 adapter that is the base of another one;
  separate: the rounded base, and the adapter beside it: what they do if base
    and sampler are int8.

`arrived` is the part of the learned change of the log-probabilities that is in
the weights (a projection; 1: all), `error` the root mean square of the
difference. Computes in float32. Prints a table; --json also writes JSON.
"""

import argparse
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import optax

from benchmarks import harness, int8
from grm_jax.checkpoint import adapter_base, model_directory
from grm_jax.model import init as model_init
from grm_jax.model import logprobs, lora, quantization
from grm_jax.model.batch import Batch
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.model.lora import LoraWeight
from grm_jax.model.transformer import Transformer
from grm_jax.sharding import mesh
from grm_jax.training.train_state import init_state
from grm_jax.training.train_step import TrainStep, supervised_loss

# Learning rates and numbers of updates: the first is early in GRPO.
TRAINING = ((1e-5, 3), (1e-4, 5))
# Dtypes of the base and of the sampler.
DTYPES = (('bfloat16', 'bfloat16'), ('int8', 'int8'), ('bfloat16', 'int8'))
PROMPTS, TOKENS, HELD_OUT = 4, 128, 16


def nearest(dtype: str, name: str, weight: LoraWeight) -> Any:
  """Returns the sum in `dtype`, rounded to nearest."""
  whole = lora.merge(name, weight, 'float32')
  if dtype == 'int8':
    return quantization.quantize_kernel(name, whole)
  return whole.astype(dtype)


def dithered(dtype: str, name: str, weight: LoraWeight) -> Any:
  """Returns the sum in `dtype`, rounded at random."""
  if dtype == 'int8':
    whole = lora.merge(name, weight, 'float32')
    return quantization.quantize_kernel(name, whole, dither=True)
  return lora.merge(name, weight, dtype)


def separate(dtype: str, name: str, weight: LoraWeight) -> Any:
  """Returns the base in `dtype`, and the adapter."""
  base = weight.base
  if dtype == 'int8' and not lora.is_weight(base):
    base = quantization.quantize_kernel(name, base)
  return LoraWeight(base, weight.a, weight.b, weight.scale)


METHODS: dict[str, Callable[[str, str, LoraWeight], Any]] = {
  x.__name__: x for x in (nearest, dithered, separate)
}


def sampler_weights(method: str, dtype: str, params: dict) -> dict:
  """Returns parameters with converted kernels, layer by layer."""

  def convert(path, x):
    if not isinstance(x, LoraWeight):
      return x
    function = functools.partial(METHODS[method], dtype, path[-1].key)
    return jax.lax.map(function, x)

  return jax.jit(
    functools.partial(
      jax.tree_util.tree_map_with_path, convert, is_leaf=lora.is_weight
    )
  )(params)


def train(
  model: Transformer, frozen: dict, rows: np.ndarray, rate: float, steps: int
) -> dict:
  """Returns the parameters with an adapter of some updates."""
  optimizer = optax.adamw(rate, b2=0.95)
  step = TrainStep(model, optimizer, functools.partial(supervised_loss, model))
  adapter = model_init.init_adapter(model, jax.random.key(0))
  state = init_state(model, optimizer, adapter)
  rng = np.random.default_rng(0)
  lengths = np.ones(PROMPTS, np.int32), np.full((PROMPTS, 1), TOKENS, np.int32)
  for _ in range(steps):
    part = rows[rng.integers(0, len(rows), PROMPTS)]  # [P, 1 + T]
    batch = Batch(part[:, :1], lengths[0], part[:, None, 1:], lengths[1])
    state, _ = step(state, [batch], frozen)
  return lora.attach(model.adapter, frozen, state.params)


def token_logps(model: Transformer, params: dict, rows: np.ndarray) -> Any:
  """Returns the log-probability of each token but the first, [N, T]."""
  batch = Batch(rows, np.full(len(rows), rows.shape[1], np.int32))
  logps = _logps(model, params, batch)
  return np.asarray(logps, np.float64)[:, 1:]


@functools.partial(jax.jit, static_argnums=0)
def _logps(model: Transformer, params: dict, batch: Batch) -> jax.Array:
  return logprobs.prompt_logps(model, params, batch)[0]


def cases(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
  """Yields a row of the table for each training, dtype and method."""
  model = model_directory.build_model(
    options.checkpoint, None, ComputeConfig(), mesh.one_device()
  )
  tokenizer = model_directory.load_tokenizer(options.checkpoint, model.config)
  text = int8.read(options.text)
  cut = round(len(text) * (1 - int8.HELD_OUT))
  rows = int8.windows(tokenizer, text[:cut][: options.characters], TOKENS)
  held_out = int8.windows(tokenizer, text[cut:], TOKENS)[:HELD_OUT]
  for base_dtype, sampler in DTYPES:
    adapter = adapter_base.new_adapter(
      '',
      options.checkpoint,
      None,
      rank=16,
      alpha=32.0,
      targets=lora.TARGETS,
      base_dtype=base_dtype,
    )
    model = model.clone(adapter=adapter)
    frozen = model_directory.load_base('', model)
    base = token_logps(model, frozen, held_out)
    for rate, steps in TRAINING:
      whole = train(model, frozen, rows, rate, steps)
      policy = token_logps(model, whole, held_out)
      change = policy - base
      for method in METHODS:
        weights = sampler_weights(method, sampler, whole)
        sampled = token_logps(model, weights, held_out)
        yield {
          'base': base_dtype,
          'sampler': sampler,
          'updates': f'{steps} x {rate:g}',
          'method': method,
          'base_perplexity': math.exp(-base.mean()),
          'policy_perplexity': math.exp(-policy.mean()),
          'change': math.sqrt(np.mean(change**2)),
          'error': math.sqrt(np.mean((sampled - policy) ** 2)),
          'arrived': np.sum((sampled - base) * change) / np.sum(change**2),
          'bytes': sum(x.nbytes for x in jax.tree.leaves(weights['pairs'])),
        }


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--checkpoint', required=True, help='model directory')
  parser.add_argument('--text', required=True, help='a .txt or .jsonl file')
  parser.add_argument(
    '--characters', type=int, default=400_000, help='of the training text'
  )
  parser.add_argument('--json', help='also write the rows to this file')
  options = parser.parse_args()
  print(
    '| base | sampler | updates | method | change | error | arrived | bytes |'
  )
  print('| ' + '--- | ' * 8)
  rows = []
  for x in cases(options):
    rows.append(x)
    print(
      f'| {x["base"]} | {x["sampler"]} | {x["updates"]} | {x["method"]} | '
      f'{x["change"]:.4f} | {x["error"]:.4f} | {x["arrived"]:.2f} | '
      f'{x["bytes"] / 1e6:.1f} MB |',
      flush=True,
    )
  for name in ('bfloat16', 'int8'):
    values = {x['base_perplexity'] for x in rows if x['base'] == name}
    print(f'perplexity of the base in {name}: {values.pop():.4f}')
  harness.write_json(options.json, {'rows': rows})


if __name__ == '__main__':
  main()
