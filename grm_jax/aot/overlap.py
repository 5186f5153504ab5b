"""How long collectives keep products waiting, by the order of a schedule.

A compiled module's text is in the order in which it is run. A collective that
is one instruction keeps everything else waiting. One that is begun by one
instruction and ended by another goes on meanwhile, by DMA or on the sparse
cores: the products between the two take some of its time, or all of it.
"""

import collections
from collections.abc import Iterable, Mapping, Sequence

from grm_jax.aot.collectives import Collective
from grm_jax.aot.hlo_parser import HloModule, Instruction


def waits(
  module: HloModule,
  found: Sequence[Collective],
  seconds: Sequence[float],
  work: Mapping[tuple[str, str], float],
) -> list[float]:
  """Seconds, in all passes, that products wait for each collective.

  One collective at a time has the network. What is no product takes no time:
  so this is rather too much than too little.

  Args:
    module: that is run.
    found: its collectives.
    seconds: of the network for each of them, in all passes.
    work: seconds of products of a pass, by (frame, line) as module.Run.
  """
  network = collections.Counter()  # seconds of a pass, by (frame, line)
  for x, taken in zip(found, seconds, strict=True):
    if not x.hidden:
      network[x.frame, x.line] += taken / x.passes
  share = {}  # waited for, of what the network takes
  for frame in {frame for frame, _ in network}:
    own, products = (_of_frame(x, frame) for x in (network, work))
    lines = module[frame].lines.values()
    for line, waited in _frame(lines, own, products).items():
      share[frame, line] = waited / own[line] if own[line] else 0.0
  return [
    0.0 if x.hidden else share[x.frame, x.line] * taken
    for x, taken in zip(found, seconds, strict=True)
  ]


def _of_frame(taken, frame):
  return {line: own for (at, line), own in taken.items() if at == frame}


def _frame(
  lines: Iterable[Instruction],
  network: Mapping[str, float],
  products: Mapping[str, float],
) -> dict[str, float]:
  """Seconds waited in a pass of a frame, by the line that begins it."""
  now = free = 0.0  # of the products, of the network
  ends: dict[str, float] = {}
  waited = dict.fromkeys(network, 0.0)
  for x in lines:
    if x.name in network:
      free = max(now, free) + network[x.name]
      if x.op.endswith('-start') or x.op == 'send':
        ends[x.name] = free
      else:
        waited[x.name] = free - now
        now = free
    elif x.op.endswith('-done'):
      for name in set(x.operands) & set(ends):
        waited[name] = max(0.0, ends.pop(name) - now)
        now += waited[name]
    now += products.get(x.name, 0.0)
  return waited
