"""A loud line when most judgements fail, with the likely cause."""

import pathlib
import runpy

import pytest

from grm_jax.checkpoint import model_directory
from grm_jax.judgement import trained_judge
from grm_jax.judgement.prompt_format import PromptFormat
from grm_jax.judges import failure_report
from tests.messages import names

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'
GOOD, FAILED = (False, False), (True, False)
CUT, CUT_AND_FAILED = (False, True), (True, True)


def load_config(stage, **values):
  config = runpy.run_path(str(CONFIGS / f'{stage}.py'))['get_config']('tiny')
  config.update_from_flattened_dict(values)
  return config


@pytest.fixture
def trained(tmp_path):
  """A directory that says how its judge was asked; nothing else is read."""
  prompts = PromptFormat('practice', 'practice_single')
  judge = trained_judge.of_training(prompts, 'gemma', 192)
  model_directory.write_trained_judge(str(tmp_path), judge)
  return str(tmp_path)


@pytest.mark.parametrize('stage', ['score', 'evaluate', 'serve'])
@pytest.mark.parametrize(
  'values, samples, words',
  [
    (
      {'prompt.template': 'pointwise'},
      [FAILED, FAILED, GOOD],
      ['config.prompt.template', 'pointwise', 'practice', 2, 3],
    ),
    (
      {'sampling.max_new_tokens': 24},
      [CUT_AND_FAILED, CUT, GOOD],
      ['config.sampling.max_new_tokens', 24],
    ),
    ({}, [FAILED] * 3, ['config.prompt.template', 'practice']),
    # The length in training is not too small.
    (
      {},
      [CUT_AND_FAILED] * 3,
      ['config.prompt.template', 'practice', 'configs/sft.py'],
    ),
  ],
)
def test_the_cause_is_named(stage, trained, values, samples, words):
  config = load_config(stage, checkpoint=trained, **values)
  warning = failure_report.of_samples(config, samples)
  assert names(warning, *words)
  assert '\n' not in warning


def test_a_model_that_stores_nothing(tmp_path):
  config = load_config('score', checkpoint=str(tmp_path))
  warning = failure_report.of_samples(config, [CUT_AND_FAILED] * 2)
  words = 'config.prompt.template', 'pointwise', 'judge.json', tmp_path
  assert names(warning, *words)


@pytest.mark.parametrize(
  'samples', [[], [GOOD], [GOOD, FAILED], [CUT, GOOD], [FAILED, CUT, GOOD]]
)
def test_half_of_the_samples_is_not_most(trained, samples):
  config = load_config('score', checkpoint=trained)
  assert failure_report.of_samples(config, samples) == ''


def test_random_weights_are_expected_to_fail():
  assert failure_report.of_samples(load_config('score'), [FAILED] * 9) == ''
