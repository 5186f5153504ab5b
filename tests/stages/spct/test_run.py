"""The whole method in one command: run, skipped, refused, killed."""

import base64
import html
import json
import re
import signal
import time

import pytest

from grm_jax.errors import UserError
from grm_jax.stages.spct import run as spct_run_module
from tests import test_main
from tests.messages import lines_with, names
from tests.processes import HANG
from tests.stages import printed, spct_run

# config_flags loads a config's file so.
pytestmark = pytest.mark.filterwarnings('ignore:the load_module')

FOLDERS = ('data', 'sft', 'rft', 'grpo', 'samples', 'meta_rm', 'evaluation')


@pytest.fixture(scope='module')
def finished(tmp_path_factory, environment):
  """(WORKDIR of a whole run, the arguments but for it, what it printed)."""
  folder = tmp_path_factory.mktemp('spct')
  arguments = spct_run.arguments(folder)
  made = folder / 'work'
  stdout = spct_run.run(*arguments, f'--workdir={made}', env=environment)
  return made, arguments, stdout


def summary(made):
  return json.loads((made / 'evaluation' / 'summary.json').read_text())


def state(made):
  return {
    path: (path.stat().st_mtime_ns, path.stat().st_size)
    for path in made.rglob('*')
  }


def test_every_stage_is_run_once(finished):
  made, _, stdout = finished
  heads = printed.heads(stdout)
  found = [(*printed.HEAD.match(x).groups(), x.split('/')[-1]) for x in heads]
  assert found == [(str(i), '7', x) for i, x in enumerate(FOLDERS, 1)]
  for name in FOLDERS:
    content = (made / name / 'finished.json').read_text()
    assert content == (made / name / 'begun.json').read_text()
  for name, steps in (('sft', 20), ('rft', 4), ('grpo', 4), ('meta_rm', 4)):
    assert (made / name / 'model' / str(steps)).is_dir()
  last = stdout.rstrip().splitlines()[-1]
  assert names(last, made / 'evaluation/report.html')


def test_the_table_is_that_of_what_was_judged(finished):
  """Counted again from the samples, by hand."""
  made, _, stdout = finished
  found = summary(made)
  assert list(found['judges']) == ['before', 'sft', 'rft', 'grpo']
  queries = None
  for name, own in found['judges'].items():
    path = made / 'evaluation' / f'{name}.samples.jsonl'
    rows = [json.loads(x) for x in path.read_text().splitlines()]
    assert {len(x['samples']) for x in rows} == {4 if name == 'grpo' else 2}
    assert all(y['meta'] is not None for x in rows for y in x['samples'])
    ids = [x['example']['id'] for x in rows]
    assert queries is None or ids == queries
    queries = ids
    right = [
      # Of two scores one is 8; what does not parse is not right.
      bool(x['greedy']['scores'])
      and x['greedy']['scores'][x['example']['best']] == 8
      for x in rows
    ]
    assert own['greedy']['value'] == pytest.approx(sum(right) / len(right))
    line = next(x for x in stdout.splitlines() if x.startswith(own['title']))
    for point in (own['greedy'], own['voting']['2'], own['meta']['2']):
      assert names(line, f'{100 * point["value"]:.1f}')
  assert '4' in found['judges']['grpo']['voting']
  # None of them was trained on.
  for part in ('rft', 'grpo', 'fresh', 'train'):
    assert not {f'"{x}"' for x in queries} & set(
      re.findall(r'"e\d+"', (made / 'data' / f'{part}.jsonl').read_text())
    )


def test_the_report_is_one_page(finished):
  made, _, _ = finished
  page = (made / 'evaluation' / 'report.html').read_text()
  titles = [own['title'] for own in summary(made)['judges'].values()]
  assert len(titles) == 4
  for words in (*titles, 'MetaRM@2'):
    assert words in page
  for name in ('stages', 'training'):
    picture = (made / 'evaluation' / f'{name}.png').read_bytes()
    assert base64.b64encode(picture).decode() in page
  path = made / 'evaluation' / 'grpo.samples.jsonl'
  rows = [json.loads(x) for x in path.read_text().splitlines()]
  assert any(html.escape(y['text']) in page for x in rows for y in x['samples'])
  assert '://' not in page


def test_what_is_finished_is_skipped(finished, environment):
  made, arguments, before = finished
  files = state(made)
  stdout = spct_run.run(*arguments, f'--workdir={made}', env=environment)
  heads = printed.heads(stdout)
  assert len(heads) == 7 and all(names(x, printed.SKIPPED) for x in heads)
  assert state(made) == files
  # The table is printed again.
  table = stdout.split(heads[-1])[1]
  assert names(table, made / 'evaluation/report.html')
  assert before.endswith(table)


@pytest.mark.parametrize(
  'change, folder, words',
  [
    (
      '--config.grpo.loss.kl_coef=0.5',
      'grpo',
      ['config.grpo.loss.kl_coef', 0.02, 0.5],
    ),
    ('--config.seed=1', 'sft', ['config.seed', 0, 1, 'rft']),
    (
      '--config.examples.held_out=5',
      'data',
      ['config.examples.held_out', 8, 5, 'sft'],
    ),
    (
      '--config.evaluation.temperature=0.7',
      'evaluation',
      ['config.evaluation.temperature', 0.7],
    ),
    ('--config.stages=sft,grpo,meta_rm,evaluate', 'grpo', ['rft']),
    ('--config.compute.dtype=bfloat16', '', ['config.compute.dtype']),
  ],
)
def test_other_settings_are_refused_by_name(
  finished, monkeypatch, change, folder, words
):
  made, arguments, _ = finished
  monkeypatch.chdir(test_main.ROOT)
  files = state(made)
  with pytest.raises(UserError) as info:
    spct_run_module.run(spct_run.parse(*arguments, change), str(made))
  assert names(info.value, made / folder, *words, '--workdir')
  assert state(made) == files


def test_what_changes_no_result_is_not_refused(finished, monkeypatch, capsys):
  made, arguments, _ = finished
  monkeypatch.chdir(test_main.ROOT)
  free = [
    '--config.sft.save_every=7',
    '--config.grpo.max_to_keep=9',
    '--config.mesh.fsdp=4',
    '--config.rft.train.compute.remat=dots',
  ]
  spct_run_module.run(spct_run.parse(*arguments, *free), str(made))
  out = capsys.readouterr().out
  assert names(out, made / 'evaluation/report.html')


@pytest.mark.parametrize(
  'change, words',
  [
    ('--config.stages=sft,rl', ['config.stages', 'sft,rl', 'base', 'rft']),
    ('--config.stages=evaluate', ['config.stages', 'evaluate', 'sft']),
    (
      '--config.stages=grpo,evaluate',
      ['config.stages', 'sft', 'config.checkpoint', 'scratch'],
    ),
    ('--config.data=practice:20', ['practice:20', 'config.examples']),
    ('--config.data=', ['config.data']),
    ('--config.examples.rft=0', ['config.examples.rft', 0]),
    ('--config.evaluation.k=0', ['config.evaluation.k', 0]),
    (
      '--config.evaluation.k_intermediate=6',
      ['config.evaluation.k_intermediate', 6],
    ),
    (
      '--config.evaluation.k_intermediate=64',
      ['config.evaluation.k_intermediate', 64, 32],
    ),
    (
      '--config.evaluation.evaluate_initial=true',
      ['config.evaluation.evaluate_initial', 'config.checkpoint', 'scratch'],
    ),
    (
      '--config.evaluation.response_order=up',
      ['config.evaluation.response_order', 'up'],
    ),
    (
      '--config.evaluation.temperature=-1.0',
      ['config.evaluation.temperature', -1.0],
    ),
    (
      '--config.grpo.group_size=1',
      ['config.grpo.group_size', 1, 2],
    ),
    ('--config.rft.train.max_to_keep=0', ['config.rft.train.max_to_keep', 0]),
    (
      '--config.meta_rm.batch.generations_per_prompt=0',
      ['config.meta_rm.batch.generations_per_prompt', 0],
    ),
    ('--config.prompt.template=nowhere', ['config.prompt.template', 'nowhere']),
  ],
)
def test_mistakes_are_found_before_anything_is_made(
  tmp_path, monkeypatch, change, words
):
  monkeypatch.chdir(test_main.ROOT)
  with pytest.raises(UserError) as info:
    spct_run_module.run(spct_run.parse(change), str(tmp_path / 'work'))
  assert names(info.value, *words)
  assert not (tmp_path / 'work').exists()


def test_without_a_workdir():
  with pytest.raises(UserError, match='--workdir'):
    spct_run_module.run(spct_run.parse(), '')


# What is there in the middle of each stage.
MIDDLES = (
  'sft/model/10',
  'rft/unhinted.partial',
  'rft/model/2',
  'grpo/model/2',
  'meta_rm/model/2',
  'evaluation/grpo.samples.jsonl.partial',
)


def test_killed_in_the_middle_of_every_stage(finished, environment):
  """The figures are those of the run that nobody disturbed."""
  undisturbed, arguments, _ = finished
  made = undisturbed.parent / 'killed'
  for middle in MIDDLES:
    child = spct_run.start(*arguments, f'--workdir={made}', env=environment)
    until(lambda m=middle: (made / m).exists(), child)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert not (made / middle.split('/')[0] / 'finished.json').exists()
  stdout = spct_run.run(*arguments, f'--workdir={made}', env=environment)
  assert summary(made) == summary(undisturbed)
  for name in ('sft', 'rft', 'grpo'):
    file = f'evaluation/{name}.samples.jsonl'
    assert (made / file).read_bytes() == (undisturbed / file).read_bytes()
  assert lines_with(stdout, printed.SKIPPED)


def until(there, child):
  end = time.monotonic() + HANG
  while not there():
    assert child.poll() is None, child.communicate()[1]
    assert time.monotonic() < end, 'it takes too long'
    time.sleep(0.02)


def test_asked_to_stop_it_goes_on_later(finished, environment):
  """SIGTERM: the stage saves, nothing after it is begun."""
  undisturbed, arguments, _ = finished
  made = undisturbed.parent / 'stopped'
  given = [*arguments, '--config.stages=sft,evaluate', f'--workdir={made}']
  child = spct_run.start(*given, env=environment)
  until(lambda: (made / 'sft/model/10').exists(), child)
  child.send_signal(signal.SIGTERM)
  stdout, _ = child.communicate()
  assert child.returncode == 0
  if lines_with(stdout, printed.STOPPED):  # and not at its end by then
    assert lines_with(stdout, 'sft', printed.INTERRUPTED)
    assert not (made / 'sft/finished.json').exists()
    assert not (made / 'evaluation').exists()
