"""A converted scalar reward model returns what transformers returns for a chat.

The peer renders the conversation with its own tokenizer and chat template, and
reads the value at the last token of it.
"""

import pathlib
import runpy

import pytest
import torch
import transformers

from grm_jax.checkpoint import model_directory
from grm_jax.judgement.example import JudgingExample, Turn
from grm_jax.judges import factory
from grm_jax.stages import convert
from tests import gemma2_files

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'
# In the form of Gemma-2's: roles user and model, contents trimmed.
CHAT_TEMPLATE = (
  '{{ bos_token }}{% for m in messages %}<start_of_turn>'
  '{{ "model" if m.role == "assistant" else m.role }}\n'
  '{{ m.content | trim }}<end_of_turn>\n{% endfor %}'
)
EXAMPLES = [
  JudgingExample(
    'one', (Turn('user', 'What is 17 + 26?'),), ('43', ' 43.\n\n', '33')
  ),
  JudgingExample(
    'conversation',
    (
      Turn('user', '  Hello there. '),
      Turn('assistant', 'Hello!\n'),
      Turn('user', '\nWho are you?'),
    ),
    ('Nobody\nyou know.', '\tA judge  of texts. '),
  ),
]


def config_of(stage, **values):
  config = runpy.run_path(str(CONFIGS / f'{stage}.py'))['get_config']('tiny')
  config.update_from_flattened_dict(values)
  return config


@pytest.fixture(scope='module')
def directories(tmp_path_factory):
  """Returns (the directory of Hugging Face, the model directory)."""
  root = tmp_path_factory.mktemp('scalar')
  hf, target = root / 'hf', root / 'ours'
  hf.mkdir()
  gemma2_files.write_with_tokenizer(hf, scalar=True)
  convert.run(config_of('convert', source=str(hf), target=str(target)), '')
  return hf, target


def expected_values(hf, example):
  tokenizer = transformers.GemmaTokenizer.from_pretrained(hf)
  model = transformers.AutoModelForSequenceClassification.from_pretrained(
    hf, attn_implementation='eager', dtype=torch.float32
  ).eval()
  query = [{'role': x.role, 'content': x.text} for x in example.query]
  values = []
  for response in example.responses:
    messages = [*query, {'role': 'assistant', 'content': response}]
    ids = tokenizer.apply_chat_template(
      messages,
      chat_template=CHAT_TEMPLATE,
      return_tensors='pt',
      return_dict=True,
    )['input_ids']
    with torch.no_grad():
      values.append(model(ids).logits.item())
  return values


def test_values_equal(directories):
  hf, target = directories
  config = config_of(
    'score',
    judge='scalar',
    checkpoint=str(target),
    **{'sampling.concurrent_prompts': 8, 'sampling.max_new_tokens': 64},
  )
  judge = factory.from_config(config, factory.make_judge_config(config))
  for judged in judge.judge(EXAMPLES):
    values = judged.samples[0].scores
    expected = expected_values(hf, judged.example)
    assert max(expected) - min(expected) > 1e-3
    assert values == pytest.approx(expected, abs=1e-4)


def test_a_converted_model_can_be_a_meta_rm(directories):
  stored = model_directory.read_trained_judge(str(directories[1]))
  assert (stored.kind, stored.full_template) == ('imported', True)
  config = config_of(
    'score',
    checkpoint='random',
    meta_checkpoint=str(directories[1]),
    **{'sampling.concurrent_prompts': 8},
  )
  judge = factory.from_config(config, factory.make_voting_judge_config(config))
  assert judge.meta.full_template and judge.vote_config.needs_meta
