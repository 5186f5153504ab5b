"""The reports of the stage aot for a person."""

from collections.abc import Sequence
from typing import Any

Report = dict[str, Any]


def report(found: Report) -> str:
  """Lines of `name  value`, then what each program costs and sends."""
  lines = _lines({k: v for k, v in found.items() if k != 'parts'})
  for part in found['parts']:
    skipped = ('name', 'collectives', 'largest', 'memory_bytes')
    head = f'{part["name"]}, {part["times"]} a step'
    own = {k: v for k, v in part.items() if k not in skipped}
    lines += ['', head, *(f'  {line}' for line in _lines(own))]
    for row in part.get('collectives', ()):
      lines.append(f'  {_collective(row)}')
  return '\n'.join(lines)


def line(found: Report) -> str:
  """A report in one line."""
  sizes = ' x '.join(f'{k}={v}' for k, v in found['mesh'].items())
  if 'peak_bytes' not in found:
    return f'{sizes}: does not fit'
  fits = {True: 'fits', False: 'does not fit', None: 'memory unknown'}
  words = [f'{_gib(found["peak_bytes"])}, {fits[found["fits"]]}']
  if found['seconds'] is not None:
    words.append(
      f'{found["seconds"]:.3g} s, bound by {found["bound"]}, '
      f'MFU {found["mfu"]:.1%} ({found["exposed_mfu"]:.1%} with what of the '
      'network is in the foreground)'
    )
  return f'{sizes}: {"; ".join(words)}'


def ranking(reports: Sequence[Report]) -> str:
  """The meshes of a sweep, best first."""
  return '\n'.join(
    ['', 'meshes, the fastest that fits first']
    + [f'{i}. {line(x)}' for i, x in enumerate(reports, 1)]
  )


def _lines(values: Report) -> list[str]:
  lines = []
  for name, value in values.items():
    if name.endswith('_bytes') and value is not None:
      name, value = name.removesuffix('_bytes'), _gib(value)
    elif name.endswith('_flops'):
      value = f'{value / 1e12:.4g} TFLOP'
    elif name.endswith('seconds') and value is not None:
      value = f'{value:.4g} s'
    elif name == 'mesh':
      value = ' x '.join(f'{axis}={size}' for axis, size in value.items())
    elif value is None:
      value = 'unknown'
    name = name.removesuffix('_seconds').replace('_', ' ')
    lines.append(f'{name:<18} {value}')
  return lines


def _collective(row: Report) -> str:
  over = ' '.join(row['axes']) or 'nothing'
  time = ''
  if row['seconds'] is not None:
    time = (
      f', {row["seconds"]:.3g} s, of which {row["exposed_seconds"]:.3g} s '
      'in the foreground'
    )
  return (
    f'{row["kind"]} over {over}: {row["count"]}, sends '
    f'{_gib(row["sent_bytes"])}{time}'
  )


def _gib(value: int) -> str:
  return f'{value / 2**30:.3f} GiB'
