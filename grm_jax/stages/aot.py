"""Ahead-of-time compilation for a named TPU topology, and what it will cost.

The production functions with their production shardings are compiled; only
the arrays are missing.
"""

import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.stages import Compiled
from ml_collections import ConfigDict

from grm_jax.model import head, sizes
from grm_jax.model import params as params_lib
from grm_jax.model.batch import Batch
from grm_jax.model.compute import Compute
from grm_jax.model.gemma import Gemma
from grm_jax.parallel import files, mesh, topology, traffic
from grm_jax.parallel.rules import Layout
from grm_jax.sampling import decode, placing, programs

PROGRAMS = {
  'prompts': head.prompt_logps,
  'generations': head.generation_logps,
  'prefill': decode.prefill,
  'decode': decode.decode,
}
SAMPLING = ('prefill', 'decode')
STEPS = 32  # of one call of decode; their number changes neither bytes nor time


def run(config: ConfigDict, workdir: str) -> None:
  """Compiles, prints the report, and writes it to `config.json` if given."""
  del workdir
  report = compile_report(config)
  print(table(report))
  if config.json:
    files.write_whole(config.json, json.dumps(report, indent=2) + '\n')


def compile_report(config: ConfigDict) -> dict[str, Any]:
  """Compiles the program that `config` names.

  Returns:
    Names and settings, `compile_seconds`, and per device: `arguments_bytes`,
    `outputs_bytes`, `temporary_bytes`, `peak_bytes`, `memory_bytes` and
    `fits` (None where the device does not tell its memory). When the compiler
    itself ran out of the device's memory, `fits` is False and `error` says
    why.

    Of 'decode' also what one step moves per device: `step_bytes`, read from
    and written to the device's memory; `network_bytes`, operands of
    collectives; `bound_bytes`, all weights and all keys and values read once;
    and `step_by_bound`, the first over the last. See parallel/traffic.py for
    what is counted.

  Raises:
    ValueError: a wrong name, or sizes that the mesh cannot split.
  """
  if config.program not in PROGRAMS:
    raise ValueError(
      f'config.program is {config.program!r}; it can be {", ".join(PROGRAMS)}'
    )
  local = config.topology == 'local'
  devices = jax.devices() if local else topology.devices(config.topology)
  sampling = config.program in SAMPLING
  weights = config.sampling.weights if sampling else None
  layout = mesh.from_config(config, devices, weights)
  size = sizes.named(config.size)
  if config.num_layers:
    size = dataclasses.replace(size, num_layers=config.num_layers)
  model = Gemma(size, Compute(**config.compute), layout)
  memory = _local_memory() if local else topology.hbm_bytes(config.topology)
  report = {
    'program': config.program,
    'topology': config.topology,
    'devices': len(devices),
    'mesh': dict(layout.mesh.shape),
    'size': config.size,
    'num_layers': size.num_layers,
    'prompts': config.prompts,
    'prompt_size': config.prompt_size,
    'num_generations': config.num_generations,
    'generation_size': config.generation_size,
    'attention': config.compute.attention,
    'memory_bytes': memory,
  }
  if config.program == 'decode':
    return report | _decode(config, model, memory)
  batch = _batch(config, layout)
  if sampling:
    arguments = (placing.abstract_weights(model, config.sampling.int8), batch)
  else:
    arguments = (params_lib.abstract_params(model), batch)
  function = functools.partial(PROGRAMS[config.program], model)
  _, costs = _compile(jax.jit(function), arguments, memory)
  return report | costs


def _decode(config, model: Gemma, memory: int | None) -> dict[str, Any]:
  """The report of a call of decode, and the bytes that one step moves."""
  sizes = programs.Sizes(
    prompts=config.prompts,
    rows=config.num_generations,
    size=config.generation_size,
    chunk=STEPS,
    prefill=config.prompts,
    buckets=(config.prompt_size,),
  )
  weights = placing.abstract_weights(model, config.sampling.int8)
  rest = programs.decode_arguments(model, sizes, config.prompt_size)
  slots, _, state, *_ = rest
  jitted = programs.decode_jit(model, STEPS)
  compiled, costs = _compile(jitted, (weights, *rest), memory)
  # What a step must read at least: all weights, all keys and values.
  read = jax.tree.leaves((weights, slots.caches, state.caches))
  bound = sum(_bytes_a_device(x) for x in read)
  costs['bound_bytes'] = bound
  if compiled is not None:
    step = traffic.of_loop(compiled.as_text())
    costs['step_bytes'] = step.hbm_bytes
    costs['network_bytes'] = step.network_bytes
    costs['step_by_bound'] = round(step.hbm_bytes / bound, 3)
  return costs


def _bytes_a_device(x: jax.ShapeDtypeStruct) -> int:
  return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize


def _batch(config, layout: Layout) -> Batch:
  def array(*shape):
    names = ('prompts', 'tokens', 'tokens')[: len(shape)]
    sharding = layout.sharding(names, shape)
    return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding)

  p, s = config.prompts, config.prompt_size
  if config.program in ('prompts', 'prefill'):
    return Batch(array(p, s), array(p))
  r, t = config.num_generations, config.generation_size
  return Batch(array(p, s), array(p), array(p, r, t), array(p, r))


def _compile(
  jitted: Callable, arguments: tuple, memory: int | None
) -> tuple[Compiled | None, dict[str, Any]]:
  """What compiled, None if memory ran out, and what it costs."""
  start = time.monotonic()
  try:
    compiled = jitted.lower(*arguments).compile()
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    seconds = round(time.monotonic() - start, 1)
    first = str(error).splitlines()[0]
    return None, {'compile_seconds': seconds, 'fits': False, 'error': first}
  analysis = compiled.memory_analysis()
  # The compiler's own peak leaves out fragmentation on some backends.
  peak = max(
    analysis.peak_memory_in_bytes,
    analysis.argument_size_in_bytes
    + analysis.output_size_in_bytes
    - analysis.alias_size_in_bytes
    + analysis.temp_size_in_bytes,
  )
  return compiled, {
    'compile_seconds': round(time.monotonic() - start, 1),
    'arguments_bytes': analysis.argument_size_in_bytes,
    'outputs_bytes': analysis.output_size_in_bytes,
    'temporary_bytes': analysis.temp_size_in_bytes,
    'peak_bytes': peak,
    'fits': None if memory is None else peak <= memory,
  }


def _local_memory() -> int | None:
  """Memory of a local device in bytes, where it tells."""
  stats = jax.local_devices()[0].memory_stats() or {}
  return stats.get('bytes_limit')


def table(report: dict[str, Any]) -> str:
  """The report as lines of `name  value`, bytes in GiB."""
  lines = []
  for name, value in report.items():
    if name.endswith('_bytes') and value is not None:
      name, value = name.removesuffix('_bytes'), f'{value / 2**30:.3f} GiB'
    elif name == 'mesh':
      value = ' x '.join(f'{a}={n}' for a, n in value.items())
    elif value is None:
      value = 'unknown'
    lines.append(f'{name.replace("_", " "):<18} {value}')
  return '\n'.join(lines)
