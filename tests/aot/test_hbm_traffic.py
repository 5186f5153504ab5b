"""Bytes of a program, against texts whose bytes were added up by hand."""

import jax
import jax.numpy as jnp
import pytest

from grm_jax.aot import hbm_traffic, hlo_parser
from tests.messages import naming

# Arrays that every loop body below can read. Bytes in HBM:
#   table 1000 * 128 * 2 = 256,000      cache 4 * 16 * 128 * 2 = 16,384
#   x      8 * 128 * 2 = 2,048          ids   8 * 4 = 32
#   new    4 * 1 * 128 * 2 = 1,024      near, place and flag: elsewhere, 0
GIVEN = """
  %p = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %table = bf16[1000,128]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %cache = bf16[4,16,128]{2,1,0:T(8,128)(2,1)} get-tuple-element(%p), index=2
  %x = bf16[8,128]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=3
  %ids = s32[8]{0:T(128)} get-tuple-element(%p), index=4
  %new = bf16[4,1,128]{2,1,0:T(8,128)(2,1)} get-tuple-element(%p), index=5
  %near = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%p), index=6
  %place = s32[]{:T(128)S(6)} get-tuple-element(%p), index=7
  %flag = pred[]{:T(512)S(6)} get-tuple-element(%p), index=8
"""
X = 'bf16[8,128]{1,0:T(8,128)(2,1)}'  # 2,048 bytes
NEAR = 'bf16[8,128]{1,0:T(8,128)(2,1)S(1)}'
CACHE = 'bf16[4,16,128]{2,1,0:T(8,128)(2,1)}'
NEW = 'bf16[4,1,128]{2,1,0:T(8,128)(2,1)}'


def module(body, others='', entry=None):
  """The text of a module whose ENTRY loops over `body`, given GIVEN."""
  entry = entry or '%w = s32[] while(%t), condition=%until, body=%body'
  return f"""HloModule jit_step, is_scheduled=true

FileNames
1 "step.py"

{others}

%until (q: (s32[], /*index=1*/bf16[8,128])) -> pred[] {{
  %q = (s32[]{{:T(128)}}, /*index=1*/bf16[8,128]{{1,0}}) parameter(0)
  ROOT %less = pred[]{{:T(512)}} custom-call(%q), custom_call_target="Less"
}}

ENTRY %main_spmd (a: s32[]) -> s32[] {{
  %a = s32[]{{:T(128)}} parameter(0)
  %t = (s32[]{{:T(128)}}, /*index=1*/{X}) tuple(%a, %a)
  %outside = {CACHE} broadcast(%a), dimensions={{}}
  {entry}
}}

%body (p: (s32[], bf16[8,128])) -> (s32[], /*index=1*/bf16[8,128]) {{
{GIVEN}
{body}
  ROOT %r = (s32[]{{:T(128)}}, /*index=1*/{X}) tuple(%place, %x)
}}
"""


def of_loop(text):
  found = hlo_parser.parse(text)
  return hbm_traffic.of_module(found, hbm_traffic.main_loop(found))


def of(body, others=''):
  return of_loop(module(body, others))


def hbm(body, others=''):
  return of(body, others).hbm_bytes


def fused(*lines, result='', operands=''):
  """hbm() of one fusion of `operands` over a computation of `lines`."""
  lines = '\n'.join(f'  {line}' for line in lines)
  inside = f'%inside (i: s32[]) -> s32[] {{\n{lines}\n}}'
  line = f'  %f = {result} fusion({operands}), kind=kLoop, calls=%inside'
  return hbm(line + ', metadata={op_name="jit(f)/while"}', inside)


@pytest.mark.parametrize(
  'result, operand, count',
  [
    (X, '%x', 4096),
    (NEAR, '%x', 2048),  # out of HBM only
    (X, '%near', 2048),  # into HBM only
    (NEAR, '%near', 0),
    ('bf16[8,128]{1,0:T(8,128)(2,1)S(6)}', '%near', 0),
    ('bf16[8,128]{1,0:T(8,128)(2,1)S(0)}', '%near', 2048),
    ('bf16[8,128]', '%near', 2048),  # no layout
    ('f32[]{:T(128)}', '%near', 4),
    (f'({X}, {NEAR}, {X})', '%near', 4096),
  ],
)
def test_only_hbm_costs(result, operand, count):
  assert hbm(f'  %y = {result} negate({operand})') == count


@pytest.mark.parametrize(
  'dtype, count',
  [('pred', 1), ('s8', 1), ('u8', 1), ('bf16', 2), ('f16', 2), ('s16', 2)]
  + [('f32', 4), ('s32', 4), ('u32', 4), ('s64', 8), ('c128', 16)]
  + [('token', 0)],
)
def test_element_sizes(dtype, count):
  line = f'  %y = {dtype}[8,128]{{1,0:T(8,128)}} broadcast(%near)'
  assert hbm(line) == count * 1024


def test_an_element_of_unknown_size_is_named():
  with pytest.raises(ValueError, match=naming('s4[8,128]')):
    hbm('  %y = s4[8,128]{1,0:T(8,128)E(4)} broadcast(%near)')


@pytest.mark.parametrize(
  'text',
  [
    'parameter(1)',
    'constant({...})',
    'get-tuple-element(%p), index=3',
    'tuple(%x)',
    'bitcast(%x)',
    'after-all(%x)',
    'partition-id()',
    'copy-done(%x)',
    'all-reduce-done(%x)',
  ],
)
def test_names_cost_nothing(text):
  assert hbm(f'  %y = {X} {text}') == 0


@pytest.mark.parametrize(
  'target, operand, source, count',
  [(NEAR, '%x', X, 2048), (X, '%near', NEAR, 2048), (X, '%x', X, 4096)],
)
def test_a_prefetch_counts_once(target, operand, source, count):
  start = f'({target}, {source}, u32[]{{:S(2)}}) copy-start({operand})'
  done = f'{target} copy-done(%start)'
  body = f'  %start = {start}\n  %done = {done}'
  assert hbm(body) == count
  # Its use costs nothing if it was copied to near memory.
  used = body + f'\n  %used = {NEAR} negate(%done)'
  assert hbm(used) == count + (0 if target == NEAR else 2048)


def test_a_prefetch_of_a_slice():
  """100 of 1,000 rows: 100 * 128 * 2 bytes are read, none written."""
  near = 'bf16[100,128]{1,0:T(8,128)(2,1)S(1)}'
  result = f'((bf16[1000,128]{{1,0:T(8,128)(2,1)}}), {near}, s32[]{{:S(2)}})'
  line = f'  %s = {result} slice-start(%table), slice={{[0:100], [0:128]}}'
  assert hbm(line) == 25_600


@pytest.mark.parametrize(
  'line, count',
  [
    # 8 rows read, 8 indices, 8 rows written.
    (f'{X} gather(%table, %ids), offset_dims={{1}}', 2048 + 32 + 2048),
    (f'{NEAR} gather(%table, %ids), offset_dims={{1}}', 2048 + 32),
    (f'{X} slice(%table), slice={{[0:8], [0:128]}}', 4096),
    (f'{X} dynamic-slice(%table, %place, %place)', 4096),
    (f'{X} dynamic-slice(%near, %place, %place)', 2048),
    # The update is read and written.
    (f'{CACHE} dynamic-update-slice(%cache, %new, %place)', 2048),
    (f'{CACHE} dynamic-update-slice(%cache, %near, %place)', 2048),
  ],
)
def test_a_part_of_an_array(line, count):
  assert hbm('  %y = ' + line) == count


def test_an_update_outside_of_hbm():
  near = CACHE.replace('}', 'S(1)}')
  body = f'  %c = {near} bitcast(%place)\n  %y = {near} '
  assert hbm(body + 'dynamic-update-slice(%c, %new, %place)') == 1024


def test_a_fusion_reads_its_operands_and_writes_its_results():
  """x once each way; ids read; the second result is not in HBM."""
  count = fused(
    f'%i.0 = {X} parameter(0)',
    '%i.1 = s32[8]{0} parameter(1)',
    f'%i.2 = {X} add(%i.0, %i.1)',
    f'ROOT %i.3 = ({X}, {X}) tuple(%i.2, %i.2)',
    result=f'({X}, {NEAR})',
    operands='%x, %ids',
  )
  assert count == 2048 + 32 + 2048


GATHER = (
  # In any order: the number tells which operand a parameter is.
  '%i.1 = s32[8]{0} parameter(1)',
  '%i.0 = bf16[1000,128]{1,0} parameter(0)',
  '%i.2 = bf16[1000,1,128]{2,0,1} bitcast(%i.0)',
  '%i.3 = bf16[8,1,128]{2,0,1} gather(%i.2, %i.1), offset_dims={1,2}',
)


@pytest.mark.parametrize('op', ['gather', 'dynamic-slice', 'slice'])
def test_a_fusion_that_takes_rows(op):
  """8 rows, the indices, and the result; f32, so that it is another size."""
  count = fused(
    *(line.replace('gather', op) for line in GATHER),
    'ROOT %i.4 = f32[8,128]{1,0} convert(%i.3)',
    result='f32[8,128]{1,0:T(8,128)}',
    operands='%table, %ids',
  )
  assert count == 2048 + 32 + 4096


def test_a_fusion_that_takes_rows_and_all_else_too():
  count = fused(
    *GATHER,
    '%i.4 = bf16[128]{0} reduce(%i.2, %i.3), dimensions={0,1}',
    'ROOT %i.5 = bf16[8,128]{1,0} add(%i.3, %i.4)',
    result=NEAR,
    operands='%table, %ids',
  )
  assert count == 256_000 + 32


def test_the_indices_of_a_gather_are_read_whole():
  count = fused(
    '%i.0 = bf16[8,128]{1,0} parameter(0)',
    'ROOT %i.1 = bf16[2]{0} gather(%i.0, %i.0), offset_dims={}',
    result='bf16[2]{0:T(128)S(1)}',
    operands='%x',
  )
  assert count == 2048


def test_rows_taken_more_often_than_there_are_cost_the_whole():
  count = fused(
    '%i.0 = s32[8]{0} parameter(0)',
    'ROOT %i.1 = s32[64]{0} gather(%i.0, %i.0.1), offset_dims={}',
    '%i.0.1 = s32[64]{0} constant({...})',
    result='s32[64]{0:T(128)S(1)}',
    operands='%ids',
  )
  assert count == 32


def test_a_fusion_in_a_fusion():
  """The inner one takes 8 rows of the table."""
  inner = 'bf16[8,128]{1,0}'
  others = f"""
%deep (d: bf16[1000,128]) -> bf16[8,128] {{
  %d.0 = bf16[1000,128]{{1,0}} parameter(0)
  ROOT %d.1 = {inner} slice(%d.0), slice={{[0:8], [0:128]}}
}}
%inside (i: bf16[1000,128]) -> bf16[8,128] {{
  %i.0 = bf16[1000,128]{{1,0}} parameter(0)
  %i.1 = {inner} fusion(%i.0), kind=kLoop, calls=%deep
  ROOT %i.2 = {inner} negate(%i.1)
}}"""
  line = f'  %f = {NEAR} fusion(%table), kind=kLoop, calls=%inside'
  assert hbm(line, others) == 2048


UPDATE = (
  f'%i.0 = {CACHE} parameter(0)',
  f'%i.1 = {NEW} parameter(1)',
  '%i.2 = bf16[64,128]{1,0} bitcast(%i.0)',
  '%i.3 = bf16[4,128]{1,0} bitcast(%i.1)',
  '%i.4 = bf16[64,128]{1,0} dynamic-update-slice(%i.2, %i.3, %i.9)',
  f'%i.5 = {CACHE} bitcast(%i.4)',
)


def test_a_fusion_that_updates_in_place():
  """The update, 1,024 bytes, is read and written; the cache stays."""
  lines = (*UPDATE[:-1], 'ROOT ' + UPDATE[-1])
  count = fused(*lines, result=CACHE, operands='%cache, %new')
  assert count == 2048


def test_a_fusion_with_an_update_among_its_results():
  """And 1,024 bytes of a float32 result in HBM, none of one that is not."""
  count = fused(
    *UPDATE,
    # ROOT says which line is the result, not its place.
    f'ROOT %i.7 = (f32[2,128], {CACHE}, f32[2,128]) tuple(%i.6, %i.5, %i.6)',
    '%i.6 = f32[2,128]{1,0} constant({...})',
    result=f'(f32[2,128]{{1,0}}, {CACHE}, f32[2,128]{{1,0:S(1)}})',
    operands='%cache, %new',
  )
  assert count == 2048 + 1024


@pytest.mark.parametrize('what', ['%i.0', '%i.4', '%i.5'])
def test_a_fusion_that_also_reads_what_it_updates(what):
  """Then the cache is read and written: before, after, behind a bitcast."""
  count = fused(
    *UPDATE,
    f'%i.6 = f32[2,128]{{1,0}} reduce({what}), dimensions={{0}}',
    f'ROOT %i.7 = (f32[2,128], {CACHE}) tuple(%i.6, %i.5)',
    result=f'(f32[2,128]{{1,0:S(1)}}, {CACHE})',
    operands='%cache, %new',
  )
  assert count == 16_384 + 1024 + 16_384


def test_a_fusion_that_looks_at_a_part_of_what_it_updates():
  count = fused(
    *UPDATE,
    '%i.6 = bf16[1,128]{1,0} slice(%i.2), slice={[0:1], [0:128]}',
    '%i.7 = bf16[2,128]{1,0} slice(%i.4), slice={[0:2], [0:128]}',
    f'ROOT %i.8 = (f32[2,128], {CACHE}) tuple(%i.6, %i.5)',
    result=f'(f32[2,128]{{1,0:S(1)}}, {CACHE})',
    operands='%cache, %new',
  )
  assert count == 256 + 512 + 2048


def test_a_fusion_that_updates_outside_of_hbm():
  lines = (*UPDATE[:-1], 'ROOT ' + UPDATE[-1])
  near = CACHE.replace('}', 'S(1)}')
  assert fused(*lines, result=near, operands='%near, %new') == 1024


def test_an_update_of_what_the_fusion_makes_writes_all():
  count = fused(
    f'%i.0 = {NEW} parameter(0)',
    f'%i.1 = {CACHE} broadcast(%i.9), dimensions={{}}',
    f'ROOT %i.2 = {CACHE} dynamic-update-slice(%i.1, %i.0, %i.9)',
    result=CACHE,
    operands='%new',
  )
  assert count == 1024 + 16_384


@pytest.mark.parametrize('result', ['%i.0', '%i.1'])
def test_a_fusion_that_hands_out_its_operand_copies_it(result):
  root = f'ROOT %i.2 = ({X}, {X}) tuple({result}, {result})'
  count = fused(
    f'%i.0 = {X} parameter(0)',
    f'%i.1 = {X} bitcast(%i.0)',
    root,
    result=f'({X}, {NEAR})',
    operands='%x',
  )
  assert count == 4096


def test_a_fusion_that_is_nothing_but_a_bitcast_copies():
  count = fused(
    f'%i.0 = {X} parameter(0)',
    f'ROOT %i.1 = {X} bitcast(%i.0)',
    result=X,
    operands='%x',
  )
  assert count == 4096


BRANCHES = f"""
%cheap (c: bf16[8,128]) -> bf16[8,128] {{
  %c.0 = {X} parameter(0)
  ROOT %c.1 = {NEAR} all-reduce(%c.0), to_apply=%sum
}}
%dear (d: bf16[8,128]) -> bf16[8,128] {{
  %d.0 = {X} parameter(0)
  %d.1 = {X} all-reduce(%d.0), to_apply=%sum
  ROOT %d.2 = {X} all-reduce(%d.1), to_apply=%sum
}}"""


@pytest.mark.parametrize(
  'branches',
  [
    'branch_computations={%cheap, %dear}',
    'branch_computations={%dear, %cheap}',
    'true_computation=%dear, false_computation=%cheap',
    'true_computation=%cheap, false_computation=%dear',
  ],
)
def test_a_conditional_costs_its_cheapest_branch(branches):
  found = of(f'  %y = {X} conditional(%flag, %x, %x), {branches}', BRANCHES)
  assert found.hbm_bytes == 2048
  assert found.largest == ((2048, 'c.1', 'all-reduce'),)


def test_a_loop_in_the_loop_costs_its_passes():
  """One, where the text does not tell; its condition costs nothing."""
  line = f'  %y = ({X}) while(%x), condition=%dear, body=%cheap'
  assert hbm(line, BRANCHES) == 2048
  line += ', backend_config={"known_trip_count":{"n":"5"}}'
  assert hbm(line, BRANCHES) == 5 * 2048


def test_a_program_costs_its_loops_and_what_is_around_them():
  body = f'  %y = {X} negate(%x)'
  known = 'backend_config={"known_trip_count":{"n":"3"}}'
  entry = f'%w = s32[] while(%t), condition=%until, body=%body, {known}'
  found = hlo_parser.parse(module(body, entry=entry))
  assert of_loop(module(body, entry=entry)).hbm_bytes == 4096
  outside = hbm_traffic.of_module(hlo_parser.parse(module('', entry=entry)))
  whole = hbm_traffic.of_module(found)
  assert whole.hbm_bytes == outside.hbm_bytes + 3 * 4096
  assert outside.hbm_bytes >= 16_384  # of %outside
  assert (3 * 4096, 'y', 'negate') in whole.largest


def test_calls_cost_operands_and_results():
  line = f'  %y = ({X}, {NEAR}) call(%table, %near), to_apply=%dear'
  assert hbm(line, BRANCHES) == 256_000 + 2048
  line = f'  %y = {X} custom-call(%table, %x), custom_call_target="Mosaic"'
  assert hbm(line) == 256_000 + 2048 + 2048


@pytest.mark.parametrize(
  'start, count',
  [
    (f'({X}, {NEAR}) all-to-all(%x, %near), channel_id=1', 4096),
    ('bf16[64,128]{1,0} all-gather(%x), dimensions={0}', 2048 + 16_384),
    (f'{X} all-reduce-start(%x), to_apply=%sum', 4096),
    (f'({X}, {X}) all-reduce-start(%x, %near), to_apply=%sum', 6144),
    (f'({X}, bf16[64,128]{{1,0}}) all-gather-start(%x)', 18_432),
    (
      f'({X}, {NEAR}, u32[]{{:S(2)}}, u32[]{{:S(2)}}) '
      'collective-permute-start(%x), source_target_pairs={{0,1}}',
      2048,
    ),
    (f'(({X}, {X}), ({X}, {X})) reduce-scatter-start(%x, %near)', 6144),
  ],
)
def test_collectives(start, count):
  """The result counts, not what the tuple says about the operands."""
  assert hbm(f'  %y = {start}\n  %z = {X} done-done(%y)') == count


def test_a_fusion_with_a_kernel_at_its_end_writes_all_of_its_results():
  found = fused(
    f'%a = {X} parameter(0)',
    f'ROOT %r = ({X}, {NEAR}, {X}) custom-call(%a)',
    result=f'({X}, {NEAR}, {X})',
    operands='%x',
  )
  assert found == 2048 + 2 * 2048


def test_the_largest_ten():
  """Instructions are in descending order, whatever their order in the text."""
  body = '\n'.join(
    f'  %y.{n} = f32[{n}]{{0:T(128)}} broadcast(%near), dimensions={{}}'
    for n in (3, 12, 5, 1, 9, 2, 11, 4, 10, 7, 6, 8)
  )
  found = of(body)
  assert found.hbm_bytes == 4 * 78
  assert found.largest == tuple(
    (4 * n, f'y.{n}', 'broadcast') for n in range(12, 2, -1)
  )


@pytest.mark.parametrize('order', ['%cheap %body', '%body %cheap'])
def test_the_main_loop_is_the_one_that_moves_most(order):
  first, second = order.split()
  entry = (
    f'%w.1 = s32[] while(%t), condition=%until, body={first}\n'
    f'  %w.2 = s32[] while(%t), condition=%until, body={second}'
  )
  text = module(f'  %y = {X} negate(%table)', BRANCHES, entry)
  assert of_loop(text).hbm_bytes == 256_000 + 2048


def test_no_loop_is_an_error():
  """A loop elsewhere, such as in a called computation, does not count."""
  loop = f'  %y = {X} while(%x), condition=%dear, body=%cheap'
  text = module(loop, BRANCHES, '%n = s32[] negate(%a)')
  with pytest.raises(ValueError, match=naming('ENTRY')):
    of_loop(text)


def test_the_text_of_this_release_of_jax():
  """A loop that doubles 4,096 bytes reads and writes them, and counts."""

  def twice(x):
    return jax.lax.fori_loop(0, 7, lambda _, x: x * 2, x)

  text = jax.jit(twice).lower(jnp.ones(1024)).compile().as_text()
  found = of_loop(text)
  assert 8192 <= found.hbm_bytes <= 8192 + 64
