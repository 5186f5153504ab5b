"""Parsed values of a module's text, against a text read by hand."""

import jax
import jax.numpy as jnp
import pytest

from grm_jax.aot import hlo_parser
from tests.messages import naming

TEXT = """HloModule jit_f, is_scheduled=true

%add.1 (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%inside (p: bf16[4,8]) -> bf16[4,8] {
  %p = bf16[4,8]{1,0} parameter(0)
  ROOT %neg = bf16[4,8]{1,0} negate(%p)
}

%inner (t: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %t = (s32[], /*index=1*/bf16[4,8]{1,0}) parameter(0)
  %g = bf16[4,8]{1,0} get-tuple-element(%t), index=1
  ROOT %f = bf16[4,8]{1,0} fusion(%g), kind=kLoop, calls=%inside
}

%limit.3 (t: (s32[], bf16[4,8])) -> pred[] {
  %three = s32[]{:T(128)} constant(3)
  %t = (s32[], bf16[4,8]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%t), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %three), direction=LT
}

%outer (t: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %t = (s32[], bf16[4,8]{1,0}) parameter(0)
  %unused = s32[] constant(0)
  ROOT %w = (s32[], bf16[4,8]{1,0}) while(%t), condition=%limit.3, body=%inner
}

ENTRY %main (a: bf16[4,8]) -> f32[] {
  %a = bf16[4,8]{1,0:T(8,128)S(1)} parameter(0)
  %w.1 = (s32[], bf16[4,8]{1,0}) while(%a), condition=%add.1, body=%outer, backend_config={"known_trip_count":{"n":"5"}}
  %c = bf16[4,8]{1,0} conditional(%a), branch_computations={%outer, %inside}
  ROOT %r = f32[] reduce(%a, %a), dimensions={0,1}, to_apply=%add.1
}
"""  # noqa: E501


def test_computations_and_instructions():
  found = hlo_parser.parse(TEXT)
  assert found.entry == 'main'
  assert list(found.computations) == [
    *('add.1', 'inside', 'inner', 'limit.3', 'outer', 'main')
  ]
  assert found['inner'].root == 'f'
  x = found['inner'].lines['f']
  assert (x.op, x.shape, x.operands) == ('fusion', 'bf16[4,8]{1,0}', ['g'])
  assert x.called == ['inside']
  # A reduction's rule is run for each element, by no program of its own.
  assert found['main'].lines['r'].called == []


def test_what_is_run_how_often_and_where():
  found = [
    (x.instruction.name, x.computation, x.frame, x.executions)
    for x in hlo_parser.walk(hlo_parser.parse(TEXT))
  ]
  assert ('neg', 'inside', 'inner', 15) in found  # 5 times 3
  assert ('w', 'outer', 'outer', 5) in found
  # The shorter branch of a conditional runs as often as the conditional.
  assert ('neg', 'inside', 'inside', 1) in found
  assert ('w', 'outer', 'outer', 1) not in found
  assert [name for name, *_ in found].count('sum') == 0


@pytest.mark.parametrize(
  'root, passes',
  [
    ('compare(%i, %three), direction=LT', 3),
    ('compare(%i, %three), direction=GT', 1),
    ('compare(%three, %i), direction=LT', 1),
    ('custom-call(%i), custom_call_target="Less"', 1),
  ],
)
def test_trips_that_the_text_does_not_tell_are_one(root, passes):
  text = TEXT.replace('compare(%i, %three), direction=LT', root)
  found = hlo_parser.parse(text)
  assert hlo_parser.trip_count(found, found['outer'].lines['w']) == passes


UNROLLED = """
HloModule unrolled

%condition (p.1: (s32[], bf16[8])) -> pred[] {
  %p.1 = (s32[], bf16[8]{0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  %c.1 = s32[] copy(%i.1)
  %eight = s32[] constant(8)
  ROOT %less = pred[] compare(%c.1, %eight), direction=LT
}

%body (p.2: (s32[], bf16[8])) -> (s32[], bf16[8]) {
  %p.2 = (s32[], bf16[8]{0}) parameter(0)
  %i.2 = s32[] get-tuple-element(%p.2), index=0
  %x.2 = bf16[8]{0} get-tuple-element(%p.2), index=1
  %two = s32[] constant(INCREMENT)
  %next = s32[] add(%i.2, %two)
  %copy.2 = s32[] copy(%next)
  ROOT %t.2 = (s32[], bf16[8]{0}) tuple(%copy.2, %x.2)
}

ENTRY %main (a: (s32[], bf16[8])) -> (s32[], bf16[8]) {
  %a = (s32[], bf16[8]{0}) parameter(0)
  ROOT %w = (s32[], bf16[8]{0}) while(%a), condition=%condition, body=%body
}
"""


@pytest.mark.parametrize(('increment', 'trips'), [(1, 8), (2, 4), (3, 3)])
def test_trips_of_an_unrolled_loop(increment, trips):
  """XLA for TPU unrolls loops of products and transfers by 2."""
  module = hlo_parser.parse(UNROLLED.replace('INCREMENT', str(increment)))
  loop = module['main'].lines['w']
  assert hlo_parser.trip_count(module, loop) == trips


def test_types():
  assert hlo_parser.tuple_elements('f32[2]{0}') == ['f32[2]{0}']
  pair = '(f32[2,3]{1,0:T(8,128)}, (s8[4]{0}, pred[]))'
  assert hlo_parser.tuple_elements(pair) == [
    *('f32[2,3]{1,0:T(8,128)}', '(s8[4]{0}, pred[])')
  ]
  assert hlo_parser.array_shapes(pair) == [(2, 3), (4,), ()]
  assert hlo_parser.nbytes(pair) == 24 + 4 + 1
  assert hlo_parser.nbytes('bf16[8]{0:S(1)}') == 0
  assert hlo_parser.nbytes('bf16[8]{0:S(1)}', anywhere=True) == 16
  with pytest.raises(ValueError, match=naming('u4[8]')):
    hlo_parser.nbytes('u4[8]')


def test_a_scan_of_this_release_of_jax():
  def scanned(x):
    return jax.lax.scan(lambda x, _: (jnp.sin(x) @ x, None), x, length=7)[0]

  text = jax.jit(scanned).lower(jnp.ones((8, 8))).compile().as_text()
  found = hlo_parser.parse(text)
  passes = [
    x.executions for x in hlo_parser.walk(found) if x.instruction.op == 'dot'
  ]
  assert passes == [7] or _is_custom(found, 7)


def _is_custom(found, passes):
  """On CPU a product may be a fusion of a library's own."""
  return passes in {
    x.executions for x in hlo_parser.walk(found) if x.instruction.op == 'fusion'
  }
