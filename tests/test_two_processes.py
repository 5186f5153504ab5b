"""Two processes: each reads its part of a checkpoint; both form one run."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests import gemma2_files
from tests.messages import names
from tests.processes import ROOT, collect_output, run_processes, start_processes

# A vocabulary of 512 needs no padding; every matrix divides by the mesh
# fsdp=4 x tensor=2.
FIELDS = gemma2_files.CONFIGS['odd_heads'] | {
  'num_attention_heads': 4,
  'hidden_size': 64,
  'vocab_size': 512,
}


def test_each_process_reads_its_part(tmp_path):
  tensors = gemma2_files.write(tmp_path, FIELDS, 0, files=2)
  outputs = run_processes(['-m', 'tests.import_two_processes', tmp_path])
  total = sum(x.nbytes for x in tensors.values())
  norms = sum(x.nbytes for x in tensors.values() if x.ndim == 1)
  for output in outputs:
    report = json.loads(output.strip().splitlines()[-1])
    assert (report['processes'], report['devices']) == (2, 8)
    assert report['wrong'] == 0
    # Half of each matrix, and the norms, which are on every device.
    assert report['read'] == (total - norms) // 2 + norms


def test_import_and_export_are_bit_exact(tmp_path):
  tensors = gemma2_files.write(tmp_path / 'in', FIELDS, 1, dtype='bfloat16')
  main = ['-m', 'grm_jax.main', '--config=configs/convert.py']
  mesh = ['--config.mesh.fsdp=4', '--config.mesh.tensor=2']
  run_processes(
    [
      *main,
      *mesh,
      f'--config.source={tmp_path}/in',
      f'--config.target={tmp_path}/checkpoint',
      '--config.verify=true',
    ]
  )
  run_processes(
    [
      *main,
      '--config.direction=huggingface',
      f'--config.source={tmp_path}/checkpoint',
      f'--config.target={tmp_path}/out',
    ]
  )
  exported = load_file(tmp_path / 'out' / 'model.safetensors')
  assert set(exported) == set(tensors)
  for key, tensor in tensors.items():
    assert exported[key].tobytes() == tensor.tobytes(), key


@pytest.mark.parametrize(
  'judge, apart', [('grm', False), ('scalar', False), ('grm', True)]
)
def test_two_processes_score_as_one(tmp_path, judge, apart):
  main = ['-m', 'grm_jax.main', '--config=configs/score.py:tiny']
  main += ['--config.sampling.concurrent_prompts=8', f'--config.judge={judge}']
  main += ['--config.sampling.max_new_tokens=80', '--config.k=3']
  run_processes(
    [*main, f'--workdir={tmp_path}/two', f'--config.apart={apart}'], devices=1
  )
  files = sorted(x.name for x in (tmp_path / 'two').iterdir())
  assert files == ['config.json', 'scores.jsonl']
  run_processes([*main, f'--workdir={tmp_path}/one'], count=1, devices=1)
  two, one = (
    [json.loads(x) for x in (tmp_path / n / 'scores.jsonl').open()]
    for n in ('two', 'one')
  )
  assert len(two) == len(one) == 3
  for a, b in zip(two, one, strict=True):
    assert a['id'] == b['id']
    for x, y in zip(a['samples'], b['samples'], strict=True):
      assert x['text'] == y['text']
    assert a['best'] == b['best']
    if judge == 'scalar':
      np.testing.assert_allclose(a['votes'], b['votes'], atol=1e-5)


def errors_of(*arguments, **options):
  """Returns the error lines of two processes that must end with code 2."""
  main = ['-m', 'grm_jax.main', *arguments]
  with start_processes(main, devices=1, **options) as children:
    outputs = collect_output(children)
  lines = []
  for child, (_, stderr) in zip(children, outputs, strict=True):
    assert child.returncode == 2, stderr
    lines += [x for x in stderr.splitlines() if x.startswith('error: ')]
  assert len(lines) == 2
  return lines


@pytest.mark.parametrize(
  'difference, words',
  [
    ('--config.k=3', ['config.k', 4, 3]),
    ('--config.apart=True', ['config.apart', False, True]),
    ('--workdir=elsewhere', ['--workdir', 'elsewhere']),
  ],
)
def test_processes_with_other_settings_end(tmp_path, difference, words):
  for line in errors_of(
    '--config=configs/score.py:tiny',
    f'--workdir={tmp_path}/run',
    differences=[difference],
  ):
    assert names(line, *words, 'process 1')
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('second', ['{"query": "other"', '{"query": "q"', None])
def test_processes_with_other_rows_end(tmp_path, second):
  folders = [tmp_path / 'a', tmp_path / 'b']
  for folder, text in zip(folders, ('{"query": "q"', second), strict=True):
    folder.mkdir()
    if text is not None:
      row = text + ', "responses": ["yes", "no"]}\n'
      (folder / 'rows.jsonl').write_text(row * (2 if folder.name == 'b' else 1))
  for line in errors_of(
    f'--config={ROOT}/configs/score.py:tiny',
    '--config.input=rows.jsonl',
    f'--workdir={tmp_path}/run',
    folders=folders,
  ):
    assert names(line, 'rows.jsonl', 'process 1')
  assert not (tmp_path / 'run').exists()


def test_processes_with_other_training_texts_end(tmp_path):
  """The same rows in another order are other texts, too."""
  folders = [tmp_path / 'a', tmp_path / 'b']
  rows = [json.dumps({'query': f'q {i}', 'generation': 'g'}) for i in range(4)]
  for folder, texts in zip(folders, (rows, rows[::-1]), strict=True):
    folder.mkdir()
    (folder / 'rows.jsonl').write_text('\n'.join(texts) + '\n')
  for line in errors_of(
    f'--config={ROOT}/configs/sft.py:base',
    '--config.data.texts=texts:rows.jsonl',
    '--config.data.general_fraction=0.0',
    f'--workdir={tmp_path}/run',
    folders=folders,
  ):
    assert names(line, 'config.data.texts', 'process 1', 'process 0')
  assert not (tmp_path / 'run').exists()
