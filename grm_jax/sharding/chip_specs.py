"""Peak numbers of accelerator chips, with their sources.

TPU compute and HBM bandwidth: the pages "TPU v4", "TPU v5e", "TPU v5p" and
"TPU v6e" of the Google Cloud documentation (docs.cloud.google.com/tpu/docs).

Bandwidth of links between chips (ICI) and between slices (DCN): the table in
part 2 of "How to Scale Your Model" (jax-ml.github.io/scaling-book), for one
direction of one link. The totals per chip in the documentation (v5e 400 GB/s,
v5p 1200, v6e 800, both directions of all links) are 10 % higher.

HBM bytes: the limit that XLA states when a program does not fit. The
documentation's 32 GiB (v4, v6e) and 16 GiB (v5e) include a part that the
runtime uses. Sources: v4: github.com/erfanzar/EasyDeL/issues/166. v5e:
github.com/GoogleCloudPlatform/kubernetes-engine-samples/pull/1467. v6e:
megacpp.pages.dev/blog/oom-on-v6e. v5p: 95 GiB as documented; XLA states 95.74
(openxla.org/xla/errors/error_1000).

tpu7x (Ironwood): the page "TPU7x (Ironwood)" of the same documentation, half a
chip, because JAX has a device for each of its two chiplets. The links are those
of v5p, whose total the documentation states for both. The memory that a program
can use is not known; it is 95 % of the documented one here, less than on any
other chip.

Clock: peak FLOP/s over the FLOPs of a cycle, the matrix units times 2 * 128**2
(256**2 on v6e and tpu7x; four of them in a core of tpu7x is an assumption).
Cycles of splash attention: the number of instruction bundles that libtpu 0.0.42
schedules for the body of a tile (with --xla_jf_dump_to and
--xla_jf_dump_llo_text).

Calibration: measured over estimated time of programs of MaxText, compiled here
with their published settings (benchmarks/aot_calibration.py, docs/results.md).
Two programs on v5p give 0.95. One on v5e, measured in 2023, gives 0.78; its
error includes a factor of 1. The other chips have no such program: they have
the factor of v5p and an error that includes that of v5e.

For a step of decoding there is one measurement, of another implementation:
SGL-JAX needs 14.5 ms for a token of Gemma-2-27B with 16 requests on four v6e,
where the estimate of our program is 12.1 ms.

GPU: the data sheets of H100 SXM and H200 SXM; the FLOP/s are half of the ones
stated, which are with sparsity. The H100 PCIe is slower, has another device
kind and is not listed.
"""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class SplashCycles:
  """Cycles of the kernels of splash attention on one core.

  Attributes:
    tiles: for each kernel, the cycles of a tile of 512 x 512 of one head, with
      a head size of 128 and of 256. They contain softcap, mask and segments.
    step_cycles: other cycles of a step of the grid, whether its tile is
      computed or skipped.
    block: the side of the tiles.
  """

  tiles: Mapping[str, tuple[int, int]]
  step_cycles: int = 400
  block: int = 512

  def tile_cycles(self, kernel: str, head_dim: int) -> float:
    """Returns the cycles of a tile; linear in the head size."""
    small, large = self.tiles[kernel]
    return small + (large - small) * (head_dim - 128) / 128


@dataclasses.dataclass(frozen=True)
class ChipSpec:
  """Peak numbers of one chip.

  Attributes:
    device_kinds: the values of jax.Device.device_kind for this chip.
    peak_flops: bfloat16 FLOP/s.
    hbm_bytes: memory that a program can use.
    hbm_bandwidth: bytes/s.
    ici_bandwidth: bytes/s over one link to a neighbour, in one direction; 0 if
      unknown.
    min_ring_size: the fewest chips along a mesh axis for its two ends to be
      linked, which makes the axis a ring.
    dcn_bandwidth: bytes/s to other slices, in one direction.
    clock: cycles per second; 0 if unknown.
    num_cores: cores that share the work of a device.
    devices_per_chip: devices that JAX has for a chip; all numbers here are of
      one device.
    splash: cycles of attention; None if unknown.
    calibration: measured time over XLA's estimate (aot/xla_estimate.py).
    calibration_error: relative error of a time that is predicted with it.
  """

  device_kinds: tuple[str, ...]
  peak_flops: float
  hbm_bytes: int
  hbm_bandwidth: float
  ici_bandwidth: float = 0.0
  min_ring_size: int = 0
  dcn_bandwidth: float = 0.0
  clock: float = 0.0
  num_cores: int = 1
  devices_per_chip: int = 1
  splash: SplashCycles | None = None
  calibration: float = 1.0
  calibration_error: float = 0.0


# (factor, error) of a step of decoding, on all chips.
DECODE_CALIBRATION = (1.2, 0.2)


def _gib(count: float) -> int:
  return int(count * 2**30)


CHIPS = {
  'v4': ChipSpec(
    device_kinds=('TPU v4',),
    peak_flops=275e12,
    hbm_bytes=_gib(30.75),
    hbm_bandwidth=1.2e12,
    ici_bandwidth=4.5e10,
    min_ring_size=4,
    dcn_bandwidth=6.25e9,
    clock=1.05e9,
    calibration=0.95,
    calibration_error=0.2,
    num_cores=2,
  ),
  'v5e': ChipSpec(
    device_kinds=('TPU v5 lite', 'TPU v5e'),
    peak_flops=197e12,
    hbm_bytes=_gib(15.75),
    hbm_bandwidth=8.19e11,
    ici_bandwidth=4.5e10,
    min_ring_size=16,
    dcn_bandwidth=3.125e9,
    clock=1.5e9,
    calibration=0.78,
    calibration_error=0.28,
    splash=SplashCycles(
      {'fwd': (1169, 2147), 'dq': (1918, 2976), 'dkv': (1990, 3514)}
    ),
  ),
  'v5p': ChipSpec(
    device_kinds=('TPU v5', 'TPU v5p'),
    peak_flops=459e12,
    hbm_bytes=_gib(95),
    hbm_bandwidth=2.765e12,
    ici_bandwidth=9e10,
    min_ring_size=4,
    dcn_bandwidth=6.25e9,
    clock=1.75e9,
    calibration=0.95,
    calibration_error=0.05,
    num_cores=2,
    splash=SplashCycles(
      {'fwd': (1193, 2042), 'dq': (1880, 3032), 'dkv': (2024, 3919)}
    ),
  ),
  'v6e': ChipSpec(
    device_kinds=('TPU v6 lite', 'TPU v6e'),
    peak_flops=918e12,
    hbm_bytes=_gib(31.25),
    hbm_bandwidth=1.638e12,
    ici_bandwidth=9e10,
    min_ring_size=16,
    dcn_bandwidth=1.25e10,
    clock=1.75e9,
    calibration=0.95,
    calibration_error=0.2,
    splash=SplashCycles(
      {'fwd': (1151, 1151), 'dq': (1438, 1438), 'dkv': (1659, 1659)}
    ),
  ),
  'tpu7x': ChipSpec(
    device_kinds=('TPU7x',),
    peak_flops=2307e12 / 2,
    hbm_bytes=_gib(0.95 * 192 / 2),
    hbm_bandwidth=7.38e12 / 2,
    ici_bandwidth=9e10,
    min_ring_size=4,
    dcn_bandwidth=6.25e9,
    clock=2.2e9,
    calibration=0.95,
    calibration_error=0.2,
    devices_per_chip=2,
  ),
  'h100': ChipSpec(('NVIDIA H100 80GB HBM3',), 989e12, _gib(80), 3.35e12),
  'h200': ChipSpec(('NVIDIA H200',), 989e12, 141 * 10**9, 4.8e12),
}


def from_device_kind(kind: str) -> ChipSpec | None:
  """Returns the chip with this jax.Device.device_kind; None if not listed."""
  return next(
    (chip for chip in CHIPS.values() if kind in chip.device_kinds), None
  )
