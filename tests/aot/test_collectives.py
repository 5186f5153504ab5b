"""Collectives of modules, their axes and their time, against hand counts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from grm_jax.aot import collectives, hlo_parser
from grm_jax.aot.collectives import Collective
from grm_jax.sharding.chip_specs import ChipSpec
from tests.messages import naming

CHIP = ChipSpec(
  ('X',),
  1e12,
  1 << 30,
  1e11,
  ici_bandwidth=1e9,
  min_ring_size=4,
  dcn_bandwidth=1e6,
)


@dataclasses.dataclass(frozen=True)
class Device:
  coords: tuple[int, ...]
  slice_index: int = 0


def box(*sizes, num_slices=1):
  return [
    Device(coords, index)
    for index in range(num_slices)
    for coords in np.ndindex(sizes)
  ]


def entry(*lines):
  text = '\n'.join(f'  {line}' for line in lines)
  return f'ENTRY %main (a: bf16[8,128]) -> f32[] {{\n{text}\n}}\n'


A = '%a = bf16[8,128]{1,0} parameter(0)'  # 2,048 bytes


def of(line, count=8, before=''):
  found = hlo_parser.parse(before + entry(A, f'ROOT %c = {line}'))
  return collectives.of_module(found, count)


@pytest.mark.parametrize(
  'kind, result, nbytes',
  [
    ('all-gather', 'bf16[64,128]', 16_384),
    ('all-reduce', 'bf16[8,128]', 2048),
    ('reduce-scatter', 'bf16[1,128]', 2048),
    ('all-to-all', 'bf16[8,128]', 2048),
  ],
)
@pytest.mark.parametrize('start', ['', '-start'])
def test_kinds(kind, result, nbytes, start):
  own = (
    result if not start or kind == 'all-reduce' else f'(bf16[8,128], {result})'
  )
  (found,) = of(
    f'{own} {kind}{start}(%a), channel_id=1, replica_groups={{}}, '
    'metadata={op_name="jit(f)/x"}'
  )
  assert (found.kind, found.nbytes, found.executions) == (kind, nbytes, 1)
  assert found.groups == (tuple(range(8)),)
  assert found.source == 'jit(f)/x'
  twice = 2 if kind == 'all-reduce' else 1
  assert found.sent_bytes == twice * nbytes * 7 / 8
  assert not found.fused
  assert (found.frame, found.line) == ('main', 'c')


@pytest.mark.parametrize(
  'kind, nbytes, sent',
  [
    ('ALL_REDUCE', 2048, 2048),
    ('ALL_GATHER', 4096, 2048),
    ('REDUCE_SCATTER', 2048, 1024),
    ('ALL_TO_ALL', 2048, 1024),
    ('ONE_TO_ONE', 2048, 2048),
  ],
)
def test_between_slices(kind, nbytes, sent):
  """Parses a send of libtpu: 2 slices of 4 devices, 2,048 bytes of each."""
  found = hlo_parser.parse(
    entry(
      A,
      '%b = token[] after-all()',
      '%s = (bf16[8,128], u32[], token[]) send(%a, %b), channel_id=2, '
      'is_host_transfer=true, frontend_attributes={'
      '_xla_host_transfer_handler_name="xla_megascale_runtime",'
      f'_xla_megascale_transfer_type="{kind}"}}',
      '%t = (f32[8], u32[], token[]) send(%a, %b), is_host_transfer=true',
      '%d = token[] send-done(%s), channel_id=2, is_host_transfer=true',
      'ROOT %c = bf16[8,128] all-reduce(%a), channel_id=3, replica_groups={}',
    )
  )
  between, inside = collectives.of_module(found, 8, num_slices=2)
  assert (between.nbytes, between.sent_bytes) == (nbytes, sent)
  assert between.groups == ((0, 4), (1, 5), (2, 6), (3, 7))
  assert inside.groups == ((0, 1, 2, 3),)
  mesh = {'data': 2, 'fsdp': 4}
  assert collectives.axes(between, mesh) == ('data',)
  assert collectives.axes(inside, mesh) == ('fsdp',)
  devices = box(2, 2, num_slices=2)
  assert collectives.seconds(between, devices, CHIP) == sent / 1e6


@pytest.mark.parametrize(
  'groups, expected',
  [
    ('replica_groups={{0,1},{2,3}}', ((0, 1), (2, 3))),
    ('replica_groups=[2,2]<=[4]', ((0, 1), (2, 3))),
    ('replica_groups=[2,2]<=[2,2]T(1,0)', ((0, 2), (1, 3))),
    ("replica_groups=mesh['a'=2,'b'=2] {'b'}", ((0, 1), (2, 3))),
    ("replica_groups=mesh['a'=2,'b'=2] {'a'}", ((0, 2), (1, 3))),
    ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", ((0, 1, 2, 3),)),
    (
      "replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}",
      ((0, 2), (1, 3)),
    ),
    (
      "replica_groups=mesh['a'=2,'b'=2], device_ids=([4]) {'b'}",
      ((0, 1), (2, 3)),
    ),
    (
      "replica_groups=mesh['a'=2,'b'=2], device_ids=(3,1,2,0) {'b'}",
      ((3, 1), (2, 0)),
    ),
    ("replica_groups=mesh['a'=4] {'a':(1)2}", ((0, 2), (1, 3))),
    ("replica_groups=mesh['a'=4] {'a':(2)2}", ((0, 1), (2, 3))),
  ],
)
def test_groups(groups, expected):
  (found,) = of(f'bf16[8,128] all-reduce(%a), channel_id=1, {groups}', 4)
  assert found.groups == expected


def test_a_permutation_has_pairs():
  (found,) = of(
    'bf16[8,128] collective-permute(%a), channel_id=1, '
    'source_target_pairs={{0,1},{1,0}}',
    2,
  )
  assert found.groups == ((0, 1), (1, 0))
  assert found.sent_bytes == 2048


def test_groups_of_one_send_nothing():
  assert not of('bf16[8,128] all-reduce(%a), replica_groups={{0},{1}}', 2)


def test_groups_that_cannot_be_read():
  with pytest.raises(ValueError, match=naming('replica_groups=@mesh')):
    of('bf16[8,128] all-reduce(%a), replica_groups=@mesh')


def test_a_fusion_of_an_all_reduce_that_is_a_reduce_scatter():
  before = """%all-reduce-scatter.3 (p: bf16[8,128]) -> bf16[1,128] {
  %p = bf16[8,128]{1,0} parameter(0)
  ROOT %r = bf16[8,128]{1,0} all-reduce(%p), channel_id=7, replica_groups={}
}
"""
  line = 'bf16[1,128] fusion(%a), kind=kCustom, calls=%all-reduce-scatter.3'
  (found,) = of(line, before=before)
  assert (found.kind, found.nbytes) == ('reduce-scatter', 2048)


def test_what_goes_on_in_a_loop_is_one_collective():
  """Begun outside with a channel that fusions in the loop have, too."""
  inner = """%async_collective_fusion.1 (p: bf16[8,128]) -> bf16[64,128] {
  %p = bf16[8,128]{1,0} parameter(0)
  ROOT %g = bf16[64,128]{1,0} all-gather(%p), channel_id=7, replica_groups={}
}
%body (t: bf16[8,128]) -> bf16[8,128] {
  %t = bf16[8,128]{1,0} parameter(0)
  %more = bf16[8,128]{1,0} all-to-all(%t), channel_id=9, replica_groups={}
  ROOT %f = bf16[64,128]{1,0} fusion(%t), calls=%async_collective_fusion.1
}
"""
  inner += inner[: inner.index('%body')].replace(
    'async_collective_fusion.1', 'step'
  )
  begun = (
    'bf16[64,128]{1,0} fusion(%a), calls=%step\n  %w = bf16[8,128] while(%a), '
    'condition=%x, body=%body, backend_config={"known_trip_count":{"n":"4"}}'
  )
  found = of(begun, before=inner)
  assert [(x.kind, x.executions, x.fused) for x in found] == [
    ('all-gather', 1, True),
    ('all-to-all', 4, False),
  ]


MESH = {'data': 2, 'fsdp': 4, 'tensor': 1}


@pytest.mark.parametrize(
  'groups, expected',
  [
    (((0, 4), (1, 5)), ('data',)),
    (((0, 1, 2, 3), (4, 5, 6, 7)), ('fsdp',)),
    ((tuple(range(8)),), ('data', 'fsdp')),
  ],
)
def test_axes(groups, expected):
  assert collectives.axes(Collective('all-reduce', 1, groups, 1), MESH) == (
    expected
  )


def seconds(kind, group, devices, nbytes=10**9):
  found = Collective(kind, nbytes, (tuple(group),), executions=1)
  return collectives.seconds(found, devices, CHIP)


def test_seconds_over_a_ring():
  ring = box(4)  # both ways round, 2 GB/s
  assert seconds('all-gather', range(4), ring) == pytest.approx(0.75 / 2)
  assert seconds('reduce-scatter', range(4), ring) == pytest.approx(0.75 / 2)
  assert seconds('all-reduce', range(4), ring) == pytest.approx(1.5 / 2)
  # Half of 4 GB has to get to the other half, by two links each way.
  assert seconds('all-to-all', range(4), ring) == pytest.approx(0.5)
  assert seconds('collective-permute', (0, 1), ring) == pytest.approx(1.0)


def test_seconds_over_a_part_of_a_ring_or_a_line():
  # Two neighbours have one link; so has the end of a line.
  assert seconds('all-gather', (0, 1), box(4)) == pytest.approx(0.5)
  assert seconds('all-gather', (0, 1, 2), box(3)) == pytest.approx(2 / 3)
  assert seconds('all-to-all', (0, 1), box(2)) == pytest.approx(0.5)


def test_seconds_over_several_sides():
  cube = box(4, 4, 4)
  found = seconds('all-gather', range(64), cube)
  assert found == pytest.approx(63 / 64 / 6)
  plane = [16 * i + 4 * j for i in range(4) for j in range(4)]
  assert seconds('all-gather', plane, cube) == pytest.approx(15 / 16 / 4)


def test_seconds_between_slices_and_on_one_chip():
  two = box(2, num_slices=2)
  assert seconds('all-reduce', (0, 2), two, 10**6) == pytest.approx(1.0)
  cores = [Device((0, 0)), Device((0, 0))]  # as of v4
  assert seconds('all-gather', (0, 1), cores) == pytest.approx(0.5 / 100)


@pytest.mark.parametrize(
  ('kind', 'group', 'expected'),
  [
    ('all-gather', (0, 1, 2, 3), {('1', 1), ('1', -1)}),
    ('all-gather', (0, 4), {('0', 1), ('0', -1)}),
    ('all-gather', range(8), {('0', 1), ('0', -1), ('1', 1), ('1', -1)}),
    ('collective-permute', (0, 1), {('1', 1)}),
    ('collective-permute', (1, 0), {('1', -1)}),
    # Around the ring, which is shorter.
    ('collective-permute', (3, 0), {('1', 1)}),
    ('collective-permute', (0, 3), {('1', -1)}),
    # Along two dimensions: all links of both.
    (
      'collective-permute',
      (0, 5),
      {('0', 1), ('0', -1), ('1', 1), ('1', -1)},
    ),
  ],
)
def test_links(kind, group, expected):
  found = Collective(kind, 1, (tuple(group),), executions=1)
  assert collectives.links(found, box(2, 4)) == expected


def test_links_between_slices_and_on_one_chip():
  found = Collective('all-reduce', 1, ((0, 2),), executions=1)
  assert collectives.links(found, box(2, num_slices=2)) == {('slices', 0)}
  cores = [Device((0, 0)), Device((0, 0))]
  found = Collective('all-reduce', 1, ((0, 1),), executions=1)
  assert collectives.links(found, cores) == set()


def test_a_table():
  found = [
    Collective('all-gather', 800, ((0, 1, 2, 3), (4, 5, 6, 7)), 3),
    Collective('all-gather', 400, ((0, 1, 2, 3), (4, 5, 6, 7)), 1),
    Collective('all-reduce', 8000, ((0, 4),), 1),
  ]
  rows = collectives.table(found, MESH, box(2, 4), CHIP, [0.5, 0.25, 0.0])
  assert [(x['kind'], x['axes'], x['count']) for x in rows] == [
    ('all-reduce', ['data'], 1),
    ('all-gather', ['fsdp'], 4),
  ]
  assert [x['sent_bytes'] for x in rows] == [8000, 3 * 600 + 300]
  assert rows[1]['seconds'] == pytest.approx(2100 / 2e9)
  assert [x['exposed_seconds'] for x in rows] == [0.0, 0.75]
  assert collectives.table(found, MESH, box(2, 4), None)[0]['seconds'] is None


@functools.partial(jax.jit, static_argnums=1)
def gathered(x, mesh):
  spec = PartitionSpec(('data', 'fsdp'))
  whole = jax.shard_map(
    lambda x: jax.lax.psum(
      jax.lax.all_gather(x, 'fsdp', tiled=True), ('data', 'fsdp')
    ),
    mesh=mesh,
    in_specs=spec,
    out_specs=PartitionSpec(),
  )
  return whole(x)


def test_this_release_of_jax():
  devices = np.array(jax.devices()[:8]).reshape(2, 4, 1)
  mesh = Mesh(devices, tuple(MESH))
  text = gathered.lower(jnp.ones((16, 4)), mesh).compile().as_text()
  found = collectives.of_module(hlo_parser.parse(text), 8)
  rows = collectives.table(found, MESH, list(devices.flat), None)
  assert {(x['kind'], tuple(x['axes']), x['sent_bytes']) for x in rows} == {
    ('all-gather', ('fsdp',), 96),  # 3/4 of 128 bytes
    ('all-reduce', ('data', 'fsdp'), 224),  # 2 x 7/8 of them
  }
