"""Costs of a compiled program on a device: memory, FLOPs, bytes, time.

All counts are read from the compiled module of one device. There are three
times:

  bound       Matrix products at peak, bytes to and from HBM, or bytes over the
              network, whichever takes longest; it hides the other two. No
              program reaches it: it knows nothing of latencies or of products
              that do not fill the matrix unit.
  xla         XLA's own estimate of every fusion, kernels by their tiles, and
              the time for which the schedule waits for the network
              (xla_estimate.py, overlap.py).
  calibrated  The xla time multiplied by a factor, from programs with published
              measurements (chip_specs.py). This is the prediction.
"""

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
  xla_estimate,
)
from grm_jax.aot.hlo_parser import HloModule
from grm_jax.aot.programs import AotProgram
from grm_jax.model.transformer import Transformer
from grm_jax.sharding import chip_specs
from grm_jax.sharding.chip_specs import ChipSpec

Costs = dict[str, Any]
# Times of a program that depend on the chip.
TIMES = (
  *('compute_seconds', 'memory_seconds', 'network_seconds', 'bound_seconds'),
  *('bound', 'core_seconds', 'kernel_seconds', 'exposed_seconds'),
  *('xla_seconds', 'calibrated_seconds', 'calibration_error'),
)


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
    bound_seconds (the longest of the three) and bound; core_seconds (fusions
    and kernels by the estimate), kernel_seconds (the part of the kernels),
    exposed_seconds (of the network), xla_seconds, calibrated_seconds and
    calibration_error; unestimated_fusions, the executions of fusions to which
    the compiler gives no time. Times are None without a chip. `largest` and
    `slowest` are the instructions with the most bytes and the most time. A
    program that is counted by loop iteration also has bound_bytes, what an
    iteration must read, and hbm_by_bound, hbm_bytes over that; each iteration
    has its share of the bytes that move outside of the loop.
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
  return costs | _predict(costs, chip, is_decode=bool(program.loop_reads))


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

  kernel_flops = xla_estimate.kernel_flops(program.mask)
  costs: Costs = {
    'useful_flops': program.useful_flops // mesh.size,
    'computed_flops': matmul_flops.of_module(module, kernel_flops, loop),
    'hbm_bytes': hbm_bytes,
    'largest': [list(x) for x in traffic.largest],
  }
  costs |= _times(module, mesh, program, loop, chip)
  if program.loop_reads:
    bound = programs.bytes_per_device(program.loop_reads)
    costs['bound_bytes'] = bound
    costs['hbm_by_bound'] = round(hbm_bytes / bound, 3)
  return costs


def _times(
  module: HloModule,
  mesh: Mesh,
  program: AotProgram,
  loop: str,
  chip: ChipSpec | None,
) -> Costs:
  """Collectives, and the time on the cores and of the network."""
  devices = list(mesh.devices.flat)
  num_slices = len({getattr(x, 'slice_index', 0) for x in devices})
  ops = collectives.of_module(module, len(devices), loop, num_slices)
  if chip is None:
    return {'collectives': collectives.table(ops, mesh.shape, devices, None)}
  estimate = xla_estimate.of_module(module, chip, program.mask, loop)
  network, exposed = overlap.of_collectives(
    module, ops, devices, chip, estimate.line_seconds
  )
  return {
    'collectives': collectives.table(ops, mesh.shape, devices, chip, exposed),
    'core_seconds': estimate.seconds,
    'kernel_seconds': estimate.kernel_seconds,
    'unestimated_fusions': estimate.unestimated,
    'network_seconds': sum(network),
    'exposed_seconds': sum(exposed),
    'slowest': [list(x) for x in estimate.slowest],
  }


def _predict(costs: Costs, chip: ChipSpec | None, *, is_decode: bool) -> Costs:
  """The bound, the estimate and the calibrated time."""
  if chip is None:
    return dict.fromkeys(TIMES)
  times = {
    'compute': costs['computed_flops'] / chip.peak_flops,
    'memory': costs['hbm_bytes'] / chip.hbm_bandwidth,
    'network': costs['network_seconds'],
  }
  bound = max(times, key=lambda name: times[name])
  estimate = costs['core_seconds'] + costs['exposed_seconds']
  factor, error = chip.calibration, chip.calibration_error
  if is_decode:
    factor, error = chip_specs.DECODE_CALIBRATION
  return {
    'compute_seconds': times['compute'],
    'memory_seconds': times['memory'],
    'bound_seconds': times[bound],
    'bound': bound,
    'xla_seconds': estimate,
    'calibrated_seconds': estimate * factor,
    'calibration_error': error,
  }
