"""Exposed time of collectives, from the order of instructions in a schedule.

A compiled module's text is in the order in which a device executes it. A
synchronous collective stalls everything else. An asynchronous one, with a
`-start` and a `-done` instruction, runs on DMA engines or sparse cores in the
meantime, so that matrix products between the two hide some or all of its time.
"""

import collections
from collections.abc import Iterable, Mapping, Sequence

from grm_jax.aot.collectives import Collective
from grm_jax.aot.hlo_parser import HloModule, Instruction

Line = tuple[str, str]  # (frame, line) of hlo_parser.ExecutedInstruction


def exposed_seconds(
  module: HloModule,
  collectives: Sequence[Collective],
  seconds: Sequence[float],
  compute_seconds: Mapping[Line, float],
) -> list[float]:
  """Simulates a schedule and returns the time that products wait.

  The network serves one collective at a time. Instructions other than matrix
  products take no time here, so the result is an upper estimate.

  Args:
    module: the compiled module.
    collectives: its collectives.
    seconds: network time of each of them, over all its executions.
    compute_seconds: time of the matrix products of one execution of a line.

  Returns:
    Exposed seconds of each collective, over all its executions.
  """
  # Network seconds of one execution of a frame, by the line that starts them.
  network: dict[Line, float] = collections.defaultdict(float)
  for x, taken in zip(collectives, seconds, strict=True):
    if not x.fused:
      network[x.frame, x.line] += taken / x.executions
  fraction = {}  # exposed part of a line's network time
  for frame in {frame for frame, _ in network}:
    frame_network = _of_frame(network, frame)
    exposed = _simulate_frame(
      module[frame].lines.values(),
      frame_network,
      _of_frame(compute_seconds, frame),
    )
    for line, waited in exposed.items():
      taken = frame_network[line]
      fraction[frame, line] = waited / taken if taken else 0.0
  return [
    0.0 if x.fused else fraction[x.frame, x.line] * taken
    for x, taken in zip(collectives, seconds, strict=True)
  ]


def _of_frame(values: Mapping[Line, float], frame: str) -> dict[str, float]:
  return {line: x for (name, line), x in values.items() if name == frame}


def _simulate_frame(
  lines: Iterable[Instruction],
  network: Mapping[str, float],
  compute: Mapping[str, float],
) -> dict[str, float]:
  """Returns exposed seconds of one execution, by line."""
  now = 0.0  # when the core is ready for the next line
  network_free = 0.0  # when the network is ready for the next collective
  ends: dict[str, float] = {}  # of asynchronous collectives in flight
  exposed = dict.fromkeys(network, 0.0)
  for x in lines:
    if x.name in network:
      network_free = max(now, network_free) + network[x.name]
      if x.op.endswith('-start') or x.op == 'send':
        ends[x.name] = network_free
      else:
        exposed[x.name] = network_free - now
        now = network_free
    elif x.op.endswith('-done'):
      for name in set(x.operands) & set(ends):
        exposed[name] = max(0.0, ends.pop(name) - now)
        now += exposed[name]
    now += compute.get(x.name, 0.0)
  return exposed
