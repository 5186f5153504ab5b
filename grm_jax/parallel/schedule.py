"""How long collectives keep products waiting, by the order of a schedule.

A compiled module's text is in the order in which it is run. A collective that
is one instruction keeps everything else waiting. One that is begun by one
instruction and ended by another goes on meanwhile, by DMA or on the sparse
cores: the products between the two take some of its time, or all of it.
"""

import collections
from collections.abc import Mapping, Sequence

from grm_jax.parallel.collectives import Collective
from grm_jax.parallel.module import Instruction, Module


def waits(
  module: Module,
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
  begun = collections.defaultdict(lambda: collections.defaultdict(list))
  waited = [0.0] * len(found)
  for i, x in enumerate(found):
    if not x.hidden:
      begun[x.frame][x.line].append(i)
  for frame, lines in begun.items():
    own = {
      line: sum(seconds[i] / found[i].passes for i in numbers)
      for line, numbers in lines.items()
    }
    products = {line: s for (at, line), s in work.items() if at == frame}
    of_line = _frame(list(module[frame].lines.values()), own, products)
    for line, numbers in lines.items():
      for i in numbers:
        share = seconds[i] / found[i].passes / own[line] if own[line] else 0.0
        waited[i] = of_line[line] * share * found[i].passes
  return waited


def _frame(
  lines: Sequence[Instruction],
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
