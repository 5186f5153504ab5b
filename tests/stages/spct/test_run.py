"""The whole method in one command; it skips, refuses and resumes stages."""

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
from tests.processes import HANG_TIMEOUT_S
from tests.stages import spct_run, stage_output

# ml_collections.config_flags loads config files with load_module.
pytestmark = pytest.mark.filterwarnings('ignore:the load_module')

FOLDERS = ('data', 'sft', 'rft', 'grpo', 'samples', 'meta_rm', 'evaluation')


@pytest.fixture(scope='module')
def finished(tmp_path_factory, environment):
  """Returns the workdir of a whole run, its other arguments and its output."""
  folder = tmp_path_factory.mktemp('spct')
  arguments = spct_run.arguments(folder)
  workdir = folder / 'work'
  stdout = spct_run.run(*arguments, f'--workdir={workdir}', env=environment)
  return workdir, arguments, stdout


def summary(workdir):
  return json.loads((workdir / 'evaluation' / 'summary.json').read_text())


def file_states(workdir):
  return {
    path: (path.stat().st_mtime_ns, path.stat().st_size)
    for path in workdir.rglob('*')
  }


def test_every_stage_runs_once(finished):
  workdir, _, stdout = finished
  heads = stage_output.heads(stdout)
  printed = [
    (*stage_output.HEAD.match(x).groups(), x.split('/')[-1]) for x in heads
  ]
  assert printed == [(str(i), '7', x) for i, x in enumerate(FOLDERS, 1)]
  for name in FOLDERS:
    content = (workdir / name / 'finished.json').read_text()
    assert content == (workdir / name / 'started.json').read_text()
  for name, steps in (('sft', 20), ('rft', 4), ('grpo', 4), ('meta_rm', 4)):
    assert (workdir / name / 'model' / str(steps)).is_dir()
  last = stdout.rstrip().splitlines()[-1]
  assert names(last, workdir / 'evaluation/report.html')


def test_the_table_matches_the_judgements(finished):
  """The test counts correct judgements in the stored samples."""
  workdir, _, stdout = finished
  stored = summary(workdir)
  assert list(stored['judges']) == ['before', 'sft', 'rft', 'grpo']
  queries = None
  for name, result in stored['judges'].items():
    path = workdir / 'evaluation' / f'{name}.samples.jsonl'
    rows = [json.loads(x) for x in path.read_text().splitlines()]
    assert {len(x['samples']) for x in rows} == {4 if name == 'grpo' else 2}
    assert all(y['meta'] is not None for x in rows for y in x['samples'])
    ids = [x['example']['id'] for x in rows]
    assert queries is None or ids == queries
    queries = ids
    right = [
      # The scores are 4 and 8; a judgement that does not parse is not right.
      bool(x['greedy']['scores'])
      and x['greedy']['scores'][x['example']['best']] == 8
      for x in rows
    ]
    assert result['greedy']['value'] == pytest.approx(sum(right) / len(right))
    line = next(x for x in stdout.splitlines() if x.startswith(result['title']))
    for point in (result['greedy'], result['voting']['2'], result['meta']['2']):
      assert names(line, f'{100 * point["value"]:.1f}')
  assert '4' in stored['judges']['grpo']['voting']
  # No stage has trained on them.
  for part in ('rft', 'grpo', 'fresh', 'train'):
    assert not {f'"{x}"' for x in queries} & set(
      re.findall(r'"e\d+"', (workdir / 'data' / f'{part}.jsonl').read_text())
    )


def test_the_report_is_one_page(finished):
  workdir, _, _ = finished
  page = (workdir / 'evaluation' / 'report.html').read_text()
  titles = [x['title'] for x in summary(workdir)['judges'].values()]
  assert len(titles) == 4
  for words in (*titles, 'MetaRM@2'):
    assert words in page
  for name in ('stages', 'training'):
    picture = (workdir / 'evaluation' / f'{name}.png').read_bytes()
    assert base64.b64encode(picture).decode() in page
  path = workdir / 'evaluation' / 'grpo.samples.jsonl'
  rows = [json.loads(x) for x in path.read_text().splitlines()]
  assert any(html.escape(y['text']) in page for x in rows for y in x['samples'])
  assert '://' not in page


def test_finished_stages_are_skipped(finished, environment):
  workdir, arguments, before = finished
  files = file_states(workdir)
  stdout = spct_run.run(*arguments, f'--workdir={workdir}', env=environment)
  heads = stage_output.heads(stdout)
  assert len(heads) == 7 and all(names(x, stage_output.SKIPPED) for x in heads)
  assert file_states(workdir) == files
  # It prints the table again.
  table = stdout.split(heads[-1])[1]
  assert names(table, workdir / 'evaluation/report.html')
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
def test_other_settings_are_an_error(
  finished, monkeypatch, change, folder, words
):
  workdir, arguments, _ = finished
  monkeypatch.chdir(test_main.ROOT)
  files = file_states(workdir)
  with pytest.raises(UserError) as info:
    spct_run_module.run(spct_run.parse(*arguments, change), str(workdir))
  assert names(info.value, workdir / folder, *words, '--workdir')
  assert file_states(workdir) == files


def test_settings_without_effect_can_change(finished, environment):
  workdir, arguments, _ = finished
  changes = [
    '--config.sft.save_every=7',
    '--config.grpo.max_to_keep=9',
    '--config.mesh.fsdp=1',
    '--config.rft.train.compute.remat=dots',
  ]
  out = spct_run.run(
    *arguments, *changes, f'--workdir={workdir}', env=environment
  )
  assert names(out, workdir / 'evaluation/report.html')


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
def test_mistakes_are_found_before_anything_is_written(
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


# Files that exist in the middle of each stage.
MIDDLES = (
  'sft/model/10',
  'rft/unhinted.partial',
  'rft/model/2',
  'grpo/model/2',
  'meta_rm/model/2',
  'evaluation/grpo.samples.jsonl.partial',
)


def test_resumes_after_a_kill_in_every_stage(finished, environment):
  """The results equal those of the run without a kill."""
  clean_run, arguments, _ = finished
  workdir = clean_run.parent / 'killed'
  for middle in MIDDLES:
    child = spct_run.start(*arguments, f'--workdir={workdir}', env=environment)
    wait_until(lambda m=middle: (workdir / m).exists(), child)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert not (workdir / middle.split('/')[0] / 'finished.json').exists()
  stdout = spct_run.run(*arguments, f'--workdir={workdir}', env=environment)
  assert summary(workdir) == summary(clean_run)
  for name in ('sft', 'rft', 'grpo'):
    file = f'evaluation/{name}.samples.jsonl'
    assert (workdir / file).read_bytes() == (clean_run / file).read_bytes()
  assert lines_with(stdout, stage_output.SKIPPED)


def wait_until(condition, child):
  end = time.monotonic() + HANG_TIMEOUT_S
  while not condition():
    assert child.poll() is None, child.communicate()[1]
    assert time.monotonic() < end, 'timed out'
    time.sleep(0.02)


def test_sigterm_stops_the_stage_and_starts_no_later_one(finished, environment):
  clean_run, arguments, _ = finished
  workdir = clean_run.parent / 'stopped'
  arguments = [
    *arguments,
    '--config.stages=sft,evaluate',
    f'--workdir={workdir}',
  ]
  child = spct_run.start(*arguments, env=environment)
  wait_until(lambda: (workdir / 'sft/model/10').exists(), child)
  child.send_signal(signal.SIGTERM)
  stdout, _ = child.communicate()
  assert child.returncode == 0
  if lines_with(stdout, stage_output.STOPPED):  # it was not at its end yet
    assert lines_with(stdout, 'sft', stage_output.INTERRUPTED)
    assert not (workdir / 'sft/finished.json').exists()
    assert not (workdir / 'evaluation').exists()
