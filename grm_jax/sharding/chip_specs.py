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

GPU: the data sheets of H100 SXM and H200 SXM; the FLOP/s are half of the ones
stated, which are with sparsity. The H100 PCIe is slower, has another device
kind and is not listed.
"""

import dataclasses


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
  """

  device_kinds: tuple[str, ...]
  peak_flops: float
  hbm_bytes: int
  hbm_bandwidth: float
  ici_bandwidth: float = 0.0
  min_ring_size: int = 0
  dcn_bandwidth: float = 0.0


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


def from_device_kind(kind: str) -> ChipSpec | None:
  """Returns the chip with this jax.Device.device_kind; None if not listed."""
  return next(
    (chip for chip in CHIPS.values() if kind in chip.device_kinds), None
  )
