"""Text tables of ahead-of-time reports."""

from collections.abc import Sequence
from typing import Any

Report = dict[str, Any]

# Fields of a program that the table shows elsewhere or leaves out.
_HIDDEN_FIELDS = ('name', 'collectives', 'largest', 'slowest', 'memory_bytes')


def report(compiled: Report) -> str:
  """Formats a report: the step, then each program with its collectives."""
  lines = _lines({k: v for k, v in compiled.items() if k != 'programs'})
  for program in compiled['programs']:
    fields = {k: v for k, v in program.items() if k not in _HIDDEN_FIELDS}
    lines += ['', f'{program["name"]}, {program["runs_per_step"]} a step']
    lines += [f'  {line}' for line in _lines(fields)]
    lines += [f'  {_collective(x)}' for x in program.get('collectives', ())]
  return '\n'.join(lines)


def line(compiled: Report) -> str:
  """Formats a report in one line."""
  sizes = ' x '.join(f'{axis}={n}' for axis, n in compiled['mesh'].items())
  if 'peak_bytes' not in compiled:
    return f'{sizes}: does not fit'
  fits = {True: 'fits', False: 'does not fit', None: 'memory unknown'}
  text = f'{sizes}: {_gib(compiled["peak_bytes"])}, {fits[compiled["fits"]]}'
  if compiled['calibrated_seconds'] is None:
    return text
  return (
    f'{text}; {compiled["calibrated_seconds"]:.3g} s '
    f'+-{compiled["calibration_error"]:.0%}, MFU '
    f'{compiled["calibrated_mfu"]:.1%}; bound {compiled["bound_seconds"]:.3g} '
    f's by {compiled["bound"]}'
  )


def ranking(reports: Sequence[Report]) -> str:
  """Formats the meshes of a sweep, which are sorted already."""
  rows = [f'{i}. {line(x)}' for i, x in enumerate(reports, 1)]
  return '\n'.join(['', 'Meshes, the fastest one that fits first:', *rows])


def _lines(values: Report) -> list[str]:
  lines = []
  for name, value in values.items():
    if value is None:
      value = 'unknown'
    elif name.endswith('_bytes'):
      name, value = name.removesuffix('_bytes'), _gib(value)
    elif name.endswith('_flops'):
      value = f'{value / 1e12:.4g} TFLOP'
    elif name.endswith('seconds'):
      value = f'{value:.4g} s'
    elif name == 'mesh':
      value = ' x '.join(f'{axis}={size}' for axis, size in value.items())
    name = name.removesuffix('_seconds').replace('_', ' ')
    lines.append(f'{name:<20} {value}')
  return lines


def _collective(row: Report) -> str:
  axes = ' '.join(row['axes']) or 'no axis'
  text = (
    f'{row["kind"]} over {axes}: {row["count"]}, sends '
    f'{_gib(row["sent_bytes"])}'
  )
  if row['seconds'] is None:
    return text
  exposed = f'{row["exposed_seconds"]:.3g} s exposed'
  return f'{text}, {row["seconds"]:.3g} s ({exposed})'


def _gib(value: int) -> str:
  return f'{value / 2**30:.3f} GiB'
