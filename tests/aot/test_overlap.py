"""Time that products wait for collectives, against schedules by hand."""

import pytest

from grm_jax.aot import collectives, hlo_parser, overlap

CALLED = """%called (p: bf16[8,128]) -> bf16[64,128] {
  %p = bf16[8,128]{1,0} parameter(0)
  ROOT %g = bf16[64,128] all-gather(%p), channel_id=NUMBER, replica_groups={}
}
"""
A = '%a = bf16[8,128]{1,0} parameter(0)'


def text(*lines, head='ENTRY %main (a: bf16[8,128]) -> f32[]', before=''):
  own = '\n'.join(f'  {line}' for line in lines)
  return f'{before}{head} {{\n{own}\n}}\n'


def called(number):
  own = CALLED.replace('NUMBER', str(number))
  return own.replace('%called', f'%called.{number}')


def start(name, number):
  """Returns libtpu's start of a collective on the sparse cores."""
  return (
    f'%{name} = ((bf16[8,128], token[]), bf16[64,128]) call-start(%a), '
    f'async_execution_thread="sparsecore", to_apply=%called.{number}'
  )


def done(name):
  return f'%{name}.done = bf16[64,128] call-done(%{name})'


def of(whole, network, work, frame='main', links=None):
  """Seconds waited for each collective of the text, in its order.

  All use the same links, if `links` does not give those of each.
  """
  found = hlo_parser.parse(whole)
  seen = collectives.of_module(found, 8)
  links = links or [{('0', 1)}] * len(seen)
  work = {(frame, line): seconds for line, seconds in work.items()}
  return overlap.exposed_seconds(
    found, seen, network, [frozenset(x) for x in links], work
  )


def product(name):
  return f'%{name} = f32[] fusion(%a), kind=kOutput'


def test_one_instruction_keeps_all_waiting():
  gather = '%g = bf16[64,128] all-gather(%a), channel_id=1, replica_groups={}'
  whole = text(A, product('x'), gather, product('y'))
  assert of(whole, [3.0], {'x': 5.0, 'y': 7.0}) == [3.0]


@pytest.mark.parametrize(
  'between, waited', [(0.0, 3.0), (1.0, 2.0), (3.0, 0.0), (9.0, 0.0)]
)
def test_products_meanwhile_take_some_of_it(between, waited):
  lines = [A, start('s', 1), product('x'), done('s'), product('y')]
  whole = text(*lines, before=called(1))
  work = {'x': between, 'y': 100.0}
  assert of(whole, [3.0], work) == pytest.approx([waited])


def two_in_flight():
  """Two collectives that are started together and awaited one by one."""
  lines = [
    *(A, start('s', 1), start('t', 2)),
    *(product('x'), done('s'), product('y'), done('t')),
  ]
  return text(*lines, before=called(1) + called(2))


def test_one_at_a_time_has_the_network():
  """The second begins at 3, when the first ends, and ends at 7."""
  whole = two_in_flight()
  assert of(whole, [3.0, 4.0], {'x': 1.0, 'y': 2.0}) == [2.0, 2.0]


def test_collectives_on_different_links_run_side_by_side():
  """Both begin at 0; the second one ends at 4, when 1 + 2 have passed."""
  whole = two_in_flight()
  work = {'x': 1.0, 'y': 2.0}
  ring = {('0', 1), ('0', -1)}
  other = {('1', 1), ('1', -1)}
  # The first is waited for from 1 to 3, and y ends at 5.
  assert of(whole, [3.0, 4.0], work, links=[ring, other]) == [2.0, 0.0]
  both_ways = [{('0', 1)}, {('0', -1)}]
  assert of(whole, [3.0, 4.0], work, links=both_ways) == [2.0, 0.0]
  # A collective over both dimensions waits for the first.
  assert of(whole, [3.0, 4.0], work, links=[ring, ring | other]) == [2.0, 2.0]


def test_each_pass_of_a_loop_waits():
  body = text(
    '%a = bf16[8,128]{1,0} parameter(0)',
    start('s', 1),
    product('x'),
    done('s'),
    head='%body (a: bf16[8,128]) -> bf16[8,128]',
  )
  loop = (
    'ROOT %w = bf16[8,128] while(%a), condition=%c, body=%body, '
    'backend_config={"known_trip_count":{"n":"4"}}'
  )
  whole = text(A, loop, before=called(1) + body)
  assert of(whole, [12.0], {'x': 1.0}, frame='body') == [8.0]
