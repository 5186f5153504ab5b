"""The notebooks of launch/colab/, run whole at the smallest size."""

import nbclient
import nbformat
import pytest

from tests import gemma2_files, test_main
from tests.messages import lines_with
from tests.processes import HANG
from tests.stages import spct_run

FOLDER = test_main.ROOT / 'launch' / 'colab'
PATHS = sorted(FOLDER.glob('*.ipynb'))


def execute(name, **parameters):
  """The text that the notebook printed, and its number of pictures."""
  book = nbformat.read(FOLDER / f'{name}.ipynb', as_version=4)
  place, given = next(
    (i, x) for i, x in enumerate(book.cells) if is_of_parameters(x)
  )
  for key in parameters:
    assert f'\n{key} = ' in f'\n{given.source}', f'{name} has no {key}'
  lines = (f'{key} = {value!r}' for key, value in parameters.items())
  book.cells.insert(place + 1, nbformat.v4.new_code_cell('\n'.join(lines)))
  nbclient.NotebookClient(
    book, timeout=HANG, resources={'metadata': {'path': str(FOLDER)}}
  ).execute()
  outputs = [x for cell in book.cells for x in cell.get('outputs', ())]
  pictures = [x for x in outputs if 'image/png' in x.get('data', ())]
  return ''.join(x.get('text', '') for x in outputs), len(pictures)


def is_of_parameters(cell):
  return 'parameters' in cell.metadata.get('tags', ())


@pytest.fixture(autouse=True)
def of_children(environment, monkeypatch):
  """One CPU device, as on a Colab without a TPU, compiling nothing twice."""
  for key, value in environment.items():
    monkeypatch.setenv(key, value)


@pytest.mark.parametrize('path', PATHS, ids=lambda x: x.stem)
def test_nothing_that_was_run_is_in_git(path):
  book = nbformat.read(path, as_version=4)
  nbformat.validate(book)
  assert sum(map(is_of_parameters, book.cells)) == 1
  for cell in book.cells:
    if cell.cell_type == 'code':
      assert (cell.outputs, cell.execution_count) == ([], None)


def test_judging(tmp_path):
  hugging_face = tmp_path / 'hf'
  gemma2_files.write_with_tokenizer(hugging_face)
  text, pictures = execute(
    'judge',
    INSTALL='',
    DOWNLOAD='',
    HUGGINGFACE=str(hugging_face),
    CHECKPOINT=str(tmp_path / 'checkpoint'),
    K=2,
    SETTINGS=dict(size=16, chunk=8, prompts=4, rows=2),
  )
  assert (tmp_path / 'checkpoint').is_dir()
  assert 'Name a river that flows through Vienna.' in text
  assert lines_with(text, 8, 'scores')
  assert pictures == 2


def test_the_method_and_an_ablation(tmp_path):
  # GRPO and meta RM are left out to save minutes: test_spct.py runs them.
  flags = [
    *spct_run.arguments(tmp_path)[1:],
    '--config.stages=sft,rft,evaluate',
  ]
  full, override = str(tmp_path / 'full'), '--config.rft.num_hinted_samples=0'
  text, pictures = execute('spct', INSTALL='', WORKDIR=full, FLAGS=flags)
  assert f'{full}/evaluation/report.html' in text
  for title in ('after the cold start', 'after RFT'):
    assert f'\n{title} ' in text
  assert text.count('Scores: \\boxed') >= 2 and pictures == 3
  text, pictures = execute(
    'ablation',
    INSTALL='',
    FULL=full,
    ABLATED=str(tmp_path / 'ablated'),
    OVERRIDE=override,
    SHARED=['sft'],
    FLAGS=flags,
  )
  # All of the whole run, and one stage of the other.
  assert pictures == 1 and len(lines_with(text, 'finished')) == 5
  for name in ('whole', override):
    for stage in ('sft', 'rft'):
      assert any(x.split()[:2] == [name, stage] for x in text.splitlines())


def test_a_stage_that_fails_ends_the_notebook(tmp_path):
  with pytest.raises(nbclient.exceptions.CellExecutionError) as caught:
    execute('spct', INSTALL='', WORKDIR='w', FLAGS=['--config.sft.stesp=3'])
  assert caught.value.ename == 'AssertionError'


def test_the_readme_names_them_all():
  readme = (test_main.ROOT / 'README.md').read_text()
  assert PATHS
  for path in PATHS:
    assert f'launch/colab/{path.name}' in readme
