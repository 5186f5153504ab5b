"""Tests of the pipeline report: summary, table, page."""

import json

import pytest

from grm_jax.evaluation import paper_numbers, pipeline_report
from grm_jax.evaluation.pipeline_report import StageResult
from tests.evaluation import fake
from tests.messages import names

# Both of two samples are right; one; none; nothing parses.
SAMPLES = [
  ([(8, 4), (9, 1)], [2.0, 1.0]),
  ([(8, 4), (1, 9)], [2.0, 1.0]),
  ([(4, 8), (1, 2)], [2.0, 1.0]),
  ([None, None], [None, None]),
]


def judged(greedy=(4, 8)):
  summary = [
    fake.query(f'q{i}', 0, scores, metas, [(8, 4) if i < 2 else greedy])
    for i, (scores, metas) in enumerate(SAMPLES)
  ]
  singles = [
    ([(1,), (1,)], 1.0, (1,)),
    ([(0,), (1,)], 0.0, (1,)),
    ([None, None], 0.0, None),
  ]
  return summary + [
    fake.query(
      f's{i}', None, scores, [0.0, 0.0], [greedy], n=1, rewards=(label,)
    )
    for i, (scores, label, greedy) in enumerate(singles)
  ]


@pytest.fixture
def judges():
  return {
    'sft': StageResult.from_judged('after the cold start', judged(), 0),
    'grpo': StageResult.from_judged('after GRPO', judged(greedy=(8, 4)), 0),
  }


def test_summary_by_hand(judges):
  summary = pipeline_report.summary(judges, 1, {'data': 'queries'})
  assert json.loads(json.dumps(summary, allow_nan=False))['at'] == 1
  stage = summary['judges']['sft']
  assert summary['at'] == 1 and stage['queries'] == 4
  assert stage['greedy']['value'] == 0.5
  # Voting@1: 1, 1/2, 0, 0. Both: 1; 9 to 13 is wrong; 0; 0.
  assert stage['voting']['1']['value'] == pytest.approx(0.375)
  assert stage['voting']['2']['value'] == pytest.approx(0.25)
  # The better half of two: 1, 1, 0, 0.
  assert stage['meta']['2']['value'] == pytest.approx(0.5)
  assert stage['behaviour']['parse_failure_rate'] == pytest.approx(4 / 14)
  # Right; 1/2 is not above 1/2, so 0, which is right; no verdict is wrong.
  assert stage['singles'] == {'count': 3, 'greedy': 1 / 3, 'voting': 2 / 3}
  assert summary['judges']['grpo']['greedy']['value'] == 1.0


def test_gains_are_paired_by_query(judges):
  """Two of four queries improve, none gets worse."""
  summary = pipeline_report.summary(judges, 1, {})['judges']
  assert summary['sft']['greedy_gain'] is None
  gain = summary['grpo']['greedy_gain']
  assert gain['value'] == 0.5 and 0.0 <= gain['low'] < 0.5 < gain['high'] <= 1.0
  lost = pipeline_report.summary(
    {'a': judges['grpo'], 'b': judges['sft']}, 1, {}
  )
  assert lost['judges']['b']['greedy_gain']['value'] == -0.5


def test_one_sample_gain_by_hand():
  # Of two samples each: 1, 1/2, 0, 0 are right; then 0, 1/2, 1/2, 1.
  other = [
    fake.query(f'q{i}', 0, scores, [2.0, 1.0], [(8, 4)])
    for i, scores in enumerate(
      ([(1, 2), None], [(8, 4), (1, 9)], [(1, 2), (2, 1)], [(8, 4), (9, 1)])
    )
  ]
  judges = {
    'a': StageResult.from_judged(
      'a', [x for x in judged() if 'q' in x.example.id], 0
    ),
    'b': StageResult.from_judged('b', other, 0),
  }
  summary = pipeline_report.summary(judges, 1, {})['judges']
  assert summary['a']['one_sample_gain'] is None
  gain = summary['b']['one_sample_gain']
  assert gain['value'] == pytest.approx((-1 + 0 + 0.5 + 1) / 4)
  assert gain['low'] < gain['value'] < gain['high']


def test_items_have_accuracy_of_each_example():
  def values(*args):
    summary = pipeline_report.items(judged(), *args)
    return [summary[f'q{i}'].value for i in range(4)]

  assert values() == [1.0, 1.0, 0.0, 0.0]
  assert values(1) == [1.0, 0.5, 0.0, 0.0]
  assert values(2) == [1.0, 0.0, 0.0, 0.0]
  assert values(2, 1) == [1.0, 1.0, 0.0, 0.0]


def test_stage_table(judges):
  summary = pipeline_report.summary(judges, 1, {})
  head, first, last, more = pipeline_report.stage_rows(summary)
  assert head == ('stage', 'greedy', 'one sample', 'Voting@1', 'MetaRM@1')
  assert first[0] == 'after the cold start' and last[0] == 'after GRPO'
  shown = [cell.split(' [')[0] for cell in first[1:]]
  assert shown == ['50.0', '37.5', '37.5', '37.5']
  assert names(more[0], 2) and more[1:3] == ('', '')
  assert [cell.split(' [')[0] for cell in more[3:]] == ['25.0', '50.0']
  text = pipeline_report.stage_table(summary)
  assert names(text, 4, 'after GRPO')
  assert (
    len(pipeline_report.stage_rows(pipeline_report.summary(judges, 2, {}))) == 3
  )


def test_summary_without_meta_rm():
  queries = [
    fake.query('a', 0, [(8, 4)], None, [(8, 4)]),
    fake.query('b', 1, [(8, 4)], None, [None]),
  ]
  summary = pipeline_report.summary(
    {'rft': StageResult.from_judged('after RFT', queries, 0)}, 1, {}
  )
  assert summary['judges']['rft']['meta'] == {}
  assert summary['judges']['rft']['singles'] is None
  assert pipeline_report.stage_rows(summary)[1][4] == '-'


def test_page_is_complete(judges, tmp_path):
  summary = pipeline_report.summary(judges, 2, {'cold start': 'no <reasoning>'})
  training = {
    'sft': [{'step': i, 'loss': 1.0 / i} for i in range(1, 60)],
    'grpo': [
      {'step': 0, 'eval/accuracy': 0.4},
      {'step': 1, 'rollout/reward': -0.5, 'loss': 'nan'},
    ],
    'meta_rm': [],
  }
  written = {}
  pipeline_report.write(
    str(tmp_path), judges, summary, training, written.__setitem__
  )
  names = [path.removeprefix(f'{tmp_path}/') for path in written]
  assert names[-1] == 'report.html' and 'results.json' in names
  for name in ('stages.png', 'training.png', 'grpo-accuracy-over-k.png'):
    assert written[str(tmp_path / name)].startswith(b'\x89PNG')
  page = written[str(tmp_path / 'report.html')].decode()
  assert 'no &lt;reasoning&gt;' in page and 'Single responses' in page
  assert '+50.0 [' in page
  places = [
    page.index(x) for x in ('Settings', 'Accuracy by stage', 'Training curves')
  ]
  assert places == sorted(places)
  # No published numbers next to the data of the run.
  assert paper_numbers.of_suite('grpo', []) is None


def test_no_plot_without_training_curves(judges, tmp_path):
  written = {}
  summary = pipeline_report.summary(judges, 2, {})
  pipeline_report.write(
    str(tmp_path), judges, summary, {'sft': []}, written.__setitem__
  )
  assert not any(path.endswith('training.png') for path in written)


def test_panels_skip_values_that_are_not_numbers():
  rows = [
    {'step': 1, 'loss': 2.0},
    {'step': 2, 'loss': 'inf'},
    {'step': 2, 'eval/auc': 0.5},
  ]
  panels = pipeline_report.panels({'meta_rm': rows, 'rft': []})
  assert list(panels) == ['Meta RM']
  assert [(x.label, x.points) for x in panels['Meta RM']] == [
    ('loss', [(1, 2.0)]),
    ('held-out AUC', [(2, 0.5)]),
  ]
