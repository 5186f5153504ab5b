"""Mistakes a user makes: one line that names cause and cure, nothing written.

`tests/test_main.py` has those that are seen in the command alone.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests import gemma2_files, test_main
from tests.messages import names
from tests.processes import HANG

ROW = {'query': 'q', 'responses': ['a', 'b'], 'best': 0}
SLOT = """{% for turn in query %}{{ turn.text }}{% endfor %}
{% for response in responses %}
{{ response }}
{% endfor %}
{{ rubric }}
"""


@pytest.fixture(scope='module')
def made(tmp_path_factory, environment):
  """What the table names in braces, in one folder."""
  root = tmp_path_factory.mktemp('made')
  gemma2_files.write_with_tokenizer(root / 'hf', files=2)
  gemma2_files.write_with_tokenizer(root / 'hf_scalar', scalar=True)
  gemma2_files.write(root / 'hf_few', gemma2_files.CONFIGS['odd_heads'], 3)
  shutil.copy(root / 'hf' / 'tokenizer.model', root / 'hf_few')
  for name, source in (
    ('grm', 'hf'),
    ('scalar', 'hf_scalar'),
    ('few', 'hf_few'),
  ):
    test_main.run(
      '--config=configs/convert.py',
      f'--config.source={root / source}',
      f'--config.target={root / name}',
      env=environment,
    )
  spoil(root)
  write(root / 'rows.jsonl', json.dumps(ROW))
  text = json.dumps(ROW | {'generation': r'Scores: \boxed{8, 2}'})
  write(root / 'texts.jsonl', *[text] * 8)
  write(root / 'empty.jsonl', '')
  write(root / 'bad.jsonl', '{"query": 3}', 'no JSON')
  write(root / 'slot.txt', SLOT)
  return root


def spoil(root):
  """Directories with a damage of one kind each."""
  last = 'model-00002-of-00002.safetensors'
  for name in ('hf_cut', 'hf_gone', 'hf_other'):
    shutil.copytree(root / 'hf', root / name)
  content = (root / 'hf_cut' / last).read_bytes()
  (root / 'hf_cut' / last).write_bytes(content[: len(content) // 2])
  (root / 'hf_gone' / last).unlink()
  path = root / 'hf_other' / 'config.json'
  config = json.loads(path.read_text())
  path.write_text(json.dumps(config | {'model_type': 'qwen2'}))
  # The tokenizer of a larger model, and a checkpoint that lost a file.
  shutil.copytree(root / 'grm', root / 'grm_cut')
  for path in (root / 'grm_cut').rglob('d/*'):
    path.unlink()


def write(path, *lines):
  path.write_text(''.join(f'{line}\n' for line in lines))


SCORE = """configs/score.py checkpoint={grm} input={rows.jsonl} k=2
compute.dtype=float32 compute.attention=xla sampling.size=16
sampling.chunk=8 sampling.prompts=4 sampling.rows=2 sampling.buckets=(2048,)
"""
CONVERT = 'configs/convert.py source={hf} target={work}/new'
TRAIN = 'configs/sft.py:tiny checkpoint=random data.texts={rows.jsonl}'

# The command, what is changed in it, the words of the line.
TABLE = {
  'rows that are not there': (
    SCORE,
    'input={none.jsonl}',
    ['none.jsonl', 'No such file'],
  ),
  'a folder for a file': (SCORE, 'input={hf}', ['Is a directory']),
  'no rows': (SCORE, 'input={empty.jsonl}', ['empty.jsonl']),
  'a checkpoint that is not there': (
    SCORE,
    'checkpoint={none}',
    ['none'],
  ),
  'weights that are not converted': (
    SCORE,
    'checkpoint={hf}',
    ['hf', 'configs/convert.py'],
  ),
  'a step that is not there': (
    SCORE,
    'step=7',
    ['grm', 7, 0],
  ),
  'a reward model as the judge': (
    SCORE,
    'checkpoint={scalar}',
    ['config.checkpoint', 'config.judge=scalar'],
  ),
  'a judge as the meta RM': (
    SCORE,
    'meta_checkpoint={grm}',
    ['config.meta_checkpoint', 'grm', 'configs/reward_model.py'],
  ),
  'no meta RM for k_meta': (
    SCORE,
    'k_meta=1',
    ['config.k_meta', 1, 'config.meta_checkpoint'],
  ),
  'no meta RM for the vote': (
    SCORE,
    'vote=best',
    ['config.vote', 'best', 'config.meta_checkpoint'],
  ),
  'a judge without a head as PairRM': (
    SCORE,
    'judge=pair',
    ['config.judge', 'pair', 'grm'],
  ),
  'a mesh of more devices': (
    SCORE,
    'mesh.data=3 mesh.fsdp=1',
    ['config.mesh', 'data=3', 3, 1],
  ),
  'a typo': (
    SCORE,
    'sampling.szie=16',
    ['config.sampling.szie', 'size'],
  ),
  'a negative number of samples': (SCORE, 'k=-1', ['config.k', -1]),
  'a negative temperature': (
    SCORE,
    'temperature=-0.5',
    ['config.temperature', -0.5],
  ),
  'a template that is not there': (
    SCORE,
    'prompt.template=pointwize',
    ['pointwize', 'pointwise'],
  ),
  'a slot that nothing fills': (
    SCORE,
    'prompt.template={slot.txt}',
    ['slot.txt', 5, 'rubric', 'num_responses'],
  ),
  'a checkpoint that lost a file': (
    SCORE,
    'checkpoint={grm_cut}',
    ['grm_cut'],
  ),
  'half of a shard': (
    CONVERT,
    'source={hf_cut}',
    ['hf_cut/model-00002-of-00002.safetensors'],
  ),
  'a shard that is not there': (
    CONVERT,
    'source={hf_gone}',
    ['hf_gone', 'model-00002-of-00002.safetensors'],
  ),
  'another kind of model': (
    CONVERT,
    'source={hf_other}',
    ['model_type', 'qwen2'],
  ),
  'the tokenizer of a larger model': (
    SCORE,
    'checkpoint={few}',
    [1024, 300],
  ),
  'a target that is there': (
    CONVERT,
    'target={grm}',
    ['grm'],
  ),
  'rows without generations as texts': (
    TRAIN,
    'data.texts=judged:{rows.jsonl}',
    ['rows.jsonl', 'generation'],
  ),
  'a kind of texts that is none': (
    TRAIN,
    '',
    ['config.data.texts', 'judged:PATH'],
  ),
}


def command(made, work, line, changes=''):
  """A command of the table as arguments, with its paths."""
  for path in sorted(made.iterdir(), reverse=True):
    line, changes = (
      x.replace(f'{{{path.name}}}', str(path)) for x in (line, changes)
    )
  for name in ('none', 'none.jsonl'):
    changes = changes.replace(f'{{{name}}}', str(made / name))
  config, *given = line.replace('{work}', str(work)).split()
  given += changes.split()
  return [f'--config={config}', *(f'--config.{x}' for x in given)]


@pytest.mark.parametrize('name', TABLE)
def test_a_mistake_is_one_line(made, environment, tmp_path, name):
  line, changes, words = TABLE[name]
  work = tmp_path / 'work'
  arguments = command(made, work, line, changes)
  found = test_main.error_of(*arguments, f'--workdir={work}', env=environment)
  assert names(found, *words), found
  assert not files_in(work)


def files_in(folder):
  return [x for x in folder.rglob('*') if x.is_file()]


def test_rows_of_which_none_is_good(made, environment, tmp_path):
  arguments = command(made, tmp_path, SCORE, 'input={bad.jsonl}')
  found = test_main.error_of(
    *arguments, f'--workdir={tmp_path}', env=environment
  )
  assert names(found, 2, 'scores.errors.jsonl')
  # What was wrong with each is kept, and nothing else.
  (left,) = files_in(tmp_path)
  assert len(left.read_text().splitlines()) == 2


@pytest.mark.parametrize('line', [SCORE, TRAIN])
def test_a_folder_that_cannot_be_written(made, environment, line):
  # Not even by root, as whom containers run.
  changes = 'data.texts=judged:{texts.jsonl}' if line == TRAIN else ''
  for workdir in ('/proc/nowhere', made / 'rows.jsonl' / 'inside'):
    arguments = command(made, made, line, changes)
    found = test_main.error_of(
      *arguments, f'--workdir={workdir}', env=environment
    )
    assert str(workdir) in found


def test_a_disk_that_is_full(made, environment, tmp_path):
  """A limit on the size of files stands in for it: writes fail alike."""
  target = tmp_path / 'new'
  arguments = command(made, tmp_path, CONVERT)
  out = subprocess.run(
    ['bash', '-c', 'ulimit -f 8; exec "$@"', '']
    + [sys.executable, '-m', 'grm_jax.main', *arguments],
    cwd=test_main.ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=HANG,
  )
  assert out.returncode != 0
  assert [x for x in out.stderr.splitlines() if 'too large' in x]
  assert not list(target.glob('[0-9]*'))
  # The same command with room does what it should.
  test_main.run(*arguments, env=environment)
  assert os.path.isdir(target / '0')
