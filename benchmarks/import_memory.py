r"""Peak memory and time of importing a Hugging Face checkpoint.

  python -m benchmarks.import_memory --size gemma2_2b --repeats 3

Writes a random bfloat16 checkpoint of that size to a temporary directory,
converts it with `configs/convert.py` in a child process, and samples the
anonymous memory of the child (RssAnon, which excludes pages of mapped files).
Prints medians and the spread; --json FILE also writes JSON. The benchmark has
no baseline: tunix and MaxText read the whole checkpoint into memory, and
transformers maps the file and reads each tensor at its first use.
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
  """Writes random tensors in files of about 2 GB; returns their bytes."""
  config = MODEL_CONFIGS[size_name]
  rng = np.random.default_rng(0)
  files, tensors, total = [], {}, 0
  for mapping in param_mapping.param_mappings(config, scalar=False):
    for key in mapping.hf_keys(config):
      values = rng.standard_normal(mapping.hf_shape(config), np.float32) * 0.02
      tensors[key] = values.astype(ml_dtypes.bfloat16)
      total += tensors[key].nbytes
      if sum(x.nbytes for x in tensors.values()) > _FILE_BYTES:
        files.append(_save(directory, len(files), tensors))
        tensors = {}
  files.append(_save(directory, len(files), tensors))
  weight_map = {key: name for name, keys in files for key in keys}
  index = {'metadata': {'total_size': total}, 'weight_map': weight_map}
  (directory / hf_load.INDEX).write_text(json.dumps(index))
  fields = config_lib.to_hf_config(config, False, 'bfloat16')
  (directory / 'config.json').write_text(json.dumps(fields))
  return total


def _save(
  directory: pathlib.Path, number: int, tensors: dict[str, np.ndarray]
) -> tuple[str, list[str]]:
  """Writes one file; returns its name and its keys."""
  name = f'model-{number + 1:05d}.safetensors'
  save_file(tensors, directory / name, {'format': 'pt'})
  return name, list(tensors)


def measure_command(command: list[str]) -> tuple[float, int]:
  """Runs a command; returns (seconds, peak RssAnon in bytes at 100 Hz)."""
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''}
  start = time.monotonic()
  child = subprocess.Popen(
    command,
    cwd=ROOT,
    env=environment,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
  )
  peak = 0
  while child.poll() is None:
    peak = max(peak, _anonymous_bytes(child.pid))
    time.sleep(0.01)
  if child.returncode:
    raise RuntimeError(child.stderr.read().decode())
  return time.monotonic() - start, peak


def _anonymous_bytes(pid: int) -> int:
  """Returns the RssAnon of a process in bytes; 0 after its end."""
  try:
    lines = pathlib.Path(f'/proc/{pid}/status').read_text().splitlines()
  except OSError:
    return 0
  sizes = [line.split()[1] for line in lines if line.startswith('RssAnon')]
  return int(sizes[0]) * 1024 if sizes else 0


def run(size_name: str, repeats: int, root: pathlib.Path) -> dict:
  """Measures `repeats` conversions of one checkpoint."""
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
    samples.append(measure_command(command))
  peaks = [peak for _, peak in samples]
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
  parser.add_argument('--directory', help='parent of the temporary directory')
  parser.add_argument('--json', help='also write the result to this JSON file')
  options = parser.parse_args()
  jax.config.update('jax_platforms', 'cpu')
  machine = hardware.describe()
  print(hardware.format_description(machine))
  with tempfile.TemporaryDirectory(dir=options.directory) as directory:
    row = run(options.size, options.repeats, pathlib.Path(directory))
  peaks = [x / 1e9 for x in row['peak_anonymous_bytes']]
  print(
    f'{row["size"]}, checkpoint of {row["checkpoint_bytes"] / 1e9:.2f} GB: '
    f'peak anonymous memory {statistics.median(peaks):.2f} GB '
    f'({min(peaks):.2f}-{max(peaks):.2f}), {row["ratio"]:.2f} of its size; '
    f'{statistics.median(row["seconds"]):.1f} s'
  )
  harness.write_json(
    options.json, {'settings': vars(options), **machine, **row}
  )


if __name__ == '__main__':
  main()
