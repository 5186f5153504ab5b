"""Ahead-of-time compilation for a named TPU topology, and what it will cost.

The production functions with their production shardings are compiled; only
the arrays are missing. See aot_programs.py for what a step runs, aot_costs.py
for what is counted, sharding/chip_specs.py for the numbers of chips.
"""

import dataclasses
import json
from typing import Any

import jax
from ml_collections import ConfigDict

from grm_jax.aot import cost_model, programs, tables, topology
from grm_jax.aot.cost_model import Costs
from grm_jax.errors import UserError
from grm_jax.io import atomic_io
from grm_jax.model import config as model_config
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.model.transformer import Transformer
from grm_jax.sharding import mesh
from grm_jax.sharding.mesh import AXES

LOCAL = 'local'


def run(config: ConfigDict, workdir: str) -> None:
  """Compiles, prints the report, and writes it to `config.json` if given.

  With config.sweep, one report for each mesh, and the meshes in order.
  """
  del workdir
  if config.sweep:
    report = sweep(config)
    print(tables.ranking(report))
  else:
    report = compile_report(config)
    print(tables.report(report))
  if config.json:
    atomic_io.write_whole(config.json, json.dumps(report, indent=2) + '\n')


def compile_report(config: ConfigDict) -> dict[str, Any]:
  """Compiles what a step of `config.program` runs.

  Returns:
    Names and settings; `parts`, the costs of each program (see
    aot_costs.of_part); and of the whole step a device: parameters_bytes,
    optimizer_bytes, activations_bytes (of the largest part), peak_bytes,
    memory_bytes, fits, useful_flops, computed_flops, waste (the second over
    the first), hbm_bytes, network_bytes, seconds, bound and mfu (of useful
    FLOPs), exposed_mfu (where collectives in the foreground come on top of
    the products). What is not known is None.

  Raises:
    UserError: a wrong name, or sizes that the mesh cannot split.
  """
  devices = _devices(config)
  chip = None if config.topology == LOCAL else topology.chip(config.topology)
  weights = None
  if programs.is_sampling(config.program):
    weights = config.sampling.weights
  layout = mesh.from_config(config, devices, weights)
  size = model_config.named(config.size)
  if config.num_layers:
    size = dataclasses.replace(size, num_layers=config.num_layers)
  scalar = programs.is_scalar(config.program)
  model = Transformer(
    size, ComputeConfig(**config.compute), layout, scalar=scalar
  )
  parts = programs.parts(config, model)
  found = [cost_model.of_part(part, model, chip) for part in parts]
  settings = {
    'program': config.program,
    'topology': config.topology,
    'devices': len(devices),
    'mesh': dict(layout.mesh.shape),
    'size': config.size,
    'num_layers': size.num_layers,
    'prompts': config.micro_batch_prompts,
    'accumulate': config.grad_accum_steps,
    'prompt_size': config.prompt_size,
    'num_generations': config.num_generations,
    'generation_size': config.generation_size,
    'attention': config.compute.attention,
    'remat': config.compute.remat,
  }
  whole = _whole(found, chip)
  return settings | _resting(parts) | whole | {'parts': found}


def _devices(config):
  if config.topology == LOCAL:
    return jax.devices()
  return topology.devices(config.topology, config.mesh.num_slices)


def _resting(parts) -> Costs:
  """What of the memory is parameters and optimizer."""
  first = parts[0]
  arguments = first.arguments[0]
  return {
    'parameters_bytes': programs.bytes_a_device(arguments),
    'optimizer_bytes': programs.bytes_a_device(first.waits),
  }


def _whole(found: list[Costs], chip) -> Costs:
  """The step: all parts, each as often as it is run."""
  if any('error' in part for part in found):
    return {'fits': False}
  whole: Costs = {
    'activations_bytes': max(part['temporary_bytes'] for part in found),
    'peak_bytes': max(part['peak_bytes'] for part in found),
    'memory_bytes': found[0]['memory_bytes'],
  }
  whole['fits'] = (
    None
    if whole['memory_bytes'] is None
    else whole['peak_bytes'] <= whole['memory_bytes']
  )
  for name in ('useful_flops', 'computed_flops', 'hbm_bytes'):
    whole[name] = sum(part['times'] * part[name] for part in found)
  whole['waste'] = round(whole['computed_flops'] / whole['useful_flops'], 3)
  whole['network_bytes'] = sum(
    part['times'] * row['sent_bytes']
    for part in found
    for row in part['collectives']
  )
  if chip is None:
    unknown = ('seconds', 'bound', 'mfu', 'exposed_mfu')
    return whole | dict.fromkeys(unknown)
  slowest = max(found, key=lambda part: part['times'] * part['seconds'])
  seconds = sum(part['times'] * part['seconds'] for part in found)
  ideal = whole['useful_flops'] / chip.flops
  slow = sum(
    part['times']
    * max(part['seconds'], part['compute_seconds'] + part['exposed_seconds'])
    for part in found
  )
  return whole | {
    'seconds': seconds,
    'bound': slowest['bound'],
    'mfu': round(ideal / seconds, 3),
    'exposed_mfu': round(ideal / slow, 3),
  }


def sweep(config: ConfigDict) -> list[dict[str, Any]]:
  """Reports of all meshes of the axes in `config.sweep`, the best first.

  Each axis but the first takes the powers of two that the devices can be
  divided into, the first what is left; axes that are not named are 1.

  Raises:
    UserError: config.sweep names no axis, or no mesh can be compiled.
  """
  axes = [x.strip() for x in config.sweep.split(',') if x.strip()]
  wrong = [x for x in axes if x not in AXES]
  if wrong or not axes:
    raise UserError(
      f'config.sweep={config.sweep!r}: it is some of {",".join(AXES)}'
    )
  reports, reasons = [], []
  for sizes_ in _meshes(axes, len(_devices(config))):
    own = config.copy_and_resolve_references()
    own.mesh.update(dict.fromkeys(AXES, 1) | sizes_)
    try:
      reports.append(compile_report(own))
    except UserError as error:  # sizes that this mesh cannot split
      reasons.append(str(error))
      continue
    print(tables.line(reports[-1]), flush=True)
  if not reports:
    raise UserError(f'config.sweep: no mesh can be compiled; {reasons[0]}')
  return sorted(
    reports,
    key=lambda x: (x['fits'] is False, x.get('seconds') or float('inf')),
  )


def _meshes(axes, count) -> list[dict[str, int]]:
  """All ways to write `count` as a product of powers of two, an axis each."""
  if len(axes) == 1:
    return [{axes[0]: count}]
  found, size = [], 1
  while count % size == 0:
    found += [{axes[-1]: size} | x for x in _meshes(axes[:-1], count // size)]
    size *= 2
  return found
