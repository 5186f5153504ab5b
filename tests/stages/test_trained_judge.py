"""A trained judge is asked as in training by every stage, without a flag."""

import dataclasses
import json
import os
import pathlib
import runpy

import pytest

from grm_jax.checkpoint import model_directory
from grm_jax.errors import UserError
from grm_jax.judgement import template
from grm_jax.judgement.example import JudgingExample, Turn
from grm_jax.judges import factory
from grm_jax.stages import convert, evaluate, score, serve
from grm_jax.stages.sft import train as sft_train
from tests.messages import lines_with, naming

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'
LENGTH = 200  # tokens of the longest generation in training
PAIR = JudgingExample('pair', (Turn('user', '1 + 1?'),), ('2', '3'))
SINGLE = JudgingExample('single', (Turn('user', '1 + 1?'),), ('2',))


# SFT of a model with random weights.
ONE_STEP = {
  'checkpoint': 'random',
  'data.general': '',
  'data.general_fraction': 0.0,
  'batch.micro_batch_prompts': 8,
  'batch.packed': False,
  'batch.prompt_buckets': (512,),
  'batch.generation_buckets': (LENGTH,),
  'steps': 1,
  'optimizer.warmup_steps': 0,
  'evaluation.data': '',
}


def load_config(stage, **values):
  config = runpy.run_path(str(CONFIGS / f'{stage}.py'))['get_config']('tiny')
  config.update_from_flattened_dict(values)
  return config


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """The model of one step of SFT with a template that is gone afterwards."""
  folder = tmp_path_factory.mktemp('trained')
  path = folder / 'mine.txt'
  path.write_text('MINE\n' + template.source('practice'))
  values = ONE_STEP | {
    'data.texts': 'practice:12',
    'prompt.template': str(path),
    'prompt.score_range': (1, 9),
  }
  sft_train.run(load_config('sft', **values), str(folder))
  path.unlink()
  return str(folder / 'model')


def load_with(stage, checkpoint, **values):
  if stage == 'load_judge':
    return factory.load_judge(checkpoint)
  shapes = {'sampling.concurrent_prompts': 8}  # one per device of the tests
  config = load_config(stage, checkpoint=checkpoint, **shapes | values)
  make_config = factory.make_voting_judge_config
  if stage == 'evaluate':
    make_config = factory.make_judge_config
  return factory.from_config(config, make_config(config))


@pytest.mark.parametrize('stage', ['score', 'evaluate', 'serve', 'load_judge'])
def test_stages_ask_as_in_training(stage, trained, caplog):
  with caplog.at_level('WARNING', 'absl'):
    judge = load_with(stage, trained)
  assert caplog.text == ''
  prompts = judge.prompts.judgement_format
  assert prompts.render(PAIR, (0, 1)).startswith('MINE\nJudge 2 answers.')
  single = template.load('practice_single').source.split('\n')[0]
  assert prompts.render(SINGLE, (0,)).startswith(single)
  assert prompts.parse_scores(r'\boxed{9, 1}', (0, 1)) == (9, 1)
  assert prompts.parse_scores(r'\boxed{10, 1}', (0, 1)) is None
  assert prompts.parse_scores(r'\boxed{0}', (0,)) == (0,)
  assert judge.engine.limits.max_new_tokens == LENGTH


def test_a_directory_without_judge_json_has_the_defaults(trained, tmp_path):
  """As one that was converted from published weights."""
  os.symlink(os.path.join(trained, '1'), tmp_path / '1')
  os.symlink(
    os.path.join(trained, 'tokenizer.model'), tmp_path / 'tokenizer.model'
  )
  prompts = load_with('score', str(tmp_path)).prompts.judgement_format
  assert prompts.template == 'pointwise' and not prompts.single


@pytest.fixture(scope='module')
def naming_best(tmp_path_factory):
  """The model of one step of SFT as an LLM-as-a-Judge, with `best`."""
  folder = tmp_path_factory.mktemp('naming_best')
  example = {'id': '1', 'query': 'q', 'responses': ['a', 'b'], 'best': 1}
  pair = example | {'generation': r'Best: \boxed{2}'}
  rows = folder / 'rows.jsonl'
  rows.write_text(json.dumps(pair))
  values = ONE_STEP | {
    'data.texts': f'judged:{rows}',
    'prompt.reads': 'best',
    'prompt.template': '',
  }
  sft_train.run(load_config('sft', **values), str(folder))
  return str(folder / 'model')


def test_an_llm_as_a_judge_is_asked_as_in_training(naming_best, caplog):
  with caplog.at_level('WARNING', 'absl'):
    judge = load_with('score', naming_best, judge='llm')
    loaded = load_with('load_judge', naming_best)
  assert caplog.text == ''
  for prompts in (judge.prompts.judgement_format, loaded.config):
    assert prompts.template == template.stored('best')
    assert (prompts.reads, prompts.single) == ('best', '')
  with pytest.raises(UserError, match=naming('config.judge', naming_best)):
    load_with('score', naming_best)


def test_a_grm_as_llm_warns(trained, caplog):
  with caplog.at_level('WARNING', 'absl'):
    load_with('score', trained, judge='llm')
  assert lines_with(caplog.text, trained, 'LLM-as-a-Judge')


def test_conversion_keeps_how_a_judge_is_asked(trained, tmp_path):
  stored = model_directory.read_trained_judge(trained)
  values = {'direction': 'huggingface', 'source': trained}
  hf = str(tmp_path / 'hf')
  convert.run(load_config('convert', **values, target=hf), '')
  back = str(tmp_path / 'back')
  convert.run(load_config('convert', source=hf, target=back), '')
  assert model_directory.read_trained_judge(hf) == stored
  assert model_directory.read_trained_judge(back) == stored
  assert dataclasses.asdict(stored)['template']['source'].startswith('MINE')


def test_stages_judge_with_a_stored_template(trained, tmp_path):
  """To the end, with a template that is in no file."""
  shapes = {
    'checkpoint': trained,
    'k': 1,
    'sampling.concurrent_prompts': 8,
    'sampling.generations_per_prompt': 1,
    'sampling.max_new_tokens': 4,
    'sampling.prompt_buckets': (512,),
  }
  rows = [{'input': 'q', 'output_1': 'yes', 'output_2': 'no', 'label': 1}]
  suite = tmp_path / 'LLMBar' / 'Natural'
  suite.mkdir(parents=True)
  (suite / 'dataset.json').write_text(json.dumps(rows))
  config = load_config(
    'evaluate', **shapes, **{'suites.llmbar': str(tmp_path / 'LLMBar')}
  )
  evaluate.run(config, str(tmp_path / 'evaluate'))
  results = json.loads((tmp_path / 'evaluate/results.json').read_text())
  assert results['facts']['template'].endswith('mine.txt')

  rows = [{'query': 'q', 'responses': ['yes', 'no']}]
  (tmp_path / 'rows.json').write_text(json.dumps(rows))
  config = load_config('score', **shapes, input=str(tmp_path / 'rows.json'))
  score.run(config, str(tmp_path / 'score'))
  assert (tmp_path / 'score/scores.jsonl').read_text().count('\n') == 1

  config = load_config('serve', **shapes)
  about = serve._about(config, load_with('serve', trained))
  assert json.loads(json.dumps(about))['template'].endswith('mine.txt')
