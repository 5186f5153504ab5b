"""Tests of the report: contents, self-contained page, escaped texts."""

import base64
import dataclasses
import html.parser
import json
import os
import re

import pytest

from grm_jax.errors import UserError
from grm_jax.evaluation import html as report_html
from grm_jax.evaluation import metrics, report, scaling_curves
from grm_jax.evaluation.suites import ppe, rewardbench, rmb
from grm_jax.io.atomic_io import atomic_write
from grm_jax.judgement.example import Turn
from tests.evaluation.fake import judged, query
from tests.messages import naming

EVIL = '<script>alert(1)</script></pre></details>"\'<img src=x onerror=y>&lt;'


class Reader(html.parser.HTMLParser):
  """Parses a page like a browser."""

  def __init__(self, data: bytes):
    super().__init__()
    self.tags, self.open, self.texts, self.unpaired = [], [], [], []
    self.feed(data.decode('utf-8'))

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in ('meta', 'img'):
      self.open.append(tag)

  def handle_endtag(self, tag):
    if not self.open or self.open.pop() != tag:
      self.unpaired.append(tag)

  def handle_data(self, data):
    self.texts.append((self.open[-1] if self.open else '', data))

  def text(self, tag):
    return '\n'.join(data for element, data in self.texts if element == tag)


def plain(title, queries):
  return report.suite_report(title, queries, scaling_curves.curves(queries))


def suite(title, queries, terms):
  estimate = scaling_curves.mean_of_terms(terms)
  curves = scaling_curves.suite_curves(queries, estimate)
  return report.suite_report(title, queries, curves)


@pytest.fixture(scope='module')
def suites():
  return {
    'rewardbench': suite('RewardBench', judged(120, 4), rewardbench.terms),
    'own': plain('Own data', judged(30, 2, seed=1, n=(2, 3), metas=False)),
  }


@pytest.fixture(scope='module')
def files(suites):
  return report.render(suites, {'model': 'none', 'seed': '7'})


def test_report_writes_these_files(suites, files, tmp_path):
  assert list(files) == [
    'rewardbench-accuracy-over-k.png',
    'rewardbench-sections-over-k.png',
    'rewardbench-parts.png',
    'rewardbench-lengths.png',
    'rewardbench-scores.png',
    'own-accuracy-over-k.png',
    'own-scores.png',
    'results.json',
    'report.html',
  ]
  folder = tmp_path / 'new' / 'report'
  report.write_report(folder, suites, {'model': 'none', 'seed': '7'})
  assert sorted(os.listdir(folder)) == sorted(files)
  for name, content in files.items():
    assert (folder / name).read_bytes() == content


def test_results_json_has_all_numbers(suites, files):
  actual = json.loads(files['results.json'])
  assert actual['facts'] == {'model': 'none', 'seed': '7'}
  row = actual['suites']['rewardbench']
  expected = suites['rewardbench']
  assert row['curves'] == json.loads(
    json.dumps(dataclasses.asdict(expected.curves))
  )
  chat = row['curves']['sections']['Chat']
  assert [x['k'] for x in chat['voting']] == [1, 2, 4]
  assert [x['k'] for x in chat['meta']] == [1, 2, 4]
  assert set(row['lengths']['Chat']) == {'value', 'low', 'high', 'count'}
  assert row['samples']['scores'] == list(expected.samples.scores)
  assert row['greedy']['num_generations'] == 120
  assert actual['suites']['own']['curves']['sections'] == {}
  assert actual['suites']['own']['lengths'] == {}
  assert 'overall' not in actual


def test_results_json_replaces_non_finite_numbers():
  data = plain('a', [query('a', 0, [(2, 1)])])
  (point,) = data.curves.voting
  broken = dataclasses.replace(
    data.curves, voting=(dataclasses.replace(point, low=float('nan')),)
  )
  data = dataclasses.replace(data, curves=broken)
  actual = json.loads(report.render({'a': data}, {})['results.json'])
  assert actual['suites']['a']['curves']['voting'][0]['low'] is None


def test_page_is_self_contained(files):
  data = files['report.html']
  reader = Reader(data)
  tags = [tag for tag, _ in reader.tags]
  assert tags.count('img') == 7
  pictures = [content for name, content in files.items() if 'png' in name]
  for tag, attributes in reader.tags:
    assert tag not in ('script', 'link', 'iframe', 'a', 'object', 'base')
    assert not any(name.startswith('on') for name in attributes)
    assert set(attributes) & {'src', 'href', 'srcset', 'data'} <= {'src'}
    if 'src' in attributes:
      kind, content = attributes['src'].split(',')
      assert kind == 'data:image/png;base64'
      assert base64.b64decode(content, validate=True) in pictures
      assert attributes['alt']
  assert b'http://' not in data and b'https://' not in data
  assert not re.search(rb'url\(|@import', data)
  assert not reader.unpaired and not reader.open


def test_page_shows_the_numbers(suites, files):
  text = Reader(files['report.html']).text('td')
  for x in suites.values():
    for point in (*x.curves.voting, *x.curves.meta_kept):
      cell = f'{point.value:.1%} [{point.low:.1%}, {point.high:.1%}]'
      assert cell.replace('%', '') in text
    alone = x.curves.greedy
    cell = f'{alone.value:.1%} [{alone.low:.1%}, {alone.high:.1%}]'
    assert f'\ngreedy\n{cell}'.replace('%', '') in text
    assert f'{x.samples.first_rate:.1%}'.strip('%') in text
  assert 'none' in text.split('\n') and '7' in text.split('\n')
  curves = suites['rewardbench'].curves
  for name, x in curves.subsets.items():
    values = (100 * point.value for point in (x.greedy, x.voting[0]))
    cells = [name, str(x.num_queries), *(f'{value:.1f}' for value in values)]
    assert '\n'.join(cells) in text
  columns = [*curves.sections.values(), curves]
  values = [f'{100 * x.meta[-1].value:.1f}' for x in columns]
  assert '\n'.join(['MetaRM@4', *values]) in text


def test_page_shows_example_generations(suites, files):
  examples = suites['rewardbench'].examples
  kinds = [x.kind for x in examples]
  assert kinds == ['right', 'wrong', 'parse failure']
  assert len({x.example.id for x in examples}) == 3
  summaries = Reader(files['report.html']).text('summary')
  for x in examples:
    assert f'{x.kind.capitalize()}: query {x.example.id}' in summaries


def test_examples_are_of_different_queries():
  right, wrong = (2, 1), (1, 2)
  queries = [
    query('a', 0, [right, wrong, None]),
    query('b', 0, [right, wrong, wrong]),
    query('c', 0, [right, right, right]),
  ]
  actual = {x.kind: x.example.id for x in plain('a', queries).examples}
  assert actual == {'right': 'c', 'wrong': 'b', 'parse failure': 'a'}
  actual = {x.kind: x.example.id for x in plain('a', queries[:1]).examples}
  assert actual == {'right': 'a', 'wrong': 'a', 'parse failure': 'a'}


def test_examples_list_responses_in_shown_order():
  judged_query = query('a', 2, [(3, 4, 9)], n=3)
  (judgement,) = judged_query.samples
  judged_query = dataclasses.replace(
    judged_query, samples=(dataclasses.replace(judgement, order=(1, 2, 0)),)
  )
  data = report.render({'a': plain('a', [judged_query])}, {})['report.html']
  reader = Reader(data)
  assert reader.text('h4').split('\n')[1:4] == [
    'Response 1, score 4',
    'Response 2, score 9, best response',
    'Response 3, score 3',
  ]
  texts = [text.strip() for tag, text in reader.texts if tag == 'pre']
  assert texts == ['query a', 'response 1', 'response 2', 'response 0', 'text']


def test_kinds_of_generations():
  tie = query('tie', 0, [(5, 5)])
  unknown = query('unknown', None, [(5, 6)])
  single = query('single', None, [(5,)], n=1, rewards=(1.0,))
  queries = [single, unknown, tie, query('failed', 0, [None])]
  actual = {x.kind: x.example.id for x in plain('a', queries).examples}
  assert actual == {
    'wrong': 'tie',
    'parse failure': 'failed',
    'without a known best response': 'single',
  }


def evil_suite():
  judged_query = query(EVIL, 0, [None])
  (judgement,) = judged_query.samples
  example = dataclasses.replace(
    judged_query.example,
    query=(Turn('user', EVIL),),
    responses=(EVIL, f'$body ${{title}} \x00\x1b \ud800 {EVIL}'),
    tags={'section': EVIL, 'subset': EVIL},
  )
  judgement = dataclasses.replace(judgement, text=EVIL, finish='stop')
  queries = [
    dataclasses.replace(judged_query, example=example, samples=(judgement,))
  ]
  return suite(EVIL, queries, metrics.pooled_terms)


def test_texts_are_escaped_in_the_whole_report():
  files = report.render({'evil': evil_suite()}, {EVIL: EVIL})
  data = files['report.html']
  assert b'<script' not in data and b'<img src=x' not in data
  reader = Reader(data)
  assert not reader.unpaired and not reader.open
  assert [tag for tag, _ in reader.tags].count('details') == 1
  texts = [text.strip('\n') for tag, text in reader.texts if tag == 'pre']
  assert texts == [
    EVIL,
    EVIL,
    f'$body ${{title}} \u2400\u241b \\ud800 {EVIL}',
    EVIL,
  ]
  assert reader.text('h2') == EVIL
  images = [attributes for tag, attributes in reader.tags if tag == 'img']
  assert [image['alt'][: len(EVIL)] for image in images] == [EVIL] * 3
  assert {name for image in images for name in image} == {'alt', 'src'}
  assert EVIL in reader.text('summary') and EVIL in reader.text('td')
  assert json.loads(files['results.json'])['facts'] == {EVIL: EVIL}


def test_long_texts_are_truncated():
  text = Reader(
    report_html.page(
      't', [report_html.details('', 's', [('h', 'x' * 30_000)], True)]
    )
  ).text('pre')
  assert text.count('x') == 20_000
  assert '10,000' in text


def test_leading_line_feed_is_preserved():
  data = report_html.page(
    't', [report_html.details('', 's', [('h', '\ntext')], True)]
  )
  assert b'<pre dir="auto">\n\ntext</pre>' in data


def test_interrupted_report_has_only_complete_files(suites, files, tmp_path):
  for name in files:
    (tmp_path / name).write_bytes(b'old')
  written = []

  def write_some(path, content):
    with atomic_write(path) as file:
      file.write(content[: len(content) // 2])
      if len(written) == 3:
        raise KeyboardInterrupt
      file.write(content[len(content) // 2 :])
    written.append(os.path.basename(path))

  with pytest.raises(KeyboardInterrupt):
    report.write_report(tmp_path, suites, {}, write=write_some)
  assert written == list(files)[:3]
  assert sorted(os.listdir(tmp_path)) == sorted(files)
  for name in files:
    expected = files[name] if name in written else b'old'
    assert (tmp_path / name).read_bytes() == expected


def test_failed_rendering_writes_nothing(suites, tmp_path, monkeypatch):
  def fail(*_):
    raise RuntimeError

  monkeypatch.setattr(report.report_html, 'page', fail)
  with pytest.raises(RuntimeError):
    report.write_report(tmp_path, suites)
  assert os.listdir(tmp_path) == []


def test_write_error_names_the_file(suites, tmp_path):
  (tmp_path / 'file').write_bytes(b'')
  with pytest.raises(UserError, match=r'file/rewardbench-accuracy'):
    report.write_report(tmp_path / 'file', suites)


@pytest.mark.parametrize('name', ['', '../up', 'a/b', '.hidden', 'a b', 'ä'])
def test_invalid_suite_name_raises(suites, name):
  with pytest.raises(ValueError, match=naming(repr(name))):
    report.render({name: suites['own']}, {})


def test_report_without_suites_raises():
  with pytest.raises(ValueError):
    report.render({}, {})


def test_terminal_table():
  first = query('a', 0, [(2, 1), (2, 1)], [0.0, 0.0], greedy=[(1, 1)])
  second = query('b', 0, [(1, 2), None], greedy=[None])
  actual = report.table(
    {
      'first': plain('First', [first]),
      'second': plain('Second suite', [second]),
    }
  )
  assert actual == '\n'.join(
    [
      'suite         queries  greedy  Voting@1              Voting@2'
      '              MetaRM@2',
      'First               1    50.0     100.0  100.0 [100.0, 100.0]'
      '  100.0 [100.0, 100.0]',
      'Second suite        1     0.0       0.0        0.0 [0.0, 0.0]'
      '                     -',
      '',
      'suite                 unparsed  no vote   ties  vote ties  first'
      '  chance  tokens  truncated  shortened  extraction',
      'First                      0.0      0.0    0.0        0.0  100.0'
      '    50.0     100        0.0    0 (0.0)     0 (0.0)',
      'First, greedy              0.0      0.0  100.0      100.0   50.0'
      '    50.0     100        0.0    0 (0.0)     0 (0.0)',
      'Second suite              50.0      0.0    0.0        0.0    0.0'
      '    50.0     100        0.0    0 (0.0)     0 (0.0)',
      'Second suite, greedy     100.0    100.0      -          -      -'
      '       -     100        0.0    0 (0.0)     0 (0.0)',
    ]
  )


def test_report_of_greedy_generations_only(tmp_path):
  queries = [
    query('a', 0, [], greedy=[(2, 1)]),
    query('b', 0, [], greedy=[None]),
  ]
  data = plain('Greedy', queries)
  assert [x.kind for x in data.examples] == ['right', 'parse failure']
  assert list(report.render({'g': data}, {})) == [
    'g-scores.png',
    'results.json',
    'report.html',
  ]
  assert 'Greedy        2    50.0         -' in report.table({'g': data})


def test_bars_of_greedy_generations_only():
  tags = {'section': 'Chat', 'subset': 'alpacaeval-easy'}
  queries = [query('a', 0, [], greedy=[(2, 1)], tags=tags)]
  data = suite('Greedy', queries, rewardbench.terms)
  assert list(report.render({'rewardbench': data}, {})) == [
    'rewardbench-parts.png',
    'rewardbench-lengths.png',
    'rewardbench-scores.png',
    'results.json',
    'report.html',
  ]
  assert data.lengths['Chat'].value == 100


def columns_by_hand():
  """One query of each column: right, wrong, half right, right; greedy wrong."""
  scores = {
    'preference': [(2, 1), (2, 1)],
    'correctness': [(1, 2), (1, 2)],
  }
  subsets = {'preference': ppe.PREFERENCE, 'correctness': 'MATH'}
  pairs = [
    query(
      section,
      0,
      scores[section],
      greedy=[(1, 2)],
      tags={'section': section, 'subset': subsets[section]},
    )
    for section in scores
  ]
  lists = query(
    'list',
    0,
    [(2, 1, 2), (2, 1, 2)],
    greedy=[(1, 1, 2)],
    n=3,
    tags={'section': rmb.SECTIONS[1], 'subset': 'BoN_set/Helpfulness/A'},
  )
  chat = query(
    'chat',
    0,
    [(2, 1), (2, 1)],
    greedy=[(2, 1)],
    tags={'section': 'Chat', 'subset': 'alpacaeval-easy'},
  )
  return {
    'ppe': suite('ppe', pairs, ppe.terms),
    'rewardbench': suite('rewardbench', [chat], rewardbench.terms),
    'rmb': suite('rmb', [lists], rmb.terms),
  }


def test_columns_of_ppe_and_mean_of_the_columns():
  suites = columns_by_hand()
  scores, _ = report.table(suites).split('\n\n')
  rows = [re.split('  +', line) for line in scores.split('\n')]
  assert [row[:4] for row in rows[1:4]] == [
    ['ppe', '2', '0.0', '50.0'],
    ['ppe preference', '1', '0.0', '100.0'],
    ['ppe correctness', '1', '0.0', '0.0'],
  ]
  # (0 + 0 + 1 + 0) / 4 for greedy, (1 + 0 + 1 + 1 / 2) / 4 for the votes.
  label = (
    'mean of rewardbench (part), ppe preference (part), '
    'ppe correctness (part), rmb (part)'
  )
  assert rows[-1] == [label, '4', '25.0', '62.5', '62.5', '-']
  files = report.render(suites, {})
  assert 'ppe-preference-accuracy-over-k.png' in files
  assert 'ppe-correctness-accuracy-over-k.png' in files
  overall = json.loads(files['results.json'])['overall']
  assert overall['voting'] == {'1': 0.625, '2': 0.625}
  assert not overall['is_complete']
  assert 'arXiv 2504.02495' in Reader(files['report.html']).text('p')
  del suites['rewardbench'], suites['rmb']
  assert 'mean of' not in report.table(suites)


def test_table_of_suites_with_different_k():
  first, second = (plain('x', [query('a', 0, [(2, 1)] * k)]) for k in (1, 2))
  assert 'Voting@K' in report.table({'one': first, 'two': second})
  assert 'Voting@2' in report.table({'two': second})


def test_each_html_function_escapes_its_texts():
  parts = [
    report_html.heading(2, EVIL),
    report_html.note(EVIL),
    report_html.table([[EVIL], [EVIL]], EVIL, EVIL),
    report_html.image(b'png', EVIL),
    report_html.details(EVIL, EVIL, [(EVIL, EVIL)], is_open=False),
  ]
  reader = Reader(report_html.page(EVIL, parts))
  assert not reader.unpaired and not reader.open
  actual = {tag for tag, text in reader.texts if text.strip() == EVIL}
  assert actual == {
    *('title', 'h2', 'h4', 'p', 'th', 'td', 'caption', 'summary', 'pre')
  }
  values = [x for _, attributes in reader.tags for x in attributes.values()]
  assert values.count(EVIL) == 3  # Two classes and a description.
