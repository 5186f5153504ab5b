r"""What int8 weights cost in perplexity, and save in bytes, on a real text.

  python -m benchmarks.int8 --text FILE [--checkpoint DIRECTORY]

FILE is .txt or .jsonl (of a .jsonl every string of every row counts); the
last tenth of it is held out. The same network computes its perplexity, in
float32, with three sets of weights: float32, rounded to bfloat16, and int8
(grm_jax/model/quantization.py: kernels and table; norms stay float32).

With --checkpoint (a directory that configs/convert.py wrote) that model is
measured. Without it small models are trained on the first nine tenths, one
for each seed, and the change gets a 95 % interval over seeds (Student's t).
Small models say that the arithmetic is right and how large the effect is at
their size; they say little about 2B. Prints a table, and JSON with --json.
"""

import argparse
import functools
import json
import math
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator

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

SIZE = ModelConfig(
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


# Each makes weights at rest; all are computed with in float32.
WEIGHTS: dict[str, Callable[[dict], dict]] = {
  'float32': _float32,
  'bfloat16': _bfloat16,
  'int8': lambda params: quantization.quantize(_float32(params)),
}


def read(path: str) -> str:
  """The text of a .txt file, or all strings of a .jsonl file, joined.

  Raises:
    ValueError: another kind of file, or a line that is not JSON.
  """
  kind = pathlib.Path(path).suffix
  text = pathlib.Path(path).read_text(encoding='utf-8')
  if kind == '.txt':
    return text
  if kind != '.jsonl':
    raise ValueError(f'--text is {path}; it can be a .txt or a .jsonl file')
  rows = [json.loads(line) for line in text.split('\n') if line.strip()]
  return '\n'.join(_strings(rows))


def _strings(value) -> Iterator[str]:
  if isinstance(value, str):
    yield value
  elif isinstance(value, dict | list):
    parts = value.values() if isinstance(value, dict) else value
    for part in parts:
      yield from _strings(part)


def windows(tokenizer: Tokenizer, text: str, size: int) -> np.ndarray:
  """int32 [n, 1 + size]: the text cut in pieces, each after a bos.

  What is left after the last whole piece is dropped.

  Raises:
    ValueError: the text is shorter than one piece.
  """
  # Line by line: one long string would take long.
  lines = text.splitlines(keepends=True)
  ids = [i for line in lines for i in tokenizer.encode(line)]
  count = len(ids) // size
  if not count:
    raise ValueError(
      f'--text has a part of {len(ids)} tokens, less than --tokens {size}; '
      'give a longer text'
    )
  pieces = np.array(ids[: count * size], np.int32).reshape(count, size)
  begin = np.full((count, 1), tokenizer.bos_id, np.int32)
  return np.concatenate([begin, pieces], axis=1)


@functools.partial(jax.jit, static_argnums=0)
def _total(model: Transformer, params: dict, batch: Batch) -> jax.Array:
  return jnp.sum(logprobs.prompt_logps(model, params, batch)[0])


def perplexity(
  model: Transformer, params: dict, rows: np.ndarray, batch_size: int
) -> float:
  """exp(mean negative log-probability of a token), bos not counted."""
  total = 0.0
  for start in tqdm(
    range(0, len(rows), batch_size),
    desc='measure',
    unit='batch',
    disable=None,
    leave=False,
  ):
    part = rows[start : start + batch_size]
    lengths = np.zeros(batch_size, np.int32) + 1  # a bos alone adds nothing
    lengths[: len(part)] = rows.shape[1]
    part = np.pad(part, ((0, batch_size - len(part)), (0, 0)))
    total += float(_total(model, params, Batch(part, lengths)))
  return math.exp(-total / (rows.size - len(rows)))


def train(
  model: Transformer, rows: np.ndarray, seed: int, options: argparse.Namespace
) -> tuple[dict, float]:
  """Parameters after options.steps updates, and the last batch's loss.

  A piece of text is a prompt of its bos and one generation.

  Raises:
    RuntimeError: the loss is not finite.
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
  ones, own_lengths = np.ones(p, np.int32), np.full((p, 1), t, np.int32)
  metrics = {'loss': math.nan}
  for _ in tqdm(
    range(options.steps), desc=f'train, seed {seed}', disable=None, leave=False
  ):
    chosen = rows[rng.integers(0, len(rows), p)]
    batch = Batch(chosen[:, :1], ones, chosen[:, None, 1:], own_lengths)
    state, metrics = step(state, [batch])
  loss = float(metrics['loss'])
  if not math.isfinite(loss):
    raise RuntimeError(f'seed {seed}: the loss is {loss}')
  return state.params, loss


def measure(
  model: Transformer, params: dict, rows: np.ndarray, batch_size: int
) -> dict[str, dict[str, float]]:
  """{weights: {perplexity, bytes}}; one set of weights exists at a time."""
  found = {}
  for name, make in WEIGHTS.items():
    weights = jax.jit(make)(params)
    found[name] = {
      'perplexity': perplexity(model, weights, rows, batch_size),
      'bytes': sum(x.nbytes for x in jax.tree.leaves(weights)),
    }
  return found


def small_models(options: argparse.Namespace, text: str) -> list[dict]:
  """One trained and measured model for each seed."""
  with tempfile.TemporaryDirectory() as directory:
    path = pathlib.Path(directory) / 'tokenizer.model'
    tokenizer = tiny_tokenizer.train(path)
  cut = round(len(text) * (1 - HELD_OUT))
  known, held_out = (
    windows(tokenizer, part, options.tokens)
    for part in (text[:cut], text[cut:])
  )
  model = Transformer(SIZE, COMPUTE, mesh.one_device())
  runs = []
  for seed in range(options.seeds):
    start = time.perf_counter()
    params, loss = train(model, known, seed, options)
    seconds = time.perf_counter() - start
    found = measure(model, params, held_out, options.batch_size)
    run = {'seed': seed, 'train_loss': loss, 'train_seconds': seconds}
    runs.append({**run, 'held_out_tokens': held_out[:, 1:].size, **found})
  return runs


def one_checkpoint(options: argparse.Namespace, text: str) -> list[dict]:
  """The measured model of a directory."""
  layout = mesh.one_device()
  model = model_directory.build_model(options.checkpoint, None, COMPUTE, layout)
  params = model_directory.load_params(options.checkpoint, None, model)
  tokenizer = model_directory.load_tokenizer(options.checkpoint, model.config)
  held_out = text[round(len(text) * (1 - HELD_OUT)) :]
  rows = windows(tokenizer, held_out, options.tokens)
  found = measure(model, params, rows, options.batch_size)
  return [{'held_out_tokens': rows[:, 1:].size, **found}]


def changes(runs: list[dict], name: str) -> tuple[float, float | None]:
  """Mean change of perplexity in per cent, and half its 95 % interval.

  Paired: each run is compared with its own float32 weights. One run has no
  interval.
  """
  found = [
    100 * (run[name]['perplexity'] / run['float32']['perplexity'] - 1)
    for run in runs
  ]
  if len(found) == 1:
    return found[0], None
  factor = stats.t.ppf(0.975, len(found) - 1) / math.sqrt(len(found))
  return float(np.mean(found)), float(factor * np.std(found, ddof=1))


def summary(runs: list[dict]) -> dict[str, dict]:
  """The table's numbers by kind of weights."""
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
  """What `main` prints."""
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
  parser.add_argument('--checkpoint', help='a model directory to measure')
  parser.add_argument('--tokens', type=int, default=128, help='in one piece')
  parser.add_argument('--batch-size', type=int, default=16, help='pieces')
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--steps', type=int, default=300)
  parser.add_argument('--learning-rate', type=float, default=3e-3)
  parser.add_argument('--json', help='also write the result there')
  options = parser.parse_args()
  text = read(options.text)
  runs = (one_checkpoint if options.checkpoint else small_models)(options, text)
  rows = summary(runs)
  print(table(runs, rows))
  result = {
    'settings': vars(options),
    'device': jax.devices()[0].device_kind,
    'runs': runs,
    'summary': rows,
  }
  harness.write(options.json, result)


if __name__ == '__main__':
  main()
