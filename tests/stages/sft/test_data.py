"""Texts of `config.data` as records: seqio Tasks beside rows of files."""

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
from tests.messages import naming

LIMITS = BatchShape(buckets=(64,), sizes=(16,), rows=1)
FORMS = PromptFormat('practice', 'practice_single')


@pytest.fixture(scope='module')
def words(tmp_path_factory):
  path = tmp_path_factory.mktemp('words') / 'tokenizer.model'
  made = tiny_tokenizer.train(path)
  register_sums()
  return made


def register_sums():
  """The seqio Task `sums` of two texts."""
  seqio = seqio_source.load()
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
  made = test_configs.load(test_configs.ROOT / 'configs/sft.py', 'tiny')
  plain = {
    'data.general': '',
    'data.general_fraction': 0.0,
    'batch.packed': False,
  }
  made.update_from_flattened_dict(plain | changes)
  return made


def test_a_seqio_task_beside_rows(words, tmp_path):
  path = tmp_path / 'rows.jsonl'
  path.write_text(json.dumps({'query': 'Hi', 'generation': 'Ho'}) + '\n')
  made = config(
    **{
      'data.texts': 'seqio:sums:train',
      'data.general': f'texts:{path}',
      'data.general_fraction': 0.5,
    }
  )
  found, named = sft_data.read(made)
  assert [x.source for x in found] == ['general']
  assert named == {'texts': 'seqio:sums:train'}
  records = sft_data.records_of(found, named, FORMS, words, LIMITS, made)
  assert [x.source for x in records] == ['texts', 'texts', 'general']
  first, _, last = records
  assert first.prompt.tolist() == chat_format.render_user(words, '1 + 1?')
  assert last.prompt.tolist() == chat_format.render_user(words, 'Hi')
  ends = [words.end_of_turn]
  assert first.generations[0].tolist() == words.encode('2') + ends
  assert last.generations[0].tolist() == words.encode('Ho') + ends


def test_what_is_not_drawn_is_not_read(words):
  made = config(**{'data.texts': 'practice:4', 'data.general': 'nowhere'})
  found, named = sft_data.read(made)
  assert (len(found), named) == (4, {})


def test_texts_that_do_not_fit(words):
  made = config(**{'data.texts': 'practice:4'})
  found, named = sft_data.read(made)
  limits = BatchShape(buckets=(8,), sizes=(16,), rows=1)
  with pytest.raises(UserError, match=naming('config.prompt.too_long', 8)):
    sft_data.records_of(found, named, FORMS, words, limits, made)
