"""Several sources in one text: `SOURCE, SOURCE*FRACTION, ...`.

A comma separates sources, so a path cannot contain one. FRACTION, above 0 and
at most 1, is the fraction of the queries of its source that is used.
"""

import dataclasses
import re

from grm_jax.errors import UserError

# A `*` with other text after it is a part of the path, as in folder/*.jsonl.
_FRACTION = re.compile(r'(.*?)\s*\*\s*(-?[0-9]*\.?[0-9]+)')


@dataclasses.dataclass(frozen=True)
class Source:
  """A source of judging examples, see example_sources.py.

  Attributes:
    spec: the source without its fraction.
    fraction: fraction of its queries that is used.
  """

  spec: str
  fraction: float = 1.0


def parse(spec: str) -> list[Source]:
  """Returns the sources that a text names, at least one.

  Raises:
    UserError: a part is empty, is repeated or has a wrong fraction.
  """
  if ',' not in spec:
    return [parse_one(spec)]
  sources = [parse_one(part.strip()) for part in spec.split(',')]
  specs = [source.spec for source in sources]
  for number, part in enumerate(specs, 1):
    if not part:
      raise UserError(
        f'{spec!r}: source {number} is empty; write SOURCE,SOURCE*FRACTION, '
        'with one comma between two sources'
      )
    if specs.index(part) + 1 < number:
      raise UserError(f'{spec!r} names {part!r} twice; remove one')
  return sources


def parse_one(part: str) -> Source:
  """Returns the source `SOURCE` or `SOURCE*FRACTION`.

  Raises:
    UserError: the fraction is not above 0 and at most 1.
  """
  match = _FRACTION.fullmatch(part)
  if not match:
    return Source(part)
  spec, fraction = match.groups()
  if not 0 < float(fraction) <= 1:
    raise UserError(
      f'{part!r}: the fraction after * is {fraction}; it must be above 0 and '
      'at most 1'
    )
  return Source(spec, float(fraction))
