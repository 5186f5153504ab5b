"""Metrics of rollouts by hand."""

import pytest

from grm_jax.stages.grpo import metrics as grpo_metrics
from tests.messages import names
from tests.stages.grpo.groups import make_group, make_rollout

FOUR = ((3,), (4, 4), (5, 5, 5), (6,))
MIXED = make_group('mixed', (2, 5, 6), FOUR, 'rwxc')
FLAT = make_group('flat', (2,), FOUR, 'wwww')


def rollout_metrics(*groups, **options):
  metrics = grpo_metrics.rollout_metrics(make_rollout(*groups, **options))
  return {name.removeprefix('rollout/'): x for name, x in metrics.items()}


def test_means_over_generations():
  assert rollout_metrics(MIXED, FLAT, skipped_prompts=3) == pytest.approx(
    {
      'reward': (1 - 7) / 8,
      'accuracy': 1 / 8,
      'parse_failures': 1 / 8,
      'truncated_fraction': 1 / 8,
      'frac_groups_zero_std': 1 / 2,
      'mean_generation_length': 7 / 4,
      'groups': 2,
      'skipped_prompts': 3,
      # The first response wins in the right generation, and loses in all five
      # that are wrong.
      'first_position_win_rate': 1 / 6,
    }
  )


def test_replaced_groups_count():
  """The groups to train on are a selection; they do not measure the policy."""
  metrics = rollout_metrics(MIXED, replaced=[FLAT, FLAT])
  assert metrics['frac_groups_zero_std'] == pytest.approx(2 / 3)
  assert metrics['accuracy'] == pytest.approx(1 / 12)
  assert metrics['groups'] == 3


@pytest.mark.parametrize(
  'order, scores, expected',
  [
    ((0, 1), [(9, 2), (2, 9)], 1 / 2),
    ((1, 0), [(9, 2), (9, 1)], 0.0),
    ((1, 0), [(2, 9), None], 1.0),
    ((2, 0, 1), [(1, 2, 8), (1, 8, 8)], 1.0),  # a tie has no sole winner
    ((0, 1), [(5, 5), None], None),
    ((0,), [(1,), (0,)], None),
  ],
)
def test_first_position_win_rate(order, scores, expected):
  metrics = rollout_metrics(make_group(scores=scores, order=order))
  assert metrics.get('first_position_win_rate') == expected


def test_throughput_of_each_part():
  rollout = make_rollout(MIXED, replaced=[FLAT])
  times = {'time/rollout': 2.0, 'time/reference': 0.5, 'time/update': 4.0}
  speeds = grpo_metrics.throughput(rollout, times | {'time/total': 9.0}, 3)
  assert speeds == {
    'rollout/tokens_per_second': 14 / 2,
    'reference/tokens_per_second': (3 + 7) / 0.5,
    'update/tokens_per_second': 3 * (3 + 7) / 4,
  }
  speeds = grpo_metrics.throughput(rollout, times | {'time/old_logps': 0.1}, 1)
  assert speeds['old_logps/tokens_per_second'] == pytest.approx(100)


def test_batch_info_counts_what_was_trained_on():
  info = grpo_metrics.batch_info(
    [
      make_group('a', (2, 5, 6), ((7,), (8, 9))),
      make_group('b', (2,), epoch=3),
    ]
  )
  assert info.example_ids == ('a', 'b') and info.epochs == (0, 3)
  assert info.token_lengths == ((3, (1, 2)), (1, (1, 2)))
  assert info.num_tokens == {'prompts': 4, 'generations': 6}


class RecordingWriter:
  """Keeps histograms and texts."""

  def __init__(self):
    self.histograms, self.texts = {}, {}

  def histogram(self, step, name, values):
    assert len(values), 'TensorBoard accepts no empty histogram'
    self.histograms[step, name] = sorted(values.tolist())

  def text(self, step, name, text):
    self.texts[step, name] = text


def test_histograms_and_texts():
  writer = RecordingWriter()
  grpo_metrics.log_samples(writer, 7, make_rollout(MIXED, replaced=[FLAT]), 3)
  assert writer.histograms == {
    (7, 'rollout/scores'): [1] * 5 + [2] * 5 + [8, 9],
    (7, 'rollout/lengths'): [1] * 4 + [2] * 2 + [3] * 2,
  }
  # Texts are of groups to train on, even if these are fewer than three.
  assert list(writer.texts) == [(7, 'generations/0')]
  text = writer.texts[7, 'generations/0']
  head, query, *_, generation = text.splitlines()
  assert names(head, 'mixed', 'correct', 1)
  assert (query, generation) == ('why?', 'text [3]')


def test_a_sample_text_has_the_responses_in_prompt_order():
  text = grpo_metrics.format_sample(make_group(order=(1, 0), letters='wr'))
  assert '[1] response 1\n[2] response 0\n' in text
  assert names(text.splitlines()[0], 'incorrect', -1)


def test_no_histogram_of_scores_if_nothing_parses():
  writer = RecordingWriter()
  grpo_metrics.log_samples(writer, 1, make_rollout(make_group(letters='xx')), 0)
  assert list(writer.histograms) == [(1, 'rollout/lengths')]
  assert not writer.texts
