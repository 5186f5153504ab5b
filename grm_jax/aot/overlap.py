"""Exposed time of collectives, from the order of instructions in a schedule.

A compiled module's text is in the order in which a device executes it. A
synchronous collective stalls everything else. An asynchronous one, with a
`-start` and a `-done` instruction, runs on DMA engines or sparse cores in the
meantime, so that other work between the two hides some or all of its time.
"""

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

from grm_jax.aot import collectives
from grm_jax.aot.collectives import Collective, Link
from grm_jax.aot.hlo_parser import HloModule, Instruction
from grm_jax.sharding.chip_specs import ChipSpec

Line = tuple[str, str]  # (frame, line) of hlo_parser.ExecutedInstruction


def of_collectives(
  module: HloModule,
  ops: Sequence[Collective],
  devices: Sequence[jax.Device],
  chip: ChipSpec,
  work_seconds: Mapping[Line, float],
) -> tuple[list[float], list[float]]:
  """Returns the network and the exposed seconds of each collective.

  Args:
    module: the compiled module.
    ops: its collectives.
    devices: devices of the mesh, flat.
    chip: their specification.
    work_seconds: as `exposed_seconds`.
  """
  network = [collectives.seconds(x, devices, chip) for x in ops]
  links = [collectives.links(x, devices) for x in ops]
  return network, exposed_seconds(module, ops, network, links, work_seconds)


def exposed_seconds(
  module: HloModule,
  ops: Sequence[Collective],
  seconds: Sequence[float],
  links: Sequence[frozenset[Link]],
  work_seconds: Mapping[Line, float],
) -> list[float]:
  """Simulates a schedule and returns the time for which the core waits.

  A link serves one collective at a time; collectives on different links run
  side by side.

  Args:
    module: the compiled module.
    ops: its collectives.
    seconds: network time of each of them, over all its executions.
    links: links of each of them.
    work_seconds: time of one execution of a line on the core.

  Returns:
    Exposed seconds of each collective, over all its executions.
  """
  # Network seconds and links of one execution of a frame, by the line that
  # starts them.
  network: dict[Line, float] = collections.defaultdict(float)
  used: dict[Line, frozenset[Link]] = {}
  for x, taken, own_links in zip(ops, seconds, links, strict=True):
    if not x.fused:
      network[x.frame, x.line] += taken / x.executions
      used[x.frame, x.line] = used.get((x.frame, x.line), own_links) | own_links
  fraction = {}  # exposed part of a line's network time
  for frame in {frame for frame, _ in network}:
    frame_network = _of_frame(network, frame)
    exposed = _simulate_frame(
      module[frame].lines.values(),
      frame_network,
      _of_frame(used, frame),
      _of_frame(work_seconds, frame),
    )
    for line, waited in exposed.items():
      taken = frame_network[line]
      fraction[frame, line] = waited / taken if taken else 0.0
  return [
    0.0 if x.fused else fraction[x.frame, x.line] * taken
    for x, taken in zip(ops, seconds, strict=True)
  ]


def _of_frame(values: Mapping[Line, Any], frame: str) -> dict[str, Any]:
  return {line: x for (name, line), x in values.items() if name == frame}


def _simulate_frame(
  lines: Iterable[Instruction],
  network: Mapping[str, float],
  links: Mapping[str, frozenset[Link]],
  work: Mapping[str, float],
) -> dict[str, float]:
  """Returns exposed seconds of one execution, by line."""
  now = 0.0  # when the core is ready for the next line
  free: dict[Link, float] = {}  # when a link is ready for the next collective
  ends: dict[str, float] = {}  # of asynchronous collectives in flight
  exposed = dict.fromkeys(network, 0.0)
  for x in lines:
    if x.name in network:
      begin = max([now, *(free.get(link, 0.0) for link in links[x.name])])
      end = begin + network[x.name]
      free |= dict.fromkeys(links[x.name], end)
      if x.op.endswith('-start') or x.op == 'send':
        ends[x.name] = end
      else:
        exposed[x.name] = end - now
        now = end
    elif x.op.endswith('-done'):
      for name in set(x.operands) & set(ends):
        exposed[name] = max(0.0, ends.pop(name) - now)
        now += exposed[name]
    now += work.get(x.name, 0.0)
  return exposed
