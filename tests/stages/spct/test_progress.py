"""What was begun and finished, by what settings: never two runs in one."""

import json

import pytest
from ml_collections import ConfigDict

from grm_jax.errors import UserError
from grm_jax.stages.spct import progress as spct_progress
from grm_jax.stages.spct.plan import PipelineStage
from tests.messages import names, naming


def steps(a=1, b=1):
  """Two steps, the second of which reads the first."""
  first = PipelineStage(
    'one', 'sft', ConfigDict(), {'sft.a': a, 'x': [1, 2]}, {}
  )
  reads = {'one': first.fingerprint}
  return [first, PipelineStage('two', 'rft', ConfigDict(), {'rft.b': b}, reads)]


def test_a_finished_step_is_known(tmp_path):
  one, two = steps()
  spct_progress.check(tmp_path, [one, two])
  spct_progress.begin(tmp_path, one)
  assert not spct_progress.is_finished(tmp_path, one)
  spct_progress.finish(tmp_path, one)
  assert spct_progress.is_finished(tmp_path, one)
  assert not spct_progress.is_finished(tmp_path, two)
  spct_progress.check(tmp_path, steps())
  content = json.loads((tmp_path / 'one' / 'finished.json').read_text())
  assert content['fingerprint'] == one.fingerprint
  assert content['settings'] == {'sft.a': 1, 'x': [1, 2]}


def finished(tmp_path, **settings):
  for step in steps(**settings):
    spct_progress.begin(tmp_path, step)
    spct_progress.finish(tmp_path, step)


@pytest.mark.parametrize(
  'change, folder, words, others',
  [
    (dict(a=2), 'one', ['config.sft.a', 1, 2], ['two']),
    (dict(b=3), 'two', ['config.rft.b', 1, 3], []),
  ],
)
def test_other_settings_are_refused(tmp_path, change, folder, words, others):
  """The folders that would have to be deleted are named as well."""
  finished(tmp_path)
  with pytest.raises(UserError) as info:
    spct_progress.check(tmp_path, steps(**change))
  assert names(info.value, tmp_path / folder, *words)
  listed = [x for x in ('one', 'two') if names(info.value, x)]
  assert listed == [folder, *others]


def test_what_was_made_from_something_else_is_refused(tmp_path):
  """The first folder was deleted and made anew, the second one was not."""
  finished(tmp_path)
  for path in (tmp_path / 'one').iterdir():
    path.unlink()
  spct_progress.finish(tmp_path, steps(a=2)[0])
  found = [steps(a=a)[0].fingerprint for a in (1, 2)]
  with pytest.raises(UserError, match=naming(tmp_path / 'two', *found)):
    spct_progress.check(tmp_path, steps(a=2))


@pytest.mark.parametrize(
  'work',
  ['model/20', 'unhinted.partial', 'samples.jsonl', 'sft.samples.jsonl'],
)
def test_only_work_binds_a_step_that_was_begun(tmp_path, work):
  """A mistake in the settings leaves a mark, and can be corrected."""
  one = steps()[0]
  spct_progress.begin(tmp_path, one)
  (tmp_path / 'one' / 'model').mkdir()
  (tmp_path / 'one' / 'model' / 'tokenizer.model').touch()
  spct_progress.check(tmp_path, steps(a=2))
  path = tmp_path / 'one' / work
  if work.startswith('model'):
    path.mkdir()
    (path / '_CHECKPOINT_METADATA').touch()
  else:
    path.touch()
  with pytest.raises(UserError, match=naming('config.sft.a', 1, 2)):
    spct_progress.check(tmp_path, steps(a=2))
  spct_progress.check(tmp_path, steps())
