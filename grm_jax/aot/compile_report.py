"""Compiles the programs of a step for a TPU topology and reports their costs.

The production functions with their production shardings are compiled; only
the arrays are missing. programs.py lists what a step executes, cost_model.py
defines what is counted, sharding/chip_specs.py has the numbers of chips.
"""

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from grm_jax import settings
from grm_jax.aot import cost_model, programs, tables, topology
from grm_jax.aot.cost_model import Costs
from grm_jax.aot.programs import AotProgram
from grm_jax.errors import UserError
from grm_jax.io import atomic_io
from grm_jax.model import compute_config, lora
from grm_jax.model import config as model_config
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.model.transformer import Transformer
from grm_jax.sharding import mesh
from grm_jax.sharding.chip_specs import ChipSpec
from grm_jax.sharding.mesh import AXES
from grm_jax.sharding.rules import WEIGHTS
from grm_jax.training import grpo_loss, optimizer, reference_policy
from grm_jax.training import run as training_run
from grm_jax.unused_settings import Unused

LOCAL = 'local'  # config.topology: the devices of this machine
# Rules of configs/aot.py.
SETTINGS: settings.Rules = {
  'stage': settings.one_of('aot'),
  'program': settings.one_of(*programs.PROGRAMS),
  'topology': settings.TEXT,
  'size': model_config.SIZE,
  'num_layers': settings.Rule(
    'an even integer from 0 to 1000 (0: as in `size`)',
    lambda x: settings.integer(0, 1000).is_valid(x) and x % 2 == 0,
  ),
  'micro_batch_prompts': settings.parallel(1),
  'grad_accum_steps': settings.parallel(1),
  'prompt_size': settings.tokens(1),
  'num_generations': settings.samples(1),
  'generation_size': settings.tokens(1),
  'json': settings.TEXT,
  'sweep': settings.optional(settings.some_of(*AXES), 'no sweep'),
  'optimizer': optimizer.SETTINGS,
  'lora': lora.SETTINGS,
  'loss': grpo_loss.SETTINGS,
  'reference': reference_policy.SETTINGS,
  'mesh': mesh.DECODE_SETTINGS,
  'sampling': {
    'weights': settings.one_of(*WEIGHTS),
    'int8': settings.BOOLEAN,
  },
  'compute': {
    name: rule
    for name, rule in compute_config.SETTINGS.items()
    if name != 'interpret'
  },
}
UNUSED = (
  lora.UNUSED,
  Unused(
    ('optimizer',),
    '{key}.program updates no weights',
    lambda config: config.program not in programs.UPDATES,
  ),
  Unused(
    ('loss',),
    '{key}.program is not grpo_update',
    lambda config: config.program != 'grpo_update',
  ),
  Unused(
    ('lora',),
    '{key}.program has no frozen parameters, and samples with an adapter only '
    'if {key}.lora.base_dtype and the sampler are int8',
    lambda config: (
      config.program not in (*programs.UPDATES, 'reference')
      and not _has_int8_adapter(config)
    ),
  ),
  Unused(
    ('reference',),
    '{key}.lora.rank is not 0: the reference is the base of the adapter',
    lambda config: bool(config.lora.rank),
  ),
  Unused(
    ('reference',),
    '{key}.program has no reference policy',
    lambda config: config.program not in ('grpo_update', 'reference'),
  ),
  Unused(
    ('sampling',),
    '{key}.program does not decode',
    lambda config: not programs.is_sampling(config.program),
  ),
  *compute_config.UNUSED,
)


def run(config: ConfigDict, workdir: str) -> None:
  """Compiles, prints the report, and writes it to `config.json` if given.

  With config.sweep it compiles one report per mesh and ranks the meshes.

  Args:
    config: as configs/aot.py.
    workdir: not used.
  """
  del workdir
  settings.check(config, SETTINGS)
  training_run.check_lora(config)
  if os.path.isdir(config.json):
    raise UserError(
      f'config.json={config.json} is a folder; give the path of a file'
    )
  result: Any
  if config.sweep:
    result = sweep(config)
    print(tables.ranking(result))
  else:
    result = compile_step(config)
    print(tables.report(result))
  if config.json:
    atomic_io.write_file(config.json, json.dumps(result, indent=2) + '\n')


def compile_step(config: ConfigDict) -> dict[str, Any]:
  """Compiles what a step of `config.program` executes.

  Args:
    config: as configs/aot.py.

  Returns:
    Settings; `programs`, the costs of each program (cost_model.of_program);
    and the costs of the step per device: parameters_bytes, optimizer_bytes,
    activations_bytes (of the largest program), peak_bytes, memory_bytes, fits,
    useful_flops, computed_flops, recompute_factor (computed over useful FLOPs),
    hbm_bytes, network_bytes, bound (of the slowest program); and three times,
    see cost_model.py, with their MFU of useful FLOPs: bound_seconds, bound_mfu,
    xla_seconds, xla_mfu, calibrated_seconds, calibrated_mfu. calibration_error
    is the relative error of the calibrated time. Unknown values are None.

  Raises:
    UserError: a wrong name, or sizes that the mesh cannot split.
  """
  devices = _devices(config)
  chip = None if config.topology == LOCAL else topology.chip(config.topology)
  model = _model(config, devices)
  step_programs = programs.of_config(config, model)
  costs = [cost_model.of_program(x, model, chip) for x in step_programs]
  labels = {
    'program': config.program,
    'topology': config.topology,
    'devices': len(devices),
    'mesh': dict(model.layout.mesh.shape),
    'size': config.size,
    'num_layers': model.config.num_layers,
    'micro_batch_prompts': config.micro_batch_prompts,
    'grad_accum_steps': config.grad_accum_steps,
    'prompt_size': config.prompt_size,
    'num_generations': config.num_generations,
    'generation_size': config.generation_size,
    'attention': config.compute.attention,
    'remat': config.compute.remat,
  }
  state = _state_bytes(step_programs[0])
  return labels | state | _step_costs(costs, chip) | {'programs': costs}


def _devices(config: ConfigDict) -> Sequence[jax.Device]:
  if config.topology == LOCAL:
    return jax.devices()
  return topology.devices(config.topology, config.mesh.num_slices)


def _model(config: ConfigDict, devices: Sequence[jax.Device]) -> Transformer:
  sampling = programs.is_sampling(config.program)
  weights = config.sampling.weights if sampling else None
  transformer_config = model_config.from_name(config.size)
  if config.num_layers:
    transformer_config = dataclasses.replace(
      transformer_config, num_layers=config.num_layers
    )
  return Transformer(
    transformer_config,
    ComputeConfig(**config.compute),
    mesh.from_config(config, devices, weights),
    scalar=programs.has_scalar_head(config.program),
    adapter=_adapter(config.lora),
  )


def _has_int8_adapter(config: ConfigDict) -> bool:
  """Returns whether the sampler has int8 kernels with adapters beside them."""
  return (
    programs.is_sampling(config.program)
    and config.sampling.int8
    and config.lora.base_dtype == 'int8'
  )


def _adapter(config: ConfigDict) -> lora.AdapterConfig | None:
  """Returns the adapter of `config.lora`, without a base."""
  if not config.rank:
    return None
  return lora.AdapterConfig(
    config.rank,
    config.alpha,
    tuple(config.targets),
    config.base_dtype,
    base='',
    base_step=None,
    base_digest='',
  )


def _state_bytes(program: AotProgram) -> Costs:
  """Bytes per device of parameters and of other resident arrays."""
  parameters = program.arguments[: program.num_parameters]
  return {
    'parameters_bytes': programs.bytes_per_device(parameters),
    'optimizer_bytes': programs.bytes_per_device(program.resident),
  }


def _step_costs(costs: Sequence[Costs], chip: ChipSpec | None) -> Costs:
  """Adds up all programs, each as often as a step executes it."""
  if any('error' in x for x in costs):
    return {'fits': False}
  peak = max(x['peak_bytes'] for x in costs)
  memory = costs[0]['memory_bytes']
  step: Costs = {
    'activations_bytes': max(x['temporary_bytes'] for x in costs),
    'peak_bytes': peak,
    'memory_bytes': memory,
    'fits': None if memory is None else peak <= memory,
  }
  for name in ('useful_flops', 'computed_flops', 'hbm_bytes'):
    step[name] = sum(x['runs_per_step'] * x[name] for x in costs)
  step['recompute_factor'] = round(
    step['computed_flops'] / step['useful_flops'], 3
  )
  step['network_bytes'] = sum(
    x['runs_per_step'] * row['sent_bytes']
    for x in costs
    for row in x['collectives']
  )
  return step | _step_time(costs, step['useful_flops'], chip)


def _step_time(
  costs: Sequence[Costs], useful_flops: int, chip: ChipSpec | None
) -> Costs:
  names = ('bound', 'xla', 'calibrated')
  if chip is None:
    times = [f'{x}_{y}' for x in names for y in ('seconds', 'mfu')]
    return dict.fromkeys((*times, 'bound', 'calibration_error'))
  step: Costs = {}
  for name in names:
    seconds = sum(x['runs_per_step'] * x[f'{name}_seconds'] for x in costs)
    step[f'{name}_seconds'] = seconds
    step[f'{name}_mfu'] = round(useful_flops / chip.peak_flops / seconds, 3)
  slowest = max(costs, key=lambda x: x['runs_per_step'] * x['bound_seconds'])
  return step | {
    'bound': slowest['bound'],
    'calibration_error': max(x['calibration_error'] for x in costs),
  }


def sweep(config: ConfigDict) -> list[dict[str, Any]]:
  """Reports all meshes over the axes in `config.sweep`, the best first.

  Each axis but the first takes the powers of two that divide the number of
  devices, and the first axis takes the rest. Axes that are not named are 1.

  Args:
    config: as configs/aot.py.

  Raises:
    UserError: no mesh compiles.
  """
  axes = [x.strip() for x in config.sweep.split(',')]
  reports, reasons = [], []
  for sizes in _meshes(axes, len(_devices(config))):
    mesh_config = config.copy_and_resolve_references()
    mesh_config.mesh.update(dict.fromkeys(AXES, 1) | sizes)
    try:
      reports.append(compile_step(mesh_config))
    except UserError as error:  # sizes that this mesh cannot split
      reasons.append(str(error))
      continue
    print(tables.line(reports[-1]), flush=True)
  if not reports:
    raise UserError(
      f'config.sweep={config.sweep}: no mesh compiles; {reasons[0]}'
    )
  return sorted(
    reports,
    key=lambda x: (
      x['fits'] is False,
      x.get('calibrated_seconds') or float('inf'),
    ),
  )


def _meshes(axes: Sequence[str], count: int) -> list[dict[str, int]]:
  """All ways to split `count` devices over axes of power-of-two sizes."""
  if len(axes) == 1:
    return [{axes[0]: count}]
  meshes, size = [], 1
  while count % size == 0:
    inner = _meshes(axes[:-1], count // size)
    meshes += [{axes[-1]: size} | x for x in inner]
    size *= 2
  return meshes
