"""Runs the notebooks of launch/ at the smallest size."""

import nbclient
import nbformat
import pytest

from benchmarks import aot_table
from grm_jax.checkpoint import orbax_checkpoint
from tests import gemma2_files, test_main
from tests.messages import lines_with
from tests.processes import HANG_TIMEOUT_S
from tests.stages import spct_run

PATHS = {
  x.stem: x for x in sorted((test_main.ROOT / 'launch').glob('*/*.ipynb'))
}


def execute(name, **parameters):
  """Runs a notebook; returns its printed text and number of images."""
  book = nbformat.read(PATHS[name], as_version=4)
  index, parameter_cell = next(
    (i, x) for i, x in enumerate(book.cells) if has_parameters(x)
  )
  for key in parameters:
    assert f'\n{key} = ' in f'\n{parameter_cell.source}', f'{name} has no {key}'
  lines = (f'{key} = {value!r}' for key, value in parameters.items())
  book.cells.insert(index + 1, nbformat.v4.new_code_cell('\n'.join(lines)))
  nbclient.NotebookClient(
    book,
    timeout=HANG_TIMEOUT_S,
    resources={'metadata': {'path': str(PATHS[name].parent)}},
  ).execute()
  outputs = [x for cell in book.cells for x in cell.get('outputs', ())]
  images = [x for x in outputs if 'image/png' in x.get('data', ())]
  return ''.join(x.get('text', '') for x in outputs), len(images)


def has_parameters(cell):
  return 'parameters' in cell.metadata.get('tags', ())


@pytest.fixture(autouse=True, scope='module')
def child_environment(environment):
  """Gives child processes one CPU device and the compilation cache."""
  with pytest.MonkeyPatch.context() as patch:
    for key, value in environment.items():
      patch.setenv(key, value)
    yield


@pytest.mark.parametrize('path', PATHS.values(), ids=PATHS)
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


@pytest.fixture(scope='module')
def full(tmp_path_factory):
  """Runs the notebook of the pipeline; returns its folder and outputs."""
  folder = tmp_path_factory.mktemp('notebook')
  # GRPO and the meta RM are excluded to save minutes; test_run.py runs them.
  flags = [*spct_run.arguments(folder)[1:], '--config.stages=sft,rft,evaluate']
  outputs = execute(
    'spct', INSTALL='', WORKDIR=str(folder / 'full'), FLAGS=flags
  )
  return folder, flags, *outputs


def test_spct_notebook(full):
  folder, _, text, num_images = full
  assert f'{folder}/full/evaluation/report.html' in text
  for title in ('after the cold start', 'after RFT'):
    assert f'\n{title} ' in text
  assert text.count('Scores: \\boxed') >= 2 and num_images == 3


def test_ablation_notebook(full, tmp_path):
  folder, flags, *_ = full
  override = '--config.rft.num_hinted_samples=0'
  text, num_images = execute(
    'ablation',
    INSTALL='',
    FULL=f'{folder}/full',
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


def test_adapters_notebook(full, tmp_path, environment):
  """Converts a judge, trains adapters of RFT and GRPO, and judges by each."""
  folder, flags, *_ = full
  spct_run.run(
    '--config=configs/convert.py',
    '--config.direction=huggingface',
    f'--config.source={folder}/full/sft/model',
    f'--config.target={tmp_path}/hf',
    env=environment,
  )
  workdir = tmp_path / 'run'
  left_out = ('checkpoint=', 'stages=', '.sft.')
  text, num_images = execute(
    'grpo_gemma2_2b',
    INSTALL='',
    HUGGINGFACE=f'{tmp_path}/hf',
    CHECKPOINT=str(tmp_path / 'gemma'),
    WORKDIR=str(workdir),
    DATA=f'{folder}/rows.jsonl#split',
    TOPOLOGY='',
    CONFIG='spct.py:tiny',
    FLAGS=[
      *(x for x in flags if not any(name in x for name in left_out)),
      '--config.evaluation.k=2',
      '--config.lora.rank=2',
    ],
  )
  for title in ('before training', 'after RFT', 'after GRPO'):
    assert f'\n{title} ' in text
  assert num_images == 2
  for stage in ('rft', 'grpo'):
    model = orbax_checkpoint.read_json(f'{workdir}/{stage}/model', 'model')
    assert model['adapter']['rank'] == 2


def test_settings_of_the_adapters_notebook():
  book = nbformat.read(PATHS['grpo_gemma2_2b'], as_version=4)
  (cell,) = filter(has_parameters, book.cells)
  values = {}
  exec(cell.source, values)
  for topology in ('v5e:2x4', 'v5e:1x1'):
    key = (topology, values['SIZE'], 'spct')
    assert topology in book.cells[0].source + cell.source
    (row,) = (x for x in aot_table.read_rows() if x[:3] == key)
    config = spct_run.parse(
      f'--config=configs/{values["CONFIG"]}', *row.overrides, *values['FLAGS']
    )
    assert config.lora.rank == 16 and config.rft.train.steps < 900


def test_failed_stage_ends_notebook(tmp_path):
  with pytest.raises(nbclient.exceptions.CellExecutionError) as caught:
    execute('spct', INSTALL='', WORKDIR='w', FLAGS=['--config.sft.stesp=3'])
  assert caught.value.ename == 'AssertionError'


def test_readme_links_all_notebooks():
  readme = (test_main.ROOT / 'README.md').read_text()
  assert PATHS
  for path in PATHS.values():
    assert str(path.relative_to(test_main.ROOT)) in readme
