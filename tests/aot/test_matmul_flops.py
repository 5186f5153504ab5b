"""FLOPs of products in modules, against sizes multiplied by hand."""

import jax
import jax.numpy as jnp
import pytest

from grm_jax.aot import hlo_parser, matmul_flops
from tests.messages import naming


def entry(*lines):
  text = '\n'.join(f'  {line}' for line in lines)
  return hlo_parser.parse(f'ENTRY %main (a: f32[]) -> f32[] {{\n{text}\n}}')


def of(left, right, out, attributes, op='convolution'):
  return matmul_flops.of_module(
    entry(
      f'%a = f32[{left}] parameter(0)',
      f'%b = f32[{right}] parameter(1)',
      f'ROOT %c = f32[{out}] {op}(%a, %b), {attributes}',
    )
  )


def test_a_product():
  dims = 'lhs_contracting_dims={1}, rhs_contracting_dims={0}'
  assert of('3,5', '5,7', '3,7', dims, 'dot') == 2 * 3 * 5 * 7
  dims = (
    'lhs_batch_dims={0}, lhs_contracting_dims={1,3}, rhs_batch_dims={0}, '
    'rhs_contracting_dims={2,1}'
  )
  assert of('2,3,4,5', '2,5,3,6', '2,4,6', dims, 'dot') == 2 * (2 * 4 * 6) * 15


def test_a_product_as_a_convolution():
  """XLA for TPU writes products like this; [3072, 2304] by [2304, 4, 256]."""
  window = 'window={size=4 pad=3_3 rhs_reversal=1}, dim_labels=bf0_i0o->b0f'
  found = of('3072,2304,1', '2304,4,256', '3072,4,256', window)
  assert found == 2 * 3072 * 2304 * 4 * 256
  plain = 'dim_labels=bf_io->bf'
  assert of('16,32', '32,8', '16,8', plain) == 2 * 16 * 32 * 8


def test_a_batched_product_as_a_dilated_convolution():
  """Each of 4 places of the batch meets its own window only."""
  window = (
    'window={size=4x1x1 stride=3x1x1 lhs_dilate=4x1x1}, '
    'dim_labels=012bf_0oi12->012bf'
  )
  found = of('4,4,2,128,256', '4,1024,256,1,1', '4,4,2,128,1024', window)
  assert found == 2 * (4 * 4 * 2 * 128 * 1024) * 256


def test_a_convolution_over_places():
  """Three taps over five inputs, two of them padded: 3 + 3 + 3 + 2 + 2."""
  window = 'window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f'
  assert of('1,5,1', '3,1,1', '1,5,1', window) == 2 * 13


def test_loops_and_kernels():
  body = """%body (t: (s32[], f32[4,4])) -> (s32[], f32[4,4]) {
  %t = (s32[], f32[4,4]) parameter(0)
  %x = f32[4,4] get-tuple-element(%t), index=1
  %k = f32[4,4] custom-call(%x), custom_call_target="tpu_custom_call"
  ROOT %d = f32[4,4] dot(%x, %k), lhs_contracting_dims={1}
}

ENTRY %main (a: f32[4,4]) -> f32[4,4] {
  %a = f32[4,4] parameter(0)
  ROOT %w = (s32[], f32[4,4]) while(%a), condition=%none, body=%body, \
backend_config={"known_trip_count":{"n":"6"}}
}
"""
  found = hlo_parser.parse(body)
  assert matmul_flops.of_module(found) == 6 * 128
  kernel = {'k': 1000}
  counted = matmul_flops.of_module(found, lambda x: kernel[x.name])
  assert counted == 6 * (128 + 1000)


def test_a_convolution_that_cannot_be_read():
  with pytest.raises(ValueError, match=naming('dim_labels', 'c')):
    of('1', '1', '1', 'window={}')


def test_this_release_of_jax():
  """XLA's own count of a module without loops, to the last product."""

  def two(a, b):
    return jnp.einsum('abc,acd->abd', a, b) @ b[0]

  a, b = jnp.ones((3, 16, 32)), jnp.ones((3, 32, 32))
  options = {'xla_cpu_experimental_ynn_fusion_type': ''}
  compiled = jax.jit(two).lower(a, b).compile(options)
  found = matmul_flops.of_module(hlo_parser.parse(compiled.as_text()))
  assert found == 2 * 3 * 16 * 32 * 32 * 2
