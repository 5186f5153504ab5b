"""Texts of `config.data` as tokens: seqio Tasks next to files."""

import json

import pytest

from grm_jax.data import seqio_source
from grm_jax.data.tokenized_example import BatchShape
from grm_jax.errors import UserError
from grm_jax.judgement.prompt_format import PromptFormat
from grm_jax.stages.sft import data as sft_data
from grm_jax.tokenizer import chat_format
from grm_jax.tokenizer import tiny as tiny_tokenizer
from tests import test_configs
from tests.messages import lines_with, naming

SHAPE = BatchShape((64,), (16,), 1)
PROMPT_FORMAT = PromptFormat('practice', 'practice_single')


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  register_sums()
  path = tmp_path_factory.mktemp('tokenizer') / 'tokenizer.model'
  return tiny_tokenizer.train(path)


def register_sums():
  """Registers the seqio Task `sums` with two texts."""
  seqio = seqio_source.import_seqio()
  import tensorflow as tf

  sums = {'inputs': ['1 + 1?', '2 + 2?'], 'targets': ['2', '4']}

  # seqio passes these arguments by name.
  def dataset(split, shuffle_files, seed=None):
    return tf.data.Dataset.from_tensor_slices(sums)

  feature = seqio.Feature(
    seqio.PassThroughVocabulary(0), add_eos=False, dtype=tf.string, rank=0
  )
  seqio.TaskRegistry.add(
    'sums',
    source=seqio.FunctionDataSource(dataset, ['train']),
    output_features=dict.fromkeys(sums, feature),
  )


def config(**changes):
  loaded = test_configs.load(test_configs.ROOT / 'configs/sft.py', 'tiny')
  settings = {
    'data.general': '',
    'data.general_fraction': 0.0,
    'batch.packed': False,
  }
  loaded.update_from_flattened_dict(settings | changes)
  return loaded


def tokenize(sft_config, tokenizer, batch_shape=SHAPE):
  examples, seqio_specs = sft_data.read(sft_config)
  return sft_data.tokenize(
    examples, seqio_specs, PROMPT_FORMAT, tokenizer, batch_shape, packed=False
  )


def test_a_seqio_task_and_a_file(tokenizer, tmp_path):
  path = tmp_path / 'rows.jsonl'
  path.write_text(json.dumps({'query': 'Hi', 'generation': 'Ho'}) + '\n')
  sft_config = config(
    **{
      'data.texts': 'seqio:sums:train',
      'data.general': f'texts:{path}',
      'data.general_fraction': 0.5,
    }
  )
  examples, seqio_specs = sft_data.read(sft_config)
  assert [x.source for x in examples] == ['general']
  assert seqio_specs == {'texts': 'seqio:sums:train'}
  tokenized = tokenize(sft_config, tokenizer)
  assert [x.source for x in tokenized] == ['texts', 'texts', 'general']
  first, _, last = tokenized
  assert first.prompt.tolist() == chat_format.render_user(tokenizer, '1 + 1?')
  assert last.prompt.tolist() == chat_format.render_user(tokenizer, 'Hi')
  end = [tokenizer.end_of_turn_id]
  assert first.generations[0].tolist() == tokenizer.encode('2') + end
  assert last.generations[0].tolist() == tokenizer.encode('Ho') + end


def test_a_source_with_fraction_0_is_not_read():
  sft_config = config(**{'data.texts': 'practice:4', 'data.general': 'nowhere'})
  examples, seqio_specs = sft_data.read(sft_config)
  assert (len(examples), seqio_specs) == (4, {})


def test_no_text_fits(tokenizer):
  sft_config = config(**{'data.texts': 'practice:4'})
  with pytest.raises(UserError, match=naming('config.prompt.template', 8)):
    tokenize(sft_config, tokenizer, BatchShape((8,), (16,), 1))


def test_an_llm_as_a_judge_skips_single_responses(tokenizer, tmp_path, caplog):
  path = tmp_path / 'rows.jsonl'
  pair = {'query': 'q', 'responses': ['a', 'b'], 'generation': r'\boxed{1}'}
  rows = [pair, pair | {'responses': ['a']}]
  path.write_text('\n'.join(map(json.dumps, rows)))
  examples, _ = sft_data.read(config(**{'data.texts': f'judged:{path}'}))
  shape = BatchShape((1024,), (16,), 1)
  naming_best = PromptFormat('best', reads='best')
  with caplog.at_level('WARNING'):
    tokenized = sft_data.tokenize(
      examples, {}, naming_best, tokenizer, shape, packed=False
    )
  assert len(tokenized) == 1
  assert lines_with(caplog.text, 'skipped', 1, 2)
