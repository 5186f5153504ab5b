"""Which machine this is, and what it can do at best.

Its rates are of float32 products and of reading memory, each the best of
several programs that are repeated, since a rate that one program misses another
may reach. The programs run in this process, on the cores that the measured code
runs on. Rates of a busy machine change from second to second: `better` joins
what was measured at several moments.
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
LEAST_BYTES = 256 * 2**20
_ROW = 4096
_PACKAGES = ('jax', 'numpy', 'google-tunix', 'torch', 'transformers')


def here() -> dict[str, Any]:
  """This machine as JSON: its processor, how busy it is, and what runs."""
  found = {d.metadata['Name'] for d in importlib.metadata.distributions()}
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
      if name in found
    },
  }


def line(found: dict[str, Any]) -> str:
  """What `here` found, to print."""
  versions = ', '.join(f'{k} {v}' for k, v in found['versions'].items())
  return (
    f'{found["machine"]}, {found["cores"]} cores, {found["memory_gb"]} GB, '
    f'load {found["load"]:.2f}, device {found["device"]}; {versions}'
  )


def _processor() -> str:
  """Its name where Linux tells it, else its architecture."""
  path = pathlib.Path('/proc/cpuinfo')
  text = path.read_text() if path.exists() else ''
  found = re.search(r'^model name\s*: (.*)$', text, re.MULTILINE)
  return found[1] if found else platform.machine()


@dataclasses.dataclass(frozen=True)
class Rates:
  """Best rates found, and what each program reached.

  Attributes:
    flops: float32 multiplications and additions a second.
    bytes: read a second.
    programs: of each program, flops or bytes a second.
  """

  flops: float
  bytes: float
  programs: dict[str, float]


def measure(size: int, repeats: int = 5) -> Rates:
  """The rates, memory's from an array of `size` bytes or 256 MiB.

  `size` should be that of the weights: a machine whose last cache holds such
  an array has it hold the weights too, and one whose cache does not, not.
  """
  found = {}
  for name, program in _products().items():
    work = 2 * int(name.rsplit(' ', 1)[1]) ** 3
    found[name] = work / _best_seconds(program, repeats)
  flops = max(found.values())
  size = max(size, LEAST_BYTES) // (4 * _ROW)
  x = np.ones((size, _ROW), np.float32)
  reads = {
    name: x.nbytes / _best_seconds(program, repeats)
    for name, program in _reads(x).items()
  }
  return Rates(flops, max(reads.values()), found | reads)


def better(one: Rates, other: Rates) -> Rates:
  """Of each rate the higher."""
  programs = {
    name: max(rate, other.programs[name]) for name, rate in one.programs.items()
  }
  return Rates(
    max(one.flops, other.flops), max(one.bytes, other.bytes), programs
  )


def _products() -> dict[str, Callable]:
  """Products of two square matrices, by JAX and by NumPy's BLAS."""
  programs = {}
  for n in MATRICES:
    x = np.full((n, n), 0.5, np.float32)
    programs[f'product, JAX, {n}'] = _jitted(lambda x: x @ x, x)
    programs[f'product, NumPy, {n}'] = lambda x=x: x @ x
  return programs


def _reads(x: np.ndarray) -> dict[str, Callable]:
  """Programs that read every element of [rows, _ROW] once.

  A sum of everything is left out: XLA computes it on one core. Sums of rows,
  and products with a vector, are split between cores.
  """
  vector = np.ones(_ROW, np.float32)
  cores = os.cpu_count()
  parts = np.array_split(x, cores)
  threads = concurrent.futures.ThreadPoolExecutor(cores)
  return {
    'sums of rows, JAX': _jitted(lambda x: jnp.sum(x, axis=1), x),
    'matrix times vector, JAX': _jitted(jnp.matmul, x, vector),
    'matrix times vector, NumPy': lambda: x @ vector,
    'maxima, NumPy in threads': lambda: list(threads.map(np.max, parts)),
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
