"""Mistakes of the user end with one line and leave no output.

`tests/test_main.py` has those that need no files.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests import gemma2_files, test_main
from tests.messages import names
from tests.processes import HANG_TIMEOUT_S

ROW = {'query': 'q', 'responses': ['a', 'b'], 'best': 0}
TEMPLATE = """{% for turn in query %}{{ turn.text }}{% endfor %}
{% for response in responses %}
{{ response }}
{% endfor %}
{{ rubric }}
"""


@pytest.fixture(scope='module')
def fixtures(tmp_path_factory, environment):
  """A folder with the files that MISTAKES name in braces."""
  root = tmp_path_factory.mktemp('fixtures')
  gemma2_files.write_with_tokenizer(root / 'hf', files=2)
  gemma2_files.write_with_tokenizer(root / 'hf_scalar', scalar=True)
  gemma2_files.write(
    root / 'hf_small_vocab', gemma2_files.CONFIGS['odd_heads'], 3
  )
  for name, source in (
    ('grm', 'hf'),
    ('scalar', 'hf_scalar'),
    ('small_vocab', 'hf_small_vocab'),
  ):
    test_main.run(
      '--config=configs/convert.py',
      f'--config.source={root / source}',
      f'--config.target={root / name}',
      env=environment,
    )
  # Conversion would refuse it.
  shutil.copy(root / 'hf' / 'tokenizer.model', root / 'small_vocab')
  make_damaged_copies(root)
  write(root / 'rows.jsonl', json.dumps(ROW))
  text = json.dumps(ROW | {'generation': r'Scores: \boxed{8, 2}'})
  write(root / 'texts.jsonl', *[text] * 8)
  write(root / 'empty.jsonl', '')
  write(root / 'bad.jsonl', '{"query": 3}', 'not JSON')
  write(root / 'template.txt', TEMPLATE)
  return root


def make_damaged_copies(root):
  """Writes copies of the model directories, each damaged in one way."""
  last = 'model-00002-of-00002.safetensors'
  for name in ('hf_truncated', 'hf_incomplete', 'hf_other_model'):
    shutil.copytree(root / 'hf', root / name)
  content = (root / 'hf_truncated' / last).read_bytes()
  (root / 'hf_truncated' / last).write_bytes(content[: len(content) // 2])
  (root / 'hf_incomplete' / last).unlink()
  path = root / 'hf_other_model' / 'config.json'
  config = json.loads(path.read_text())
  path.write_text(json.dumps(config | {'model_type': 'qwen2'}))
  shutil.copytree(root / 'grm', root / 'grm_incomplete')
  for path in (root / 'grm_incomplete').rglob('d/*'):
    path.unlink()


def write(path, *lines):
  path.write_text(''.join(f'{line}\n' for line in lines))


SCORE = """configs/score.py checkpoint={grm} input={rows.jsonl} k=2
compute.dtype=float32 compute.attention=xla sampling.max_new_tokens=16
sampling.decode_steps_per_call=8 sampling.concurrent_prompts=4
sampling.generations_per_prompt=2 sampling.prompt_buckets=(2048,)
"""
CONVERT = 'configs/convert.py source={hf} target={work}/new'
TRAIN = 'configs/sft.py:tiny checkpoint=random data.texts={rows.jsonl}'

# Name -> (command, changes to its config, words in the error line).
MISTAKES = {
  'missing input file': (
    SCORE,
    'input={missing.jsonl}',
    ['missing.jsonl', 'No such file'],
  ),
  'input is a folder': (SCORE, 'input={hf}', ['Is a directory']),
  'empty input file': (SCORE, 'input={empty.jsonl}', ['empty.jsonl']),
  'missing checkpoint': (
    SCORE,
    'checkpoint={missing}',
    ['missing'],
  ),
  'weights are not converted': (
    SCORE,
    'checkpoint={hf}',
    ['hf', 'configs/convert.py'],
  ),
  'missing checkpoint step': (
    SCORE,
    'checkpoint_step=7',
    ['grm', 7, 0],
  ),
  'checkpoint of a reward model': (
    SCORE,
    'checkpoint={scalar}',
    ['config.checkpoint', 'config.judge', 'scalar'],
  ),
  'meta_checkpoint of a judge': (
    SCORE,
    'meta_checkpoint={grm}',
    ['config.meta_checkpoint', 'grm', 'configs/reward_model.py'],
  ),
  'k_meta without a meta RM': (
    SCORE,
    'k_meta=1',
    ['config.k_meta', 1, 'config.meta_checkpoint'],
  ),
  'vote without a meta RM': (
    SCORE,
    'vote=best',
    ['config.vote', 'best', 'config.meta_checkpoint'],
  ),
  'PairRM without a scalar head': (
    SCORE,
    'judge=pair',
    ['config.judge', 'pair', 'grm'],
  ),
  'mesh is larger than the devices': (
    SCORE,
    'mesh.data=3 mesh.fsdp=1',
    ['config.mesh.data=3', 3, 1],
  ),
  'misspelled key': (
    SCORE,
    'sampling.max_new_tokns=16',
    ['config.sampling.max_new_tokns', 'max_new_tokens'],
  ),
  'negative k': (SCORE, 'k=-1', ['config.k', -1]),
  'negative temperature': (
    SCORE,
    'temperature=-0.5',
    ['config.temperature', -0.5],
  ),
  'missing template': (
    SCORE,
    'prompt.template=pointwize',
    ['pointwize', 'pointwise'],
  ),
  'template with an unknown variable': (
    SCORE,
    'prompt.template={template.txt}',
    ['template.txt', 5, 'rubric', 'num_responses'],
  ),
  'incomplete checkpoint': (
    SCORE,
    'checkpoint={grm_incomplete}',
    ['grm_incomplete'],
  ),
  'truncated safetensors file': (
    CONVERT,
    'source={hf_truncated}',
    ['hf_truncated/model-00002-of-00002.safetensors'],
  ),
  'missing safetensors file': (
    CONVERT,
    'source={hf_incomplete}',
    ['hf_incomplete', 'model-00002-of-00002.safetensors'],
  ),
  'unsupported model type': (
    CONVERT,
    'source={hf_other_model}',
    ['model_type', 'qwen2'],
  ),
  'tokenizer larger than the vocabulary': (
    SCORE,
    'checkpoint={small_vocab}',
    [1024, 300],
  ),
  'existing target': (
    CONVERT,
    'target={grm}',
    ['grm'],
  ),
  'judged rows without generations': (
    TRAIN,
    'data.texts=judged:{rows.jsonl}',
    ['rows.jsonl', 'generation'],
  ),
  'unknown kind of texts': (
    TRAIN,
    '',
    ['config.data.texts', 'judged:PATH'],
  ),
}


def arguments_of(command, fixtures, work, changes=''):
  """Returns the arguments of a command with the paths of the fixtures."""
  text = f'{command} {changes}'.replace('{work}', str(work))
  names_in_braces = [x.name for x in fixtures.iterdir()]
  for name in (*names_in_braces, 'missing', 'missing.jsonl'):
    text = text.replace(f'{{{name}}}', str(fixtures / name))
  config, *leaves = text.split()
  return [f'--config={config}', *(f'--config.{x}' for x in leaves)]


@pytest.mark.parametrize('name', MISTAKES)
def test_mistake_is_one_line(fixtures, environment, tmp_path, name):
  command, changes, words = MISTAKES[name]
  work = tmp_path / 'work'
  arguments = arguments_of(command, fixtures, work, changes)
  line = test_main.error_of(*arguments, f'--workdir={work}', env=environment)
  assert names(line, *words), line
  assert not files_in(work)


def files_in(folder):
  return [x for x in folder.rglob('*') if x.is_file()]


def test_input_without_a_valid_row(fixtures, environment, tmp_path):
  arguments = arguments_of(SCORE, fixtures, tmp_path, 'input={bad.jsonl}')
  line = test_main.error_of(
    *arguments, f'--workdir={tmp_path}', env=environment
  )
  assert names(line, 2, 'scores.errors.jsonl')
  # Only the file with the error of every row remains.
  (errors,) = files_in(tmp_path)
  assert len(errors.read_text().splitlines()) == 2


@pytest.mark.parametrize('command', [SCORE, TRAIN])
def test_workdir_that_cannot_be_written(fixtures, environment, command):
  changes = 'data.texts=judged:{texts.jsonl}' if command == TRAIN else ''
  arguments = arguments_of(command, fixtures, fixtures, changes)
  # Even root, the user of many containers, cannot write these.
  for workdir in ('/proc/nowhere', fixtures / 'rows.jsonl' / 'inside'):
    line = test_main.error_of(
      *arguments, f'--workdir={workdir}', env=environment
    )
    assert str(workdir) in line


def test_full_disk(fixtures, environment, tmp_path):
  """A limit on the file size simulates the full disk."""
  target = tmp_path / 'new'
  arguments = arguments_of(CONVERT, fixtures, tmp_path)
  process = subprocess.run(
    ['bash', '-c', 'ulimit -f 8; exec "$@"', '']
    + [sys.executable, '-m', 'grm_jax.main', *arguments],
    cwd=test_main.ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=HANG_TIMEOUT_S,
  )
  assert process.returncode != 0
  assert [x for x in process.stderr.splitlines() if 'too large' in x]
  assert not list(target.glob('[0-9]*'))
  # The same command succeeds once there is space.
  test_main.run(*arguments, env=environment)
  assert os.path.isdir(target / '0')
