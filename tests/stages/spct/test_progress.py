"""Records of started and finished stages; runs are never mixed."""

import json

import pytest
from ml_collections import ConfigDict

from grm_jax.errors import UserError
from grm_jax.io.journal import Journal
from grm_jax.stages.spct import progress as spct_progress
from grm_jax.stages.spct.plan import PipelineStage
from tests.messages import names, naming


def make_stages(a=1, b=1):
  """Returns two stages; the second reads the first."""
  first = PipelineStage(
    'one', 'sft', ConfigDict(), {'sft.a': a, 'x': [1, 2]}, {}
  )
  reads = {'one': first.fingerprint}
  return [first, PipelineStage('two', 'rft', ConfigDict(), {'rft.b': b}, reads)]


def test_finished_stages_are_recorded(tmp_path):
  first, second = make_stages()
  spct_progress.check(tmp_path, [first, second])
  spct_progress.mark_started(tmp_path, first)
  assert not spct_progress.is_finished(tmp_path, first)
  spct_progress.mark_finished(tmp_path, first)
  assert spct_progress.is_finished(tmp_path, first)
  assert not spct_progress.is_finished(tmp_path, second)
  spct_progress.check(tmp_path, make_stages())
  content = json.loads((tmp_path / 'one' / 'finished.json').read_text())
  assert content['fingerprint'] == first.fingerprint
  assert content['settings'] == {'sft.a': 1, 'x': [1, 2]}


def finish_all(tmp_path, **settings):
  for stage in make_stages(**settings):
    spct_progress.mark_started(tmp_path, stage)
    spct_progress.mark_finished(tmp_path, stage)


@pytest.mark.parametrize(
  'change, folder, words, others',
  [
    (dict(a=2), 'one', ['config.sft.a', 1, 2], ['two']),
    (dict(b=3), 'two', ['config.rft.b', 1, 3], []),
  ],
)
def test_other_settings_are_an_error(tmp_path, change, folder, words, others):
  """The message names all folders that have to be deleted."""
  finish_all(tmp_path)
  with pytest.raises(UserError) as info:
    spct_progress.check(tmp_path, make_stages(**change))
  assert names(info.value, tmp_path / folder, *words)
  listed = [x for x in ('one', 'two') if names(info.value, x)]
  assert listed == [folder, *others]


def test_an_older_result_of_an_earlier_stage_is_an_error(tmp_path):
  """The first stage ran again with other settings, the second did not."""
  finish_all(tmp_path)
  for path in (tmp_path / 'one').iterdir():
    path.unlink()
  spct_progress.mark_finished(tmp_path, make_stages(a=2)[0])
  fingerprints = [make_stages(a=a)[0].fingerprint for a in (1, 2)]
  with pytest.raises(UserError, match=naming(tmp_path / 'two', *fingerprints)):
    spct_progress.check(tmp_path, make_stages(a=2))


@pytest.mark.parametrize(
  'file',
  ['model/20', 'unhinted.partial', 'samples.jsonl', 'sft.samples.jsonl'],
)
def test_settings_are_free_until_a_stage_can_resume(tmp_path, file):
  """A stage that started with a mistake in its settings can be corrected."""
  first = make_stages()[0]
  spct_progress.mark_started(tmp_path, first)
  (tmp_path / 'one' / 'model').mkdir()
  (tmp_path / 'one' / 'model' / 'tokenizer.model').touch()
  spct_progress.check(tmp_path, make_stages(a=2))
  path = tmp_path / 'one' / file
  if file.startswith('model'):
    path.mkdir()
    (path / '_CHECKPOINT_METADATA').touch()
  elif path.suffix == '.partial':
    with Journal(path, {}) as journal:
      spct_progress.check(tmp_path, make_stages(a=2))  # it has no rows
      journal.append({'id': 'a'})
  else:
    path.touch()
  with pytest.raises(UserError, match=naming('config.sft.a', 1, 2)):
    spct_progress.check(tmp_path, make_stages(a=2))
  spct_progress.check(tmp_path, make_stages())


@pytest.mark.parametrize('content', ['', '\0\0', '[]', '{"settings": {}}'])
def test_a_damaged_record_is_named(tmp_path, content):
  spct_progress.mark_finished(tmp_path, make_stages()[0])
  path = tmp_path / 'one' / 'finished.json'
  path.write_text(content)
  with pytest.raises(UserError, match=naming(path)):
    spct_progress.check(tmp_path, make_stages())
