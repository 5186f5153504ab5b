r"""Memory and time of importing a Hugging Face checkpoint.

  python -m benchmarks.import_memory --size gemma2_2b --repeats 3

Writes a random bfloat16 checkpoint of that size to a temporary directory,
converts it with `configs/convert.py` in a child process, and samples the
child's anonymous memory (RssAnon; pages of mapped files do not count). Prints
medians and the spread, and JSON with --json FILE. There is no peer to run
beside: tunix and MaxText read such a checkpoint whole; transformers maps it and
reads nothing before its first use.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from benchmarks import hardware, harness
from grm_jax.checkpoint.huggingface import config as config_lib
from grm_jax.checkpoint.huggingface import load as hf_load
from grm_jax.checkpoint.huggingface import param_mapping
from grm_jax.model.config import MODEL_CONFIGS

ROOT = pathlib.Path(__file__).parents[1]
_FILE_BYTES = 2 * 10**9


def write_checkpoint(directory: pathlib.Path, size_name: str) -> int:
  """Random tensors in files of about 2 GB; returns their bytes."""
  size = MODEL_CONFIGS[size_name]
  rng = np.random.default_rng(0)
  parts, held, total = [], {}, 0
  for entry in param_mapping.param_mappings(size, scalar=False):
    for key in entry.hf_keys(size):
      values = rng.standard_normal(entry.hf_shape(size), np.float32) * 0.02
      held[key] = values.astype(ml_dtypes.bfloat16)
      total += held[key].nbytes
      if sum(x.nbytes for x in held.values()) > _FILE_BYTES:
        parts.append(_save(directory, len(parts), held))
        held = {}
  parts.append(_save(directory, len(parts), held))
  weight_map = {key: name for name, keys in parts for key in keys}
  index = {'metadata': {'total_size': total}, 'weight_map': weight_map}
  (directory / hf_load.INDEX).write_text(json.dumps(index))
  fields = config_lib.to_hf_config(size, False, 'bfloat16')
  (directory / 'config.json').write_text(json.dumps(fields))
  return total


def _save(directory, number, held):
  name = f'model-{number + 1:05d}.safetensors'
  save_file(held, directory / name, {'format': 'pt'})
  return name, list(held)


def measure(command: list[str]) -> tuple[float, int]:
  """Runs a command; (seconds, most RssAnon in bytes, sampled at 100 Hz)."""
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''}
  start = time.monotonic()
  child = subprocess.Popen(
    command,
    cwd=ROOT,
    env=environment,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
  )
  most = 0
  while child.poll() is None:
    most = max(most, _anonymous(child.pid))
    time.sleep(0.01)
  if child.returncode:
    raise RuntimeError(child.stderr.read().decode())
  return time.monotonic() - start, most


def _anonymous(pid: int) -> int:
  """RssAnon of a process in bytes; 0 once it is gone."""
  try:
    lines = pathlib.Path(f'/proc/{pid}/status').read_text().splitlines()
  except OSError:
    return 0
  found = [line.split()[1] for line in lines if line.startswith('RssAnon')]
  return int(found[0]) * 1024 if found else 0


def run(size_name: str, repeats: int, root: pathlib.Path) -> dict:
  """The medians over `repeats` conversions."""
  source, target = root / 'source', root / 'target'
  source.mkdir()
  total = write_checkpoint(source, size_name)
  command = [
    *(sys.executable, '-m', 'grm_jax.main', '--config=configs/convert.py'),
    f'--config.source={source}',
    f'--config.target={target}',
  ]
  samples = []
  for _ in range(repeats):
    shutil.rmtree(target, ignore_errors=True)
    samples.append(measure(command))
  peaks = [most for _, most in samples]
  peak = statistics.median(peaks)
  return {
    'size': size_name,
    'checkpoint_bytes': total,
    'seconds': [seconds for seconds, _ in samples],
    'peak_anonymous_bytes': peaks,
    'ratio': peak / total,
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument(
    '--size', default='gemma2_2b', choices=sorted(MODEL_CONFIGS)
  )
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--directory', help='for temporary files')
  parser.add_argument('--json', help='also write the rows there')
  options = parser.parse_args()
  jax.config.update('jax_platforms', 'cpu')
  here = hardware.here()
  print(hardware.line(here))
  with tempfile.TemporaryDirectory(dir=options.directory) as directory:
    row = run(options.size, options.repeats, pathlib.Path(directory))
  peaks = [x / 1e9 for x in row['peak_anonymous_bytes']]
  print(
    f'{row["size"]}, checkpoint of {row["checkpoint_bytes"] / 1e9:.2f} GB: '
    f'most anonymous memory {statistics.median(peaks):.2f} GB '
    f'({min(peaks):.2f}-{max(peaks):.2f}), {row["ratio"]:.2f} of it; '
    f'{statistics.median(row["seconds"]):.1f} s'
  )
  harness.write(options.json, {'settings': vars(options), **here, **row})


if __name__ == '__main__':
  main()
