"""Runs the notebooks of launch/colab/ at the smallest size."""

import nbclient
import nbformat
import pytest

from tests import gemma2_files, test_main
from tests.messages import lines_with
from tests.processes import HANG_TIMEOUT_S
from tests.stages import spct_run

FOLDER = test_main.ROOT / 'launch' / 'colab'
PATHS = sorted(FOLDER.glob('*.ipynb'))


def execute(name, **parameters):
  """Runs a notebook; returns its printed text and number of images."""
  book = nbformat.read(FOLDER / f'{name}.ipynb', as_version=4)
  index, parameter_cell = next(
    (i, x) for i, x in enumerate(book.cells) if has_parameters(x)
  )
  for key in parameters:
    assert f'\n{key} = ' in f'\n{parameter_cell.source}', f'{name} has no {key}'
  lines = (f'{key} = {value!r}' for key, value in parameters.items())
  book.cells.insert(index + 1, nbformat.v4.new_code_cell('\n'.join(lines)))
  nbclient.NotebookClient(
    book, timeout=HANG_TIMEOUT_S, resources={'metadata': {'path': str(FOLDER)}}
  ).execute()
  outputs = [x for cell in book.cells for x in cell.get('outputs', ())]
  images = [x for x in outputs if 'image/png' in x.get('data', ())]
  return ''.join(x.get('text', '') for x in outputs), len(images)


def has_parameters(cell):
  return 'parameters' in cell.metadata.get('tags', ())


@pytest.fixture(autouse=True)
def child_environment(environment, monkeypatch):
  """Gives child processes one CPU device and the compilation cache."""
  for key, value in environment.items():
    monkeypatch.setenv(key, value)


@pytest.mark.parametrize('path', PATHS, ids=lambda x: x.stem)
def test_notebook_has_no_stored_outputs(path):
  book = nbformat.read(path, as_version=4)
  nbformat.validate(book)
  assert sum(map(has_parameters, book.cells)) == 1
  for cell in book.cells:
    if cell.cell_type == 'code':
      assert (cell.outputs, cell.execution_count) == ([], None)


def test_judge_notebook(tmp_path):
  hugging_face = tmp_path / 'hf'
  gemma2_files.write_with_tokenizer(hugging_face)
  text, num_images = execute(
    'judge',
    INSTALL='',
    DOWNLOAD='',
    HUGGINGFACE=str(hugging_face),
    CHECKPOINT=str(tmp_path / 'checkpoint'),
    K=2,
    SETTINGS=dict(
      max_new_tokens=16,
      decode_steps_per_call=8,
      prompts=4,
      generations_per_prompt=2,
    ),
  )
  assert (tmp_path / 'checkpoint').is_dir()
  assert 'Name a river that flows through Vienna.' in text
  assert lines_with(text, 8, 'scores')
  assert num_images == 2


def test_spct_and_ablation_notebooks(tmp_path):
  # GRPO and the meta RM are excluded to save minutes; test_spct.py runs them.
  flags = [
    *spct_run.arguments(tmp_path)[1:],
    '--config.stages=sft,rft,evaluate',
  ]
  full, override = str(tmp_path / 'full'), '--config.rft.num_hinted_samples=0'
  text, num_images = execute('spct', INSTALL='', WORKDIR=full, FLAGS=flags)
  assert f'{full}/evaluation/report.html' in text
  for title in ('after the cold start', 'after RFT'):
    assert f'\n{title} ' in text
  assert text.count('Scores: \\boxed') >= 2 and num_images == 3
  text, num_images = execute(
    'ablation',
    INSTALL='',
    FULL=full,
    ABLATED=str(tmp_path / 'ablated'),
    OVERRIDE=override,
    SHARED=['sft'],
    FLAGS=flags,
  )
  # The full run skips every stage; the ablation skips the copied one.
  assert num_images == 1 and len(lines_with(text, 'finished')) == 5
  for name in ('full', override):
    for stage in ('sft', 'rft'):
      assert any(x.split()[:2] == [name, stage] for x in text.splitlines())


def test_failed_stage_ends_notebook(tmp_path):
  with pytest.raises(nbclient.exceptions.CellExecutionError) as caught:
    execute('spct', INSTALL='', WORKDIR='w', FLAGS=['--config.sft.stesp=3'])
  assert caught.value.ename == 'AssertionError'


def test_readme_links_all_notebooks():
  readme = (test_main.ROOT / 'README.md').read_text()
  assert PATHS
  for path in PATHS:
    assert f'launch/colab/{path.name}' in readme
