"""Prompts by a checkpoint's chat template have the ids of transformers."""

import pytest
import transformers

from grm_jax.tokenizer import chat_format, tokenizer
from tests import gemma2_files
from tests.tokenizer.test_chat_template import CONVERSATIONS, GEMMA, OTHER


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
  path = tmp_path_factory.mktemp('model')
  gemma2_files.write_with_tokenizer(path)
  return path


@pytest.mark.parametrize('template', [GEMMA, OTHER], ids=['gemma', 'other'])
@pytest.mark.parametrize('messages', CONVERSATIONS)
def test_ids_equal(directory, template, messages):
  own = tokenizer.load(directory / 'tokenizer.model')
  own = chat_format.with_template(own, template)
  if messages[0]['role'] == 'system' and template is GEMMA:
    system, user = (x['content'] for x in messages)
    messages = [{'role': 'user', 'content': f'{system}\n\n{user}'}]
  peer = transformers.GemmaTokenizer.from_pretrained(directory)
  expected = peer.apply_chat_template(
    messages,
    chat_template=template.source,
    add_generation_prompt=True,
    return_dict=True,
  )['input_ids']
  assert chat_format.render(own, messages) == expected
