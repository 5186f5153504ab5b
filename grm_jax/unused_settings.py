"""Settings that a user gives although other settings leave them without effect.

Each stage has a table UNUSED beside its table SETTINGS. Only what is given on
the command line is reported: the defaults of a config file have to exist.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ml_collections import ConfigDict


@dataclasses.dataclass(frozen=True)
class Unused:
  """Leaves that have no effect for some values of other leaves.

  Attributes:
    keys: the leaves, or groups of leaves.
    reason: why they have none; `{key}` is the key of the stage's config.
    applies: returns whether they have none.
    groups: names that lead to the config of the stage in a larger config.
  """

  keys: tuple[str, ...]
  reason: str
  applies: Callable[[Any], bool]
  groups: tuple[str, ...] = ()


def in_group(group: str, table: Iterable[Unused]) -> list[Unused]:
  """Returns the table of a stage whose config is a group of a larger one."""
  return [dataclasses.replace(x, groups=(group, *x.groups)) for x in table]


def messages(
  config: ConfigDict, given: Iterable[str], table: Iterable[Unused]
) -> Iterator[str]:
  """Yields a line for every given leaf that has no effect.

  Args:
    config: config of a stage.
    given: keys of the leaves that the user gave, without 'config.'.
    table: UNUSED of the stage.
  """
  for rule in table:
    key = '.'.join(('config', *rule.groups))
    names = tuple(f'{key}.{name}' for name in rule.keys)
    leaves = [
      leaf
      for leaf in (f'config.{name}' for name in given)
      if leaf in names or leaf.startswith(tuple(f'{x}.' for x in names))
    ]
    part = functools.reduce(operator.getitem, rule.groups, config)
    if leaves and rule.applies(part):
      reason = rule.reason.format(key=key)
      yield f'{", ".join(leaves)}: no effect, because {reason}'
