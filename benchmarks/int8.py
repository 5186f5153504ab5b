r"""Perplexity and size of int8 weights on a text file.

  python -m benchmarks.int8 --text FILE [--checkpoint DIRECTORY]

FILE is a .txt or a .jsonl file; a .jsonl file contributes every string of every
row. The last tenth of the text is held out. One network computes the held-out
perplexity in float32 with three sets of weights: float32, rounded to bfloat16,
and int8 (grm_jax/model/quantization.py quantizes kernels and the embedding
table; norms stay float32).

With --checkpoint (a directory written by configs/convert.py) the benchmark
measures that model. Without it, the benchmark trains one small model per seed
on the first nine tenths and reports a 95 % interval over seeds (Student's t).
Small models verify the arithmetic and show the effect at their size; they do
not predict the effect at 2B. Prints a table; --json also writes JSON.
"""

import argparse
import functools
import json
import math
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats
from tqdm import tqdm

from benchmarks import harness
from grm_jax.checkpoint import model_directory
from grm_jax.model import logprobs, quantization
from grm_jax.model.batch import Batch
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.model.config import ModelConfig
from grm_jax.model.init import init_params
from grm_jax.model.transformer import Transformer
from grm_jax.sharding import mesh
from grm_jax.tokenizer import tiny as tiny_tokenizer
from grm_jax.tokenizer.tokenizer import Tokenizer
from grm_jax.training.train_state import init_state
from grm_jax.training.train_step import TrainStep, supervised_loss

CONFIG = ModelConfig(
  num_layers=4,
  width=128,
  mlp_width=512,
  num_heads=4,
  num_kv_heads=2,
  head_dim=32,
  query_pre_attn_scalar=32,
  vocab_size=tiny_tokenizer.VOCAB_SIZE,
  window=64,
)
COMPUTE = ComputeConfig(head_chunk=2048)
HELD_OUT = 0.1


def _float32(params: dict) -> dict:
  return jax.tree.map(lambda x: x.astype(jnp.float32), params)


def _bfloat16(params: dict) -> dict:
  return jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)


# Stored weights from parameters; the computation is in float32 for all.
WEIGHTS: dict[str, Callable[[dict], dict]] = {
  'float32': _float32,
  'bfloat16': _bfloat16,
  'int8': lambda params: quantization.quantize(_float32(params)),
}


def read(path: str) -> str:
  """Reads a .txt file, or joins all strings of a .jsonl file.

  Raises:
    ValueError: the file has another suffix, or a line is not JSON.
  """
  suffix = pathlib.Path(path).suffix
  text = pathlib.Path(path).read_text(encoding='utf-8')
  if suffix == '.txt':
    return text
  if suffix != '.jsonl':
    raise ValueError(
      f'--text={path} has suffix {suffix!r}; give a .txt or .jsonl file'
    )
  rows = [json.loads(line) for line in text.split('\n') if line.strip()]
  return '\n'.join(_strings(rows))


def _strings(value: Any) -> Iterator[str]:
  """Yields all strings of a JSON value, depth first."""
  if isinstance(value, str):
    yield value
  elif isinstance(value, dict | list):
    parts = value.values() if isinstance(value, dict) else value
    for part in parts:
      yield from _strings(part)


def windows(tokenizer: Tokenizer, text: str, size: int) -> np.ndarray:
  """Splits the text into windows that each begin with a bos token.

  The incomplete last window is dropped.

  Returns:
    int32 token ids [N, 1 + size].

  Raises:
    ValueError: the text is shorter than one window.
  """
  # Encoding time grows faster than linearly with the length of a string.
  lines = text.splitlines(keepends=True)
  ids = [i for line in lines for i in tokenizer.encode(line)]
  count = len(ids) // size
  if not count:
    raise ValueError(
      f'a part of --text has {len(ids)} tokens, fewer than --tokens={size}; '
      'give a longer text'
    )
  token_windows = np.array(ids[: count * size], np.int32).reshape(count, size)
  bos = np.full((count, 1), tokenizer.bos_id, np.int32)
  return np.concatenate([bos, token_windows], axis=1)


@functools.partial(jax.jit, static_argnums=0)
def _sum_logps(model: Transformer, params: dict, batch: Batch) -> jax.Array:
  return jnp.sum(logprobs.prompt_logps(model, params, batch)[0])


def perplexity(
  model: Transformer, params: dict, rows: np.ndarray, batch_size: int
) -> float:
  """Returns exp(mean negative log-probability per token) without the bos."""
  total = 0.0
  for start in tqdm(
    range(0, len(rows), batch_size),
    desc='measure',
    unit='batch',
    disable=None,
    leave=False,
  ):
    part = rows[start : start + batch_size]
    lengths = (
      np.zeros(batch_size, np.int32) + 1
    )  # padding rows: a lone bos adds 0
    lengths[: len(part)] = rows.shape[1]
    part = np.pad(part, ((0, batch_size - len(part)), (0, 0)))
    total += float(_sum_logps(model, params, Batch(part, lengths)))
  return math.exp(-total / (rows.size - len(rows)))


def train(
  model: Transformer, rows: np.ndarray, seed: int, options: argparse.Namespace
) -> tuple[dict, float]:
  """Trains a small model for options.steps updates.

  Each window becomes a prompt of one bos token and one generation.

  Returns:
    The parameters, and the loss of the last batch.

  Raises:
    RuntimeError: the last loss is not finite.
  """
  schedule = optax.warmup_cosine_decay_schedule(
    0.0, options.learning_rate, options.steps // 10, options.steps
  )
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.95)
  )
  loss = functools.partial(supervised_loss, model)
  step = TrainStep(model, optimizer, loss)
  params = init_params(model, jax.random.key(seed))
  state = init_state(model, optimizer, params)
  rng = np.random.default_rng(seed)
  p, t = options.batch_size, options.tokens
  prompt_lengths = np.ones(p, np.int32)
  generation_lengths = np.full((p, 1), t, np.int32)
  metrics = {'loss': math.nan}
  for _ in tqdm(
    range(options.steps), desc=f'train, seed {seed}', disable=None, leave=False
  ):
    sampled = rows[rng.integers(0, len(rows), p)]  # [P, 1 + T]
    batch = Batch(
      sampled[:, :1],
      prompt_lengths,
      sampled[:, None, 1:],  # [P, 1, T]
      generation_lengths,
    )
    state, metrics = step(state, [batch])
  loss = float(metrics['loss'])
  if not math.isfinite(loss):
    raise RuntimeError(
      f'the loss of seed {seed} is {loss}; lower --learning-rate'
    )
  return state.params, loss


def measure(
  model: Transformer, params: dict, rows: np.ndarray, batch_size: int
) -> dict[str, dict[str, float]]:
  """Returns {weights: {perplexity, bytes}}; holds one set at a time."""
  result = {}
  for name, make in WEIGHTS.items():
    weights = jax.jit(make)(params)
    result[name] = {
      'perplexity': perplexity(model, weights, rows, batch_size),
      'bytes': sum(x.nbytes for x in jax.tree.leaves(weights)),
    }
  return result


def small_models(options: argparse.Namespace, text: str) -> list[dict]:
  """Trains and measures one small model per seed."""
  with tempfile.TemporaryDirectory() as directory:
    path = pathlib.Path(directory) / 'tokenizer.model'
    tokenizer = tiny_tokenizer.train(path)
  cut = round(len(text) * (1 - HELD_OUT))
  train_rows, held_out = (
    windows(tokenizer, part, options.tokens)
    for part in (text[:cut], text[cut:])
  )
  model = Transformer(CONFIG, COMPUTE, mesh.one_device())
  runs = []
  for seed in range(options.seeds):
    start = time.perf_counter()
    params, loss = train(model, train_rows, seed, options)
    seconds = time.perf_counter() - start
    measured = measure(model, params, held_out, options.batch_size)
    run = {'seed': seed, 'train_loss': loss, 'train_seconds': seconds}
    runs.append({**run, 'held_out_tokens': held_out[:, 1:].size, **measured})
  return runs


def measure_checkpoint(options: argparse.Namespace, text: str) -> list[dict]:
  """Measures the model of --checkpoint."""
  layout = mesh.one_device()
  model = model_directory.build_model(options.checkpoint, None, COMPUTE, layout)
  params = model_directory.load_params(options.checkpoint, None, model)
  tokenizer = model_directory.load_tokenizer(options.checkpoint, model.config)
  held_out = text[round(len(text) * (1 - HELD_OUT)) :]
  rows = windows(tokenizer, held_out, options.tokens)
  measured = measure(model, params, rows, options.batch_size)
  return [{'held_out_tokens': rows[:, 1:].size, **measured}]


def changes(runs: list[dict], name: str) -> tuple[float, float | None]:
  """Relative change of the perplexity against float32 weights.

  The comparison is paired within each run.

  Returns:
    The mean change in percent and half the width of its 95 % interval, which
    is None for a single run.
  """
  percents = [
    100 * (run[name]['perplexity'] / run['float32']['perplexity'] - 1)
    for run in runs
  ]
  if len(percents) == 1:
    return percents[0], None
  factor = stats.t.ppf(0.975, len(percents) - 1) / math.sqrt(len(percents))
  return float(np.mean(percents)), float(factor * np.std(percents, ddof=1))


def summary(runs: list[dict]) -> dict[str, dict]:
  """Aggregates the runs by set of weights."""
  result = {}
  for name in WEIGHTS:
    mean, half = changes(runs, name)
    result[name] = {
      'bytes': runs[0][name]['bytes'],
      'mean_perplexity': float(np.mean([r[name]['perplexity'] for r in runs])),
      'mean_change_percent': mean,
      'half_interval_percent': half,
    }
  return result


def table(runs: list[dict], rows: dict[str, dict]) -> str:
  """Formats the summary as a text table."""
  lines = [f'{"weights":9} {"bytes":>14} {"perplexity":>11} {"change":>10}']
  for name, row in rows.items():
    line = f'{name:9} {row["bytes"]:14,} {row["mean_perplexity"]:11.4f}'
    if name != 'float32':
      line += f' {row["mean_change_percent"]:+9.4f}%'
      half = row['half_interval_percent']
      line += '' if half is None else f' +- {half:.4f}'
    lines.append(line)
  tokens = runs[0]['held_out_tokens']
  lines.append(f'{tokens:,} held-out tokens, {len(runs)} model(s)')
  return '\n'.join(lines)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--text', required=True, help='a .txt or .jsonl file')
  parser.add_argument('--checkpoint', help='model directory to measure')
  parser.add_argument(
    '--tokens', type=int, default=128, help='tokens of a window'
  )
  parser.add_argument('--batch-size', type=int, default=16, help='windows')
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--steps', type=int, default=300)
  parser.add_argument('--learning-rate', type=float, default=3e-3)
  parser.add_argument('--json', help='also write the result to this JSON file')
  options = parser.parse_args()
  text = read(options.text)
  runs = (measure_checkpoint if options.checkpoint else small_models)(
    options, text
  )
  rows = summary(runs)
  print(table(runs, rows))
  result = {
    'settings': vars(options),
    'device': jax.devices()[0].device_kind,
    'runs': runs,
    'summary': rows,
  }
  harness.write_json(options.json, result)


if __name__ == '__main__':
  main()
