"""Description of this machine and its peak compute and memory rates.

The rates are those of float32 matrix products and of memory reads. Each is the
maximum over several programs and repetitions, because no single program reaches
the peak on every machine. The programs run in this process, on the same cores
as the measured code. Rates of a busy machine fluctuate; `maximum` combines
measurements of different moments.
"""

import concurrent.futures
import dataclasses
import importlib.metadata
import os
import pathlib
import platform
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MATRICES = (1024, 2048, 4096)
MIN_READ_BYTES = 256 * 2**20
_ROW_SIZE = 4096
_PACKAGES = ('jax', 'numpy', 'google-tunix', 'torch', 'transformers')


def describe() -> dict[str, Any]:
  """Returns the processor, memory, load, device and package versions."""
  installed = {d.metadata['Name'] for d in importlib.metadata.distributions()}
  return {
    'machine': _processor(),
    'cores': os.cpu_count(),
    'memory_gb': round(
      os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9
    ),
    'load': os.getloadavg()[0],
    'device': jax.devices()[0].device_kind,
    'versions': {
      name: importlib.metadata.version(name)
      for name in _PACKAGES
      if name in installed
    },
  }


def format_description(machine: dict[str, Any]) -> str:
  """Formats the result of `describe` as one line."""
  versions = ', '.join(f'{k} {v}' for k, v in machine['versions'].items())
  return (
    f'{machine["machine"]}, {machine["cores"]} cores, '
    f'{machine["memory_gb"]} GB, load {machine["load"]:.2f}, '
    f'device {machine["device"]}; {versions}'
  )


def _processor() -> str:
  """Returns the model name on Linux, otherwise the architecture."""
  path = pathlib.Path('/proc/cpuinfo')
  text = path.read_text() if path.exists() else ''
  match = re.search(r'^model name\s*: (.*)$', text, re.MULTILINE)
  return match[1] if match else platform.machine()


@dataclasses.dataclass(frozen=True)
class Rates:
  """Peak rates, and the rate of each program.

  Attributes:
    flops: float32 FLOP/s.
    bytes: bytes/s read from memory.
    programs: FLOP/s or bytes/s by name of the program.
  """

  flops: float
  bytes: float
  programs: dict[str, float]


def measure(num_bytes: int, repeats: int = 5) -> Rates:
  """Measures the peak rates.

  Args:
    num_bytes: size of the array that is read; at least 256 MiB is used. Pass
      the size of the weights, so that the array fits into the last-level cache
      exactly when the weights do.
    repeats: repetitions of each program.
  """
  product_rates = {}
  for name, program in _products().items():
    work = 2 * int(name.rsplit(' ', 1)[1]) ** 3
    product_rates[name] = work / _best_seconds(program, repeats)
  flops = max(product_rates.values())
  num_rows = max(num_bytes, MIN_READ_BYTES) // (4 * _ROW_SIZE)
  x = np.ones((num_rows, _ROW_SIZE), np.float32)
  read_rates = {
    name: x.nbytes / _best_seconds(program, repeats)
    for name, program in _reads(x).items()
  }
  return Rates(flops, max(read_rates.values()), product_rates | read_rates)


def maximum(a: Rates, b: Rates) -> Rates:
  """Returns the elementwise maximum of two measurements."""
  programs = {
    name: max(rate, b.programs[name]) for name, rate in a.programs.items()
  }
  return Rates(max(a.flops, b.flops), max(a.bytes, b.bytes), programs)


def _products() -> dict[str, Callable]:
  """Products of two square matrices, by JAX and by NumPy's BLAS."""
  programs = {}
  for n in MATRICES:
    x = np.full((n, n), 0.5, np.float32)
    programs[f'product, JAX, {n}'] = _jitted(lambda x: x @ x, x)
    programs[f'product, NumPy, {n}'] = lambda x=x: x @ x
  return programs


def _reads(x: np.ndarray) -> dict[str, Callable]:
  """Programs that read every element of x [rows, _ROW_SIZE] once.

  A full sum is not among them: XLA computes it on one core. Row sums and
  matrix-vector products run on all cores.
  """
  vector = np.ones(_ROW_SIZE, np.float32)
  cores = os.cpu_count()
  chunks = np.array_split(x, cores)
  threads = concurrent.futures.ThreadPoolExecutor(cores)
  return {
    'sums of rows, JAX': _jitted(lambda x: jnp.sum(x, axis=1), x),
    'matrix times vector, JAX': _jitted(jnp.matmul, x, vector),
    'matrix times vector, NumPy': lambda: x @ vector,
    'maxima, NumPy in threads': lambda: list(threads.map(np.max, chunks)),
  }


def _jitted(function, *arguments):
  arguments = jax.device_put(arguments)
  function = jax.jit(function)
  return lambda: jax.block_until_ready(function(*arguments))


def _best_seconds(program, repeats):
  program()  # compiles
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    program()
    times.append(time.perf_counter() - start)
  return min(times)
