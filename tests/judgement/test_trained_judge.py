"""What a model directory stores about its judge, and how overrides warn."""

import json
import logging

import pytest

from grm_jax.errors import UserError
from grm_jax.judgement import template, trained_judge
from grm_jax.judgement.prompt_format import PromptFormat
from grm_jax.judgement.template import StoredTemplate
from grm_jax.judgement.trained_judge import TrainedJudge
from tests.messages import lines_with, naming

PRACTICE = trained_judge.of_training(
  PromptFormat('practice', 'practice_single'), 'gemma', 192
)


def resolve(model='runs/m', stored=PRACTICE, **values):
  return trained_judge.prompt_format(stored, model, **values)


def test_round_trip_with_the_texts_of_the_templates():
  restored = trained_judge.from_json(trained_judge.to_json(PRACTICE), 'x')
  assert restored == PRACTICE
  assert restored.template.source == template.source('practice')
  assert (restored.max_new_tokens, restored.principles) == (192, None)
  critique = trained_judge.of_training(PromptFormat('critique'), 'x', 9)
  assert critique.principles == template.stored('principles')
  assert critique.single is None
  scalar = TrainedJudge('scalar', 'chatml')
  assert trained_judge.from_json(trained_judge.to_json(scalar), 'x') == scalar


@pytest.mark.parametrize(
  'change',
  [
    {'format_version': 2},
    {'format_version': None},
    {'kind': 'poet'},
    {'template': None},
    {'template': 'practice'},
    {'template': {'name': 'x', 'source': 'no slots'}},
    {'template': {'name': 'x', 'source': 3}},
    {'score_range': [1]},
    {'score_range': [10, 1]},
    {'score_range': ['a', 'b']},
    {'max_new_tokens': 0},
    {'max_new_tokens': '9'},
    {'more': 1},
  ],
)
def test_damage_is_one_line(change):
  content = json.loads(trained_judge.to_json(PRACTICE)) | change
  with pytest.raises(UserError, match=naming('DIR/judge.json')) as caught:
    trained_judge.from_json(json.dumps(content), 'DIR/judge.json')
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('text', ['', '{', '[]', '1', 'null', b'\xff'])
def test_what_is_not_an_object_is_one_line(text):
  with pytest.raises(UserError, match=naming('DIR/judge.json')):
    trained_judge.from_json(text, 'DIR/judge.json')


def test_empty_values_are_those_of_the_model(caplog):
  prompts = resolve()
  assert prompts.template == template.stored('practice')
  assert prompts.single == template.stored('practice_single')
  # Of a model that stores none: those of the stage.
  assert resolve(stored=None).template == 'pointwise'
  assert resolve(stored=None, default_single='single').single == 'single'
  assert resolve(stored=None).single == ''
  assert trained_judge.generation_length(PRACTICE, 'm', 0) == 192
  assert trained_judge.generation_length(None, 'm', 0) == 1024
  assert caplog.text == ''


def test_the_score_range_is_that_of_the_model():
  narrow = PromptFormat('practice', 'practice_single', score_range=(0, 5))
  stored = trained_judge.of_training(narrow, 'gemma', 9)
  restored = trained_judge.from_json(trained_judge.to_json(stored), 'x')
  prompts = resolve(stored=restored)
  assert prompts.parse_scores(r'\boxed{0, 5}', (0, 1)) == (0, 5)
  assert prompts.parse_scores(r'\boxed{0, 6}', (0, 1)) is None
  wide = resolve(model='wide', stored=restored, score_range=(1, 100))
  assert wide.parse_scores(r'\boxed{100, 1}', (0, 1)) == (100, 1)


@pytest.mark.parametrize('value', [(1,), (5, 5), (10, 1), (True, 5), (1, 1e3)])
def test_wrong_score_ranges(value):
  with pytest.raises(UserError, match=naming('config.prompt.score_range')):
    PromptFormat('practice', score_range=value)


@pytest.mark.parametrize(
  'values, words',
  [
    (
      {'template': 'pointwise'},
      ['config.prompt.template', 'pointwise', 'practice'],
    ),
    (
      {'single': 'single'},
      ['config.prompt.single', 'single', 'practice_single'],
    ),
    (
      {'single': 'none'},
      ['config.prompt.single', 'none', 'practice_single'],
    ),
    ({'score_range': (1, 5)}, ['config.prompt.score_range', '5)', '10)']),
  ],
)
def test_overrides_that_differ_warn_with_both_values(values, words, caplog):
  model = f'runs/{words[0]} {words[1]}'
  with caplog.at_level(logging.WARNING, 'absl'):
    prompts = resolve(model=model, **values)
    resolve(model=model, **values)
  (line,) = lines_with(caplog.text, words[0], model)
  assert all(word in line for word in words)
  for name, value in values.items():
    assert getattr(prompts, name) == ('' if value == 'none' else value)


def test_equal_overrides_do_not_warn(caplog, tmp_path):
  copied = tmp_path / 'copied.txt'
  copied.write_text(template.source('practice'))
  with caplog.at_level(logging.WARNING, 'absl'):
    resolve(template='practice', single='practice_single', score_range=(1, 10))
    resolve(template=str(copied))
    trained_judge.generation_length(PRACTICE, 'm', 192)
  assert caplog.text == ''


def test_a_file_that_changed_since_training_warns(caplog, tmp_path):
  path = tmp_path / 'template.txt'
  path.write_text(template.source('practice').replace('Judge', 'Rate'))
  stored = TrainedJudge(
    'grm', 'gemma', StoredTemplate(str(path), template.source('practice'))
  )
  with caplog.at_level(logging.WARNING, 'absl'):
    prompts = resolve(stored=stored, model='edited', template=str(path))
  assert lines_with(caplog.text, 'config.prompt.template', path, 'edited')
  assert prompts.template == str(path)
  # The text of the training stays available without the file.
  path.unlink()
  assert resolve(stored=stored).template_for(2).source.startswith('Judge')


def test_another_length_warns(caplog):
  with caplog.at_level(logging.WARNING, 'absl'):
    length = trained_judge.generation_length(PRACTICE, 'long', 96)
  key = 'config.sampling.max_new_tokens'
  assert length == 96 and lines_with(caplog.text, key, 96, 192, 'long')


def test_a_model_of_another_kind_is_refused():
  meta = TrainedJudge('meta', 'gemma', template.stored('meta'))
  trained_judge.check_kind(meta, 'DIR', 'meta', 'config.meta_checkpoint')
  trained_judge.check_kind(None, 'DIR', 'pair', 'config.checkpoint')
  imported = TrainedJudge('imported', 'gemma', full_template=True)
  for kind in ('scalar', 'pair', 'meta'):
    trained_judge.check_kind(imported, 'DIR', kind, 'config.checkpoint')
  for kind in ('scalar', 'pair'):
    with pytest.raises(UserError, match=naming('config.checkpoint', 'DIR')):
      trained_judge.check_kind(meta, 'DIR', kind, 'config.checkpoint')
  with pytest.raises(UserError, match=naming('config.meta_checkpoint')):
    trained_judge.meta_template(PRACTICE, 'DIR', '', 'meta')


def test_an_llm_as_a_judge_is_read_as_in_training(caplog):
  """Its template and what is read are stored; its kind follows from them."""
  prompts = resolve(stored=None, reads='best', default_single='single')
  assert (prompts.template, prompts.single) == ('best', '')
  stored = trained_judge.of_training(prompts, 'gemma', 9)
  assert (stored.kind, stored.reads) == ('llm', 'best')
  restored = trained_judge.from_json(trained_judge.to_json(stored), 'x')
  with caplog.at_level(logging.WARNING, 'absl'):
    prompts = resolve(stored=restored)
  assert prompts.parse_scores(r'Best: \boxed{2}', (1, 0)) == (1, 0)
  assert caplog.text == ''


@pytest.mark.parametrize('reads, default', [('best', 'best'), ('', 'practice')])
def test_a_grm_that_names_the_best_response_warns(reads, default, caplog):
  with caplog.at_level(logging.WARNING, 'absl'):
    prompts = resolve(model='grm', reads=reads)
  assert template.source(prompts.template) == template.source(default)
  assert bool(lines_with(caplog.text, 'grm', 'LLM-as-a-Judge')) == bool(reads)
