"""The estimate of a module, summed by hand."""

import dataclasses

import pytest

from grm_jax.aot import hlo_parser, xla_estimate
from grm_jax.model.row_mask import RowMask
from grm_jax.sharding.chip_specs import CHIPS, SplashCycles

CHIP = dataclasses.replace(
  CHIPS['v5p'],
  clock=1000.0,
  num_cores=2,
  splash=SplashCycles(
    {'fwd': (100, 180), 'dq': (10, 10), 'dkv': (20, 20)}, step_cycles=7
  ),
)
MASK = RowMask(2048, 1024, 512)


def cycles(count):
  return f'backend_config={{"window_config":{{"estimated_cycles":"{count}"}}}}'


SHAPES = (
  's8[1,12,6]{2,1,0}, s8[1,12,6]{2,1,0}, bf16[3,1,2,6144,128]{4,3,2,1,0}, '
  'bf16[3,1,6144,128]{3,2,1,0}, s32[3,6144]{1,0}'
)


def kernel(name, layer):
  return (
    f'%{name} = bf16[3,1,2,6144,128]{{4,3,2,1,0}} custom-call(%x), '
    f'custom_call_target="tpu_custom_call", '
    f'operand_layout_constraints={{{SHAPES}}}, '
    f'metadata={{op_name="jit(grad)/pairs/{layer}/attention/x"}}'
  )


# A fusion of 50 cycles in a loop of 4 iterations, whose inner copy (999 cycles)
# is part of it; a copy of 30 cycles; two kernels.
TEXT = f"""
HloModule estimate

%inside (q: bf16[8]) -> bf16[8] {{
  %q = bf16[8]{{0}} parameter(0)
  ROOT %inner = bf16[8]{{0}} copy(%q), {cycles(999)}
}}

%condition (p.1: (s32[], bf16[8])) -> pred[] {{
  %p.1 = (s32[], bf16[8]{{0}}) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  %four = s32[] constant(4)
  ROOT %less = pred[] compare(%i.1, %four), direction=LT
}}

%body (p.2: (s32[], bf16[8])) -> (s32[], bf16[8]) {{
  %p.2 = (s32[], bf16[8]{{0}}) parameter(0)
  %i.2 = s32[] get-tuple-element(%p.2), index=0
  %x.2 = bf16[8]{{0}} get-tuple-element(%p.2), index=1
  %one = s32[] constant(1)
  %next = s32[] add(%i.2, %one)
  %f.2 = bf16[8]{{0}} fusion(%x.2), kind=kLoop, calls=%inside, {cycles(50)}
  ROOT %t.2 = (s32[], bf16[8]{{0}}) tuple(%next, %f.2)
}}

ENTRY %main (x: bf16[8], a: (s32[], bf16[8])) -> bf16[8] {{
  %x = bf16[8]{{0}} parameter(0)
  %a = (s32[], bf16[8]{{0}}) parameter(1)
  %w = (s32[], bf16[8]{{0}}) while(%a), condition=%condition, body=%body
  {kernel('splash_mqa_fwd_residuals.1', 'global')}
  {kernel('splash_mqa_dq_no_residuals.1', 'local')}
  ROOT %c = bf16[8]{{0}} copy(%x), {cycles(30)}
}}
"""
# Tiles of 512 of one head: test_row_mask.py counts 54 and 23.
GLOBAL_TILES, LOCAL_TILES = 54, 23


@pytest.fixture(scope='module')
def module():
  return hlo_parser.parse(TEXT)


def test_kernels(module):
  lines = module['main'].lines
  forward, backward = (
    xla_estimate.splash_call(lines[name], MASK)
    for name in ('splash_mqa_fwd_residuals.1', 'splash_mqa_dq_no_residuals.1')
  )
  assert (forward.kind, forward.heads, forward.head_dim) == ('fwd', 6, 128)
  assert (forward.tiles, forward.block) == (GLOBAL_TILES, 512)
  assert (backward.tiles, backward.grid_steps) == (LOCAL_TILES, 72)
  product = 2 * 512 * 512 * 128
  assert forward.flops == 2 * 6 * GLOBAL_TILES * product
  assert backward.flops == 3 * 6 * LOCAL_TILES * product
  # Two cores have three heads each.
  cycles = 3 * (GLOBAL_TILES * 100 + 72 * 7)
  assert forward.seconds(CHIP) == pytest.approx(cycles / 1000)
  wide = dataclasses.replace(forward, head_dim=192, block=256)
  cycles = 3 * (GLOBAL_TILES * 140 / 4 + 72 * 7)
  assert wide.seconds(CHIP) == pytest.approx(cycles / 1000)
  unknown = dataclasses.replace(CHIP, splash=None)
  assert forward.seconds(unknown) == forward.flops / CHIP.peak_flops


def test_a_kernel_of_one_row_and_one_key_head(module):
  """Its queries have no dimension of rows or key heads."""
  line = module['main'].lines['splash_mqa_fwd_residuals.1']
  shape = 'bf16[3,1,2,6144,128]'
  assert shape in line.attributes
  attributes = line.attributes.replace(shape, 'bf16[2,6144,128]')
  call = xla_estimate.splash_call(
    dataclasses.replace(line, attributes=attributes), MASK
  )
  assert (call.heads, call.head_dim, call.block) == (2, 128, 512)


def test_a_row_has_54_tiles_on_global_and_23_on_local_layers():
  """Counted by hand; W = 512 is a tile.

  Global: 10 of the prompt, and 4 generations of two rows of tiles with 4 tiles
  of the prompt each and 3 of their own. Local: the diagonal and the tile before
  it, 7 of the prompt and 4 of each generation.
  """
  assert GLOBAL_TILES == 10 + 4 * (2 * 4 + 3)
  assert LOCAL_TILES == 7 + 4 * 4


def test_a_custom_call_that_is_no_kernel(module):
  x = dataclasses.replace(
    module['main'].lines['splash_mqa_fwd_residuals.1'], name='sort.1'
  )
  assert xla_estimate.splash_call(x, MASK) is None


def test_total(module):
  estimate = xla_estimate.of_module(module, CHIP, MASK)
  kernels = 3 * (GLOBAL_TILES * 100 + LOCAL_TILES * 10 + 2 * 72 * 7) / 1000
  assert estimate.kernel_seconds == pytest.approx(kernels)
  assert estimate.seconds == pytest.approx(kernels + 4 * 0.050 + 0.030)
  assert estimate.unestimated == 0
  assert [x[1] for x in estimate.slowest[:3]] == [
    *('splash_mqa_fwd_residuals.1', 'splash_mqa_dq_no_residuals.1', 'f.2')
  ]


def test_fusions_without_an_estimate_are_counted():
  """libtpu wrote 2^63 - 1 cycles for a product of an adapter (27B, v5e)."""
  text = TEXT.replace(cycles(50), cycles(2**63 - 1))
  estimate = xla_estimate.of_module(hlo_parser.parse(text), CHIP, None)
  assert estimate.unestimated == 4
  assert estimate.seconds == pytest.approx(0.030)


def test_time_of_a_loop(module):
  """Decoding is counted by the iteration."""
  estimate = xla_estimate.of_module(module, CHIP, MASK, 'body')
  assert estimate.seconds == pytest.approx(0.050)
