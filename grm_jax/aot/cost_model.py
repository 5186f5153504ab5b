"""What a compiled program costs a device, and how long it takes at least.

Three things take time: products, bytes to and from HBM, and bytes over the
network. The roofline's step takes as long as the slowest of them, the other
two behind it; it knows nothing of latencies, of small products that do not
fill a systolic array, or of what cannot overlap. All counts are read off the
compiled module of one device.
"""

import math
import re
import time
from typing import Any

import jax
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

# Products of a tile that the kernels of splash compute: logits and weighted
# sums; with those again, and gradients of queries, or of keys and values.
_KERNELS = {'splash_mha_fwd': 2, 'splash_mha_dq': 3, 'splash_mha_dkv': 4}
_KERNEL = re.compile(rf'({"|".join(_KERNELS)})')
_OPERANDS = re.compile(r'operand_layout_constraints=\{(.*?\})\}')

Costs = dict[str, Any]


def of_part(
  part: AotProgram, model: Transformer, chip: ChipSpec | None
) -> Costs:
  """Compiles a part, and reads off what one run of it costs a device.

  Args:
    part: from aot_programs.parts.
    model: that it is of.
    chip: that it is compiled for; None where that is not known.

  Returns:
    name, times, compile_seconds, fits. Where memory ran out in compiling, that
    is False and `error` says why; else also arguments_bytes, outputs_bytes,
    temporary_bytes, waiting_bytes (what else is there meanwhile),
    on_host_bytes (in the host's memory, no part of the others), peak_bytes,
    useful_flops, computed_flops, hbm_bytes, collectives (a table), and
    compute_seconds, memory_seconds, network_seconds, exposed_seconds (of the
    network, in the foreground), seconds and bound (None without a chip). Of a
    part that is looked at by the pass also bound_bytes, what it must read, and
    step_by_bound, hbm_bytes over that; the pass has its share of the bytes that
    are moved around its loop.
  """
  costs: Costs = {'name': part.name, 'times': part.times}
  begin = time.monotonic()
  try:
    compiled = part.jitted.lower(*part.arguments).compile()
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    costs['compile_seconds'] = round(time.monotonic() - begin, 1)
    return costs | {'fits': False, 'error': str(error).splitlines()[0]}
  costs['compile_seconds'] = round(time.monotonic() - begin, 1)
  mesh = model.layout.mesh
  return (
    costs
    | _memory(part, compiled, chip)
    | _work(part, compiled.as_text(), model, mesh, chip)
  )


def _memory(part, compiled: Compiled, chip) -> Costs:
  analysis = compiled.memory_analysis()
  waiting = programs.bytes_a_device(part.waits)
  on_host = (
    analysis.host_argument_size_in_bytes
    + analysis.host_output_size_in_bytes
    - analysis.host_alias_size_in_bytes
    + analysis.host_temp_size_in_bytes
  )
  # The compiler's own peak leaves out fragmentation on some backends, and has
  # what is in the host's memory.
  peak = waiting + max(
    analysis.peak_memory_in_bytes - on_host,
    analysis.argument_size_in_bytes
    + analysis.output_size_in_bytes
    - analysis.alias_size_in_bytes
    + analysis.temp_size_in_bytes,
  )
  memory = chip.hbm if chip else _local_memory()
  return {
    'arguments_bytes': analysis.argument_size_in_bytes,
    'outputs_bytes': analysis.output_size_in_bytes,
    'temporary_bytes': analysis.temp_size_in_bytes,
    'waiting_bytes': waiting,
    'on_host_bytes': on_host,
    'peak_bytes': peak,
    'memory_bytes': memory,
    'fits': None if memory is None else peak <= memory,
  }


def _local_memory() -> int | None:
  """Memory of a local device in bytes, where it tells."""
  stats = jax.local_devices()[0].memory_stats() or {}
  return stats.get('bytes_limit')


def _work(part, text, model, mesh, chip) -> Costs:
  found = hlo_parser.parse(text)
  devices = list(mesh.devices.flat)
  slices = len({getattr(x, 'slice_index', 0) for x in devices})
  # A call of decode is many steps; one pass of its loop is one.
  name = hbm_traffic.main_loop(found) if part.read else ''
  moved = hbm_traffic.of_module(found, name)
  hbm = moved.hbm_bytes
  if name:  # what stands around the loop is shared by its passes
    hbm += (hbm_traffic.of_module(found).hbm_bytes - hbm) // part.passes

  def kernel(x):
    return _kernel(model, x)

  costs: Costs = {
    'useful_flops': part.useful // len(devices),
    'computed_flops': matmul_flops.of_module(found, kernel, name),
    'hbm_bytes': hbm,
    'largest': [list(x) for x in moved.largest],
  }
  all_of_it = collectives.of_module(found, len(devices), name, slices)
  waits = ()
  if chip is not None:
    work = matmul_flops.by_line(found, kernel, name)
    waits = overlap.waits(
      found,
      all_of_it,
      [collectives.seconds(x, devices, chip) for x in all_of_it],
      {place: flops / chip.flops for place, flops in work.items()},
    )
  costs['collectives'] = collectives.table(
    all_of_it, mesh.shape, devices, chip, waits
  )
  if part.read:
    bound = programs.bytes_a_device(part.read)
    costs['bound_bytes'] = bound
    costs['step_by_bound'] = round(hbm / bound, 3)
  return costs | _roofline(costs, chip)


def _roofline(costs, chip) -> Costs:
  if chip is None:
    names = ('compute', 'memory', 'network', 'exposed')
    return dict.fromkeys((*(f'{x}_seconds' for x in names), 'seconds', 'bound'))
  found = {
    'compute': costs['computed_flops'] / chip.flops,
    'memory': costs['hbm_bytes'] / chip.hbm_rate,
    'network': sum(row['seconds'] for row in costs['collectives']),
  }
  bound = max(found, key=found.get)
  rows = costs['collectives']
  return {
    **{f'{name}_seconds': value for name, value in found.items()},
    'exposed_seconds': sum(row['exposed_seconds'] for row in rows),
    'seconds': found[bound],
    'bound': bound,
  }


def _kernel(model: Transformer, x: Instruction) -> int:
  """FLOPs of a kernel of splash, 0 of other custom calls."""
  kind = _KERNEL.search(x.name)
  operands = _OPERANDS.search(x.attributes)
  if kind is None or operands is None:
    return 0
  queries = hlo_parser.sizes(operands[1])[2]  # [..., N, S, H]
  *rows, size, width = queries
  block = min(model.compute.splash_block, size)
  local = '/local/' in x.attributes
  window = model.size.window if local else None
  tile = _KERNELS[kind[1]] * 2 * block * block * width
  return math.prod(rows) * splash.tiles(size, block, window) * tile
