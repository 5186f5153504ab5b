"""Costs of a compiled program on a device: memory, FLOPs, bytes, least time.

Time has three parts: matrix products, bytes to and from HBM, and bytes over the
network. The roofline takes the longest of them and assumes that it hides the
other two. It is a bound: it knows nothing of latencies, of products that do
not fill the matrix unit, or of work that cannot overlap. All counts are read
from the compiled module of one device.
"""

import math
import re
import time
from typing import Any

import jax
from jax.sharding import Mesh
from jax.stages import Compiled

from grm_jax.aot import (
  collectives,
  hbm_traffic,
  hlo_parser,
  matmul_flops,
  overlap,
  programs,
)
from grm_jax.aot.hlo_parser import Instruction
from grm_jax.aot.programs import AotProgram
from grm_jax.model import splash
from grm_jax.model.transformer import Transformer
from grm_jax.sharding.chip_specs import ChipSpec

# Matrix products of a tile in the kernels of splash attention. Forward: logits
# and the weighted sum. Backward: these two again, and the gradients of the
# queries, or of the keys and values.
_KERNEL_PRODUCTS = {
  'splash_mha_fwd': 2,
  'splash_mha_dq': 3,
  'splash_mha_dkv': 4,
}
_KERNEL = re.compile(rf'({"|".join(_KERNEL_PRODUCTS)})')
_OPERANDS = re.compile(r'operand_layout_constraints=\{(.*?\})\}')

Costs = dict[str, Any]


def of_program(
  program: AotProgram, model: Transformer, chip: ChipSpec | None
) -> Costs:
  """Compiles a program and returns the costs of one run on a device.

  Args:
    program: from programs.of_config.
    model: its model.
    chip: chip that it compiles for; None if unknown.

  Returns:
    name, runs_per_step, compile_seconds, fits. If compilation runs out of
    memory, `fits` is False and `error` is the compiler's message. Otherwise:
    arguments_bytes, outputs_bytes, temporary_bytes, resident_bytes (other
    arrays on the device), on_host_bytes (in the host's memory, not part of the
    others), peak_bytes, memory_bytes; useful_flops, computed_flops, hbm_bytes,
    collectives (a table); compute_seconds, memory_seconds, network_seconds,
    exposed_seconds (of the network), seconds and bound, which are None without
    a chip. A program that is counted by loop iteration also has bound_bytes,
    what an iteration must read, and hbm_by_bound, hbm_bytes over that; each
    iteration has its share of the bytes that move outside of the loop.
  """
  costs: Costs = {
    'name': program.name,
    'runs_per_step': program.runs_per_step,
  }
  start = time.monotonic()
  try:
    compiled = program.jitted.lower(*program.arguments).compile()
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    costs['compile_seconds'] = round(time.monotonic() - start, 1)
    return costs | {'fits': False, 'error': str(error).splitlines()[0]}
  costs['compile_seconds'] = round(time.monotonic() - start, 1)
  costs |= _memory(program, compiled, chip)
  costs |= _work(program, compiled.as_text() or '', model, chip)
  return costs | _roofline(costs, chip)


def _memory(
  program: AotProgram, compiled: Compiled, chip: ChipSpec | None
) -> Costs:
  analysis: Any = compiled.memory_analysis()
  resident = programs.bytes_per_device(program.resident)
  on_host = (
    analysis.host_argument_size_in_bytes
    + analysis.host_output_size_in_bytes
    - analysis.host_alias_size_in_bytes
    + analysis.host_temp_size_in_bytes
  )
  # The compiler's own peak includes the host's memory, and on some backends
  # leaves out fragmentation.
  peak = resident + max(
    analysis.peak_memory_in_bytes - on_host,
    analysis.argument_size_in_bytes
    + analysis.output_size_in_bytes
    - analysis.alias_size_in_bytes
    + analysis.temp_size_in_bytes,
  )
  memory = chip.hbm_bytes if chip else _local_memory()
  return {
    'arguments_bytes': analysis.argument_size_in_bytes,
    'outputs_bytes': analysis.output_size_in_bytes,
    'temporary_bytes': analysis.temp_size_in_bytes,
    'resident_bytes': resident,
    'on_host_bytes': on_host,
    'peak_bytes': peak,
    'memory_bytes': memory,
    'fits': None if memory is None else peak <= memory,
  }


def _local_memory() -> int | None:
  """Memory of a local device in bytes, if the backend reports it."""
  stats = jax.local_devices()[0].memory_stats() or {}
  return stats.get('bytes_limit')


def _work(
  program: AotProgram, text: str, model: Transformer, chip: ChipSpec | None
) -> Costs:
  module = hlo_parser.parse(text)
  mesh = model.layout.mesh
  # A decode call executes many steps; its costs are those of one iteration.
  loop = hbm_traffic.main_loop(module) if program.loop_reads else ''
  traffic = hbm_traffic.of_module(module, loop)
  hbm_bytes = traffic.hbm_bytes
  if loop:  # the iterations share what moves outside of the loop
    outside = hbm_traffic.of_module(module).hbm_bytes - hbm_bytes
    hbm_bytes += outside // program.iterations

  def kernel_flops(x: Instruction) -> int:
    """Returns the FLOPs of a splash attention kernel; 0 for other calls."""
    return _splash_flops(model, x)

  costs: Costs = {
    'useful_flops': program.useful_flops // mesh.size,
    'computed_flops': matmul_flops.of_module(module, kernel_flops, loop),
    'hbm_bytes': hbm_bytes,
    'largest': [list(x) for x in traffic.largest],
  }
  compute_seconds = {}
  if chip is not None:
    flops = matmul_flops.by_line(module, kernel_flops, loop)
    compute_seconds = {line: n / chip.peak_flops for line, n in flops.items()}
  costs['collectives'] = _collectives(module, mesh, loop, chip, compute_seconds)
  if program.loop_reads:
    bound = programs.bytes_per_device(program.loop_reads)
    costs['bound_bytes'] = bound
    costs['hbm_by_bound'] = round(hbm_bytes / bound, 3)
  return costs


def _collectives(
  module: hlo_parser.HloModule,
  mesh: Mesh,
  loop: str,
  chip: ChipSpec | None,
  compute_seconds: dict,
) -> list[dict]:
  """Table of the module's collectives, with exposed time if a chip is given."""
  devices = list(mesh.devices.flat)
  num_slices = len({getattr(x, 'slice_index', 0) for x in devices})
  ops = collectives.of_module(module, len(devices), loop, num_slices)
  exposed: list[float] = []
  if chip is not None:
    seconds = [collectives.seconds(x, devices, chip) for x in ops]
    exposed = overlap.exposed_seconds(module, ops, seconds, compute_seconds)
  return collectives.table(ops, mesh.shape, devices, chip, exposed)


def _roofline(costs: Costs, chip: ChipSpec | None) -> Costs:
  if chip is None:
    names = ('compute', 'memory', 'network', 'exposed')
    return dict.fromkeys((*(f'{x}_seconds' for x in names), 'seconds', 'bound'))
  rows = costs['collectives']
  times = {
    'compute': costs['computed_flops'] / chip.peak_flops,
    'memory': costs['hbm_bytes'] / chip.hbm_bandwidth,
    'network': sum(row['seconds'] for row in rows),
  }
  bound = max(times, key=lambda name: times[name])
  return {
    **{f'{name}_seconds': value for name, value in times.items()},
    'exposed_seconds': sum(row['exposed_seconds'] for row in rows),
    'seconds': times[bound],
    'bound': bound,
  }


def _splash_flops(model: Transformer, x: Instruction) -> int:
  """FLOPs of a splash attention kernel; 0 for other custom calls."""
  kernel = _KERNEL.search(x.name)
  operands = _OPERANDS.search(x.attributes)
  if kernel is None or operands is None:
    return 0
  queries = hlo_parser.array_shapes(operands[1])[2]  # [..., N, S, H]
  *batch, length, head_dim = queries
  block = min(model.compute.splash_block, length)
  local = '/local/' in x.attributes
  window = model.config.window if local else None
  tile = _KERNEL_PRODUCTS[kernel[1]] * 2 * block * block * head_dim
  return math.prod(batch) * splash.num_tiles(length, block, window) * tile
