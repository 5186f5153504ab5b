r"""Compares the times that configs/aot.py predicts with published measurements.

  python -m benchmarks.aot_calibration FOLDER --json=calibration.json

FOLDER has two files for each program that someone has timed on a TPU: the text
of its compiled module, NAME.txt.gz (`compiled.as_text()`), and NAME.json with

  topology          such as "v5p:4x4x4"
  coords            coordinates of the devices, in the order of the mesh
  sequence_size     tokens of a sequence, for the tiles of splash attention
  measured_seconds  measured time of a step
  source            where the measurement is published

MaxText publishes measurements and compiles the same program on a machine
without a TPU with its train_compile.py; docs/pods.md describes how.

Prints measured time, bound and XLA's estimate of each program, and for each
chip the factor: the median of measured over estimated time. The error of a
prediction is the largest deviation of a program from the factor of its chip.
"""

import argparse
import dataclasses
import gzip
import json
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks import harness
from grm_jax.aot import (
  collectives,
  hbm_traffic,
  hlo_parser,
  matmul_flops,
  overlap,
  topology,
  xla_estimate,
)
from grm_jax.model.row_mask import RowMask


@dataclasses.dataclass(frozen=True)
class Device:
  """Stands for a device of a slice."""

  coords: tuple[int, ...]


def times(text: str, facts: dict[str, Any]) -> dict[str, Any]:
  """Returns bound, estimate and measured time of a program, in seconds.

  Args:
    text: text of its compiled module.
    facts: content of its JSON file.
  """
  module = hlo_parser.parse(text)
  chip = topology.chip(facts['topology'])
  mask = RowMask(facts['sequence_size'])
  devices: list[Any] = [Device(tuple(x)) for x in facts['coords']]
  ops = collectives.of_module(module, len(devices))
  estimate = xla_estimate.of_module(module, chip, mask)
  network, waits = overlap.of_collectives(
    module, ops, devices, chip, estimate.line_seconds
  )
  exposed = sum(waits)
  flops = matmul_flops.of_module(module, xla_estimate.kernel_flops(mask))
  return {
    'chip': facts['topology'].split(':')[0],
    'measured': facts['measured_seconds'],
    'bound': max(
      flops / chip.peak_flops,
      hbm_traffic.of_module(module).hbm_bytes / chip.hbm_bandwidth,
      sum(network),
    ),
    'fusions': estimate.seconds - estimate.kernel_seconds,
    'kernels': estimate.kernel_seconds,
    'exposed': exposed,
    'xla': estimate.seconds + exposed,
    'source': facts['source'],
  }


def calibrate(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
  """Returns the factor and the error of each chip.

  Args:
    rows: from `times`.
  """
  result = {}
  for chip in sorted({x['chip'] for x in rows}):
    ratios = [x['measured'] / x['xla'] for x in rows if x['chip'] == chip]
    factor = statistics.median(ratios)
    result[chip] = {
      'factor': factor,
      'error': max(abs(factor / x - 1) for x in ratios),
      'programs': len(ratios),
    }
  return result


def main() -> None:
  """Prints the tables."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--json', help='also write the numbers to this file')
  parser.add_argument('folder', type=pathlib.Path)
  args = parser.parse_args()
  rows = {}
  for path in sorted(args.folder.glob('*.json')):
    with gzip.open(path.with_suffix('.txt.gz'), 'rt') as file:
      rows[path.stem] = times(file.read(), json.loads(path.read_text()))
  factors = calibrate(list(rows.values()))
  print('| program | measured | bound | XLA (exposed, kernels) | calibrated |')
  print('| --- | --- | --- | --- | --- |')
  for name, row in rows.items():
    row['calibrated'] = row['xla'] * factors[row['chip']]['factor']
    print(
      f'| {name} | {row["measured"]:.3g} s | {row["bound"]:.3g} s | '
      f'{row["xla"]:.3g} s ({row["exposed"]:.2g}, {row["kernels"]:.2g}) | '
      f'{row["calibrated"]:.3g} s |'
    )
  for chip, x in factors.items():
    print(
      f'{chip}: factor {x["factor"]:.3f}, {x["programs"]} programs, error '
      f'{x["error"]:.1%}'
      if x['programs'] > 1
      else f'{chip}: factor {x["factor"]:.3f} of 1 program, error unknown'
    )
  harness.write_json(args.json, {'programs': rows, 'chips': factors})


if __name__ == '__main__':
  main()
