"""What one chip of each kind can do, and where the numbers are from.

TPU compute and the rate of HBM: the pages "TPU v4", "TPU v5e", "TPU v5p" and
"TPU v6e" of the Google Cloud documentation (docs.cloud.google.com/tpu/docs).
Links between chips and slices: the table of "How to Scale Your Model"
(jax-ml.github.io/scaling-book, part 2), one direction of one link; the
documentation's totals of a chip (v5e 400 GB/s, v5p 1200, v6e 800, both
directions of all links) are a tenth more.

Bytes of HBM: what XLA lets a program have, as it says where it does not fit.
The documentation's 32 (v4, v6e) and 16 GiB (v5e) have a part for the runtime.
v4: github.com/erfanzar/EasyDeL/issues/166. v5e: github.com/GoogleCloudPlatform/
kubernetes-engine-samples/pull/1467. v6e: megacpp.pages.dev/blog/oom-on-v6e.
v5p: 95 as documented; XLA says 95.74 (openxla.org/xla/errors/error_1000).

GPU: the H100 SXM and H200 SXM data sheets, half of the FLOP/s that they state
with sparsity; the H100 PCIe is slower, calls itself otherwise and is not
listed.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ChipSpec:
  """One chip.

  Attributes:
    kinds: what JAX calls it, Device.device_kind.
    flops: bfloat16 FLOP/s.
    hbm: bytes of memory that a program can have.
    hbm_rate: of which so many bytes/s are read or written.
    link_rate: bytes/s over one link to a neighbour, in one direction; 0 where
      that is not known.
    ring: the least length of an axis whose ends are linked, in chips.
    slice_rate: bytes/s to other slices, in one direction.
  """

  kinds: tuple[str, ...]
  flops: float
  hbm: int
  hbm_rate: float
  link_rate: float = 0.0
  ring: int = 0
  slice_rate: float = 0.0


def _gib(count: float) -> int:
  return int(count * 2**30)


CHIPS = {
  'v4': ChipSpec(('TPU v4',), 275e12, _gib(30.75), 1.2e12, 4.5e10, 4, 6.25e9),
  'v5e': ChipSpec(
    ('TPU v5 lite', 'TPU v5e'),
    197e12,
    _gib(15.75),
    8.19e11,
    4.5e10,
    16,
    3.125e9,
  ),
  'v5p': ChipSpec(
    ('TPU v5', 'TPU v5p'), 459e12, _gib(95), 2.765e12, 9e10, 4, 6.25e9
  ),
  'v6e': ChipSpec(
    ('TPU v6 lite', 'TPU v6e'), 918e12, _gib(31.25), 1.638e12, 9e10, 16, 1.25e10
  ),
  'h100': ChipSpec(('NVIDIA H100 80GB HBM3',), 989e12, _gib(80), 3.35e12),
  'h200': ChipSpec(('NVIDIA H200',), 989e12, 141 * 10**9, 4.8e12),
}


def of_kind(kind: str) -> ChipSpec | None:
  """The chip that JAX calls `kind`, None if it is not listed."""
  return next((chip for chip in CHIPS.values() if kind in chip.kinds), None)
