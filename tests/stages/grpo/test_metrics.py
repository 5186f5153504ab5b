"""Figures of rollouts by hand, and the end of a run without a format."""

import pytest

from grm_jax.errors import UserError
from grm_jax.stages.grpo import metrics as grpo_metrics
from grm_jax.stages.grpo.metrics import ParseFailureStop
from tests.messages import names, naming, setting
from tests.stages.grpo_groups import group, rolled

FOUR = ((3,), (4, 4), (5, 5, 5), (6,))
MIXED = group('mixed', (2, 5, 6), FOUR, 'rwxc')
FLAT = group('flat', (2,), FOUR, 'wwww')


def figures(*arguments, **how):
  found = grpo_metrics.rollout_metrics(rolled(*arguments, **how))
  return {name.removeprefix('rollout/'): x for name, x in found.items()}


def test_figures_of_groups():
  assert figures(MIXED, FLAT, faults=3) == pytest.approx(
    {
      'reward': (1 - 7) / 8,
      'accuracy': 1 / 8,
      'parse_failures': 1 / 8,
      'truncated': 1 / 8,
      'no_spread': 1 / 2,
      'tokens': 7 / 4,
      'groups': 2,
      'faults': 3,
      # Right and cut off have the first on top, all five that are wrong not.
      'first_position': 2 / 7,
    }
  )


def test_groups_that_were_drawn_again_count():
  """What is trained on is chosen: it is no measure of the policy."""
  found = figures(MIXED, again=[FLAT, FLAT])
  assert found['no_spread'] == pytest.approx(2 / 3)
  assert found['accuracy'] == pytest.approx(1 / 12)
  assert found['groups'] == 3


@pytest.mark.parametrize(
  'order, scores, expected',
  [
    ((0, 1), [(9, 2), (2, 9)], 1 / 2),
    ((1, 0), [(9, 2), (9, 1)], 0.0),
    ((1, 0), [(2, 9), None], 1.0),
    ((2, 0, 1), [(1, 2, 8), (1, 8, 8)], 1.0),  # a tie is nobody's
    ((0, 1), [(5, 5), None], None),
    ((0,), [(1,), (0,)], None),
  ],
)
def test_which_place_wins(order, scores, expected):
  found = figures(group(scores=scores, order=order))
  assert found.get('first_position') == expected


def test_speeds_of_parts():
  """Of what was drawn, and of what went through the network."""
  one = rolled(MIXED, again=[FLAT])
  times = {'time/rollout': 2.0, 'time/reference': 0.5, 'time/update': 4.0}
  assert grpo_metrics.throughput(one, times | {'time/total': 9.0}, 3) == {
    'rollout/tokens_per_second': 14 / 2,
    'reference/tokens_per_second': (3 + 7) / 0.5,
    'update/tokens_per_second': 3 * (3 + 7) / 4,
  }
  found = grpo_metrics.throughput(one, times | {'time/old': 0.1}, 1)
  assert found['old/tokens_per_second'] == pytest.approx(100)


class Board:
  """A writer that remembers."""

  def __init__(self):
    self.histograms, self.texts = {}, {}

  def histogram(self, step, name, values):
    assert len(values), 'TensorBoard takes no histogram of nothing'
    self.histograms[step, name] = sorted(values.tolist())

  def text(self, step, name, text):
    self.texts[step, name] = text


def test_what_is_shown():
  board = Board()
  grpo_metrics.log_samples(board, 7, rolled(MIXED, again=[FLAT]), 3)
  assert board.histograms == {
    (7, 'rollout/scores'): [1] * 5 + [2] * 5 + [8] * 2 + [9] * 2,
    (7, 'rollout/lengths'): [1] * 4 + [2] * 2 + [3] * 2,
  }
  # Of groups that are trained on, even where they are fewer.
  assert list(board.texts) == [(7, 'generations/0')]
  text = board.texts[7, 'generations/0']
  head, query, *_, generation = text.splitlines()
  assert names(head, 'mixed', 'correct', 1)
  assert (query, generation) == ('why?', 'text [3]')


def test_texts_show_responses_as_they_were_shown():
  (text,) = grpo_metrics.texts([group(order=(1, 0), letters='wr')], 4)
  assert '[1] response 1\n[2] response 0\n' in text
  assert names(text.splitlines()[0], 'incorrect', -1)
  assert not grpo_metrics.texts([MIXED], 0)


def test_nothing_that_parses_has_no_histogram():
  board = Board()
  grpo_metrics.log_samples(board, 1, rolled(group(letters='xx')), 0)
  assert list(board.histograms) == [(1, 'rollout/lengths')]
  assert not board.texts


@pytest.mark.parametrize(
  'patience, seen, ends',
  [
    (2, [0.1, 0.3, 0.3], [2]),
    (2, [0.3, 0.2, 0.3, 0.2, 0.3], []),  # the bound itself is fine
    (1, [0.0, 0.21], [1]),
    (3, [1, 1, 0.1, 1, 1, 1], [5]),
    (0, [1.0] * 9, []),
    (2, [1.0] * 5, [1, 3]),  # one that goes on has as many again
  ],
)
def test_stop_rule(patience, seen, ends):
  rule = ParseFailureStop(0.2, patience)
  told = [rule.see(x) for x in seen]
  assert [i for i, advice in enumerate(told) if advice] == ends
  for i in ends:
    assert names(told[i], f'{seen[i]:.0%}', patience)
    assert names(told[i], 'config.evaluation.max_parse_failure_rate', 0.2)
    assert names(told[i], 'config.loss.kl_coef')


def test_a_stop_rule_goes_on():
  before = ParseFailureStop(0.2, 3)
  before.see(0.5), before.see(0.9)
  assert ParseFailureStop(0.2, 3, before.above).see(0.3)


@pytest.mark.parametrize(
  'arguments, words',
  [
    ((1.5, 2), setting('evaluation.max_parse_failure_rate', 1.5)),
    ((-0.1, 2), setting('evaluation.max_parse_failure_rate', -0.1)),
    ((float('nan'), 2), setting('evaluation.max_parse_failure_rate', 'nan')),
    ((0.2, -1), setting('evaluation.patience', -1)),
  ],
)
def test_mistakes(arguments, words):
  with pytest.raises(UserError, match=naming(*words)):
    ParseFailureStop(*arguments)
