"""The stage convert through main: import, export, and errors."""

import json
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import time

import pytest
from safetensors.numpy import load_file

from grm_jax.checkpoint import model_directory
from grm_jax.checkpoint.huggingface import config as hf_config
from grm_jax.errors import UserError
from grm_jax.stages import convert
from grm_jax.tokenizer import chat_format
from grm_jax.tokenizer import tiny as tiny_tokenizer
from tests import gemma2_files
from tests.messages import lines_with, names, naming
from tests.processes import HANG_TIMEOUT_S
from tests.stages import stage_output
from tests.test_main import environment, error_of, run
from tests.tokenizer import test_chat_template as templates

ROOT = pathlib.Path(__file__).parents[2]
FIELDS = gemma2_files.CONFIGS['odd_heads'] | {
  'num_attention_heads': 4,
  'hidden_size': 64,
  'vocab_size': 1024,  # of the tiny tokenizer
}
CONFIG = '--config=configs/convert.py'
# One device instead of eight virtual ones starts faster.
ONE_DEVICE = environment()


def load_config(**values):
  path = ROOT / 'configs' / 'convert.py'
  config = runpy.run_path(str(path))['get_config']()
  config.update_from_flattened_dict(values)
  return config


@pytest.fixture(scope='module')
def converted(tmp_path_factory):
  """Returns (folder of hf/ and its import ours/, tensors of hf/, stdout)."""
  root = tmp_path_factory.mktemp('convert')
  tensors = gemma2_files.write(root / 'hf', FIELDS, 3, dtype='bfloat16')
  tiny_tokenizer.train(root / 'hf' / 'tokenizer.model')
  stdout, _ = run(
    CONFIG,
    f'--config.source={root}/hf',
    f'--config.target={root}/ours',
    '--config.verify=true',
    '--config.mesh.tensor=2',
  )
  return root, tensors, stdout


def test_import_is_verified(converted):
  root, _, stdout = converted
  assert lines_with(stdout, stage_output.DIFFERENCE, 'checkpoint', '0.00e+00')
  names = {path.name for path in (root / 'ours').iterdir()}
  assert {'0', 'tokenizer.model'} <= names


def test_round_trip_is_bit_identical(converted, tmp_path):
  root, tensors, _ = converted
  stdout, _ = run(
    CONFIG,
    '--config.direction=huggingface',
    f'--config.source={root}/ours',
    f'--config.target={tmp_path}/back',
    '--config.verify=true',
    '--config.mesh.fsdp=8',
  )
  assert lines_with(stdout, stage_output.DIFFERENCE, 'exported', '0.00e+00')
  back = load_file(tmp_path / 'back' / 'model.safetensors')
  assert set(back) == set(tensors)
  for key, tensor in tensors.items():
    assert back[key].dtype == tensor.dtype, key
    assert back[key].tobytes() == tensor.tobytes(), key
  source, target = root / 'hf', tmp_path / 'back'
  name = 'tokenizer.model'
  assert (target / name).read_bytes() == (source / name).read_bytes()
  assert not list(tmp_path.glob('*.tmp'))


def test_score_runs_on_a_converted_checkpoint(converted, tmp_path):
  root, _, _ = converted
  run(
    '--config=configs/score.py:tiny',
    f'--config.checkpoint={root}/ours',
    f'--workdir={tmp_path}',
    '--config.sampling.concurrent_prompts=8',
  )
  assert (tmp_path / 'scores.jsonl').exists()


def test_random_checkpoint_scores(tmp_path):
  run('--config=configs/convert.py:tiny', f'--workdir={tmp_path}')
  run(
    '--config=configs/score.py:tiny',
    f'--config.checkpoint={tmp_path}/model',
    f'--workdir={tmp_path}',
    '--config.sampling.concurrent_prompts=8',
  )
  assert (tmp_path / 'scores.jsonl').read_text().count('\n') == 3


def test_an_existing_target_is_an_error(converted):
  root, _, _ = converted
  arguments = (CONFIG, f'--config.source={root}/hf')
  line = error_of(*arguments, f'--config.target={root}/ours')
  assert names(line, 'config.target', root / 'ours')
  line = error_of(*arguments, f'--config.target={root}/hf')
  assert names(line, 'config.target', root / 'hf')


@pytest.mark.parametrize(
  'change, words',
  [
    ('--config.source=nowhere', ['config.source', 'nowhere']),
    (
      '--config.source=gs://b/hf',
      ['config.source', 'gs://b/hf', 'Hugging Face'],
    ),
    (
      '--config.source=gs://b/x.gguf',
      ['config.source', 'gs://b/x.gguf', 'GGUF'],
    ),
    (
      '--config.direction=gguf',
      ['config.direction', 'gguf', 'checkpoint', 'huggingface'],
    ),
    ('--config.dtype=int8', ['config.dtype', 'int8', 'float32']),
  ],
)
def test_wrong_settings_are_named(tmp_path, change, words):
  gemma2_files.write(tmp_path / 'hf', FIELDS, 3)
  line = error_of(
    CONFIG,
    f'--config.source={tmp_path}/hf',
    f'--config.target={tmp_path}/ours',
    change,
  )
  assert names(line, *words)


def test_export_of_an_empty_directory(tmp_path):
  line = error_of(
    CONFIG,
    '--config.direction=huggingface',
    f'--config.source={tmp_path}',
    f'--config.target={tmp_path}/out',
  )
  assert names(line, tmp_path)


def test_killed_import_can_be_repeated(tmp_path):
  """After SIGKILL there is no partial checkpoint, and the command works."""
  command = [
    sys.executable,
    '-m',
    'grm_jax.main',
    '--config=configs/convert.py:tiny',
    '--config.size=tiny',
    f'--config.target={tmp_path}/ours',
  ]
  child = subprocess.Popen(
    command, cwd=ROOT, env=ONE_DEVICE, stderr=subprocess.DEVNULL
  )
  deadline = time.monotonic() + HANG_TIMEOUT_S
  while not list(tmp_path.glob('ours/*tmp*')):
    if child.poll() is not None or time.monotonic() > deadline:
      break
    time.sleep(0.001)
  child.send_signal(signal.SIGKILL)
  child.wait()
  if (tmp_path / 'ours' / '0').exists():
    # It finished before the signal; then the checkpoint must be complete.
    subprocess.run(
      [
        *command[:-1],
        f'--config.source={tmp_path}/ours',
        '--config.direction=huggingface',
        f'--config.target={tmp_path}/hf',
      ],
      cwd=ROOT,
      env=ONE_DEVICE,
      check=True,
    )
    return
  subprocess.run(command, cwd=ROOT, env=ONE_DEVICE, check=True)
  assert (tmp_path / 'ours' / '0').exists()


def test_a_flipped_bit_is_an_error(converted, tmp_path):
  root, tensors, _ = converted
  copy = tmp_path / 'ours'
  subprocess.run(['cp', '-r', root / 'ours', copy], check=True)
  row = tensors['model.embed_tokens.weight'][5].tobytes()
  flipped = 0
  for path in (p for p in (copy / '0').rglob('*') if p.is_file()):
    data = bytearray(path.read_bytes())
    if (offset := data.find(row)) >= 0:
      data[offset + 11] ^= 0x10
      path.write_bytes(data)
      flipped += 1
  assert flipped
  line = error_of(
    CONFIG,
    '--config.direction=huggingface',
    f'--config.source={copy}',
    f'--config.target={tmp_path}/out',
  )
  assert names(line, 0, copy, 'embedder/table')
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
  'spelling', ['out/', 'out//', './out', 'link', 'link/']
)
def test_export_into_every_spelling_of_a_target(
  tmp_path, spelling, monkeypatch
):
  """The retry after a kill works, and keeps a folder that is not its own."""
  monkeypatch.chdir(tmp_path)
  os.mkdir('real')
  os.symlink('real', 'link')
  folder = tmp_path / ('real' if 'link' in spelling else 'out')
  os.mkdir(f'{folder}.tmp')
  (tmp_path / f'{folder.name}.tmp' / 'mine').write_text('keep')
  source = str(tmp_path / 'ours')
  config = load_config(source='random', size='tiny', target=source)
  convert.run(config, '')
  values = {'direction': 'huggingface', 'source': source, 'size': ''}
  config = load_config(**values, target=spelling)
  # Killed while it writes: its folder stays.
  save = convert.hf_save.save_directory

  def save_half(directory, params, model):
    """Writes the files and is interrupted."""
    save(directory, params, model)
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(convert.hf_save, 'save_directory', save_half)
    with pytest.raises(KeyboardInterrupt):
      convert.run(config, '')
  assert not list(folder.glob('*'))
  convert.run(config, '')
  assert (folder / 'config.json').exists()
  assert (folder / 'tokenizer.model').exists()
  assert sorted(x.name for x in tmp_path.glob('*.tmp')) == [
    f'{folder.name}.tmp'
  ]
  assert (tmp_path / f'{folder.name}.tmp' / 'mine').exists()
  with pytest.raises(UserError, match=naming('config.target')):
    convert.run(config, '')


@pytest.mark.parametrize(
  'name, content, named',
  [
    ('tokenizer.json', b'{}', ['tokenizer.model', 'tokenizer.json']),
    ('tokenizer.model', b'{}', ['tokenizer.model']),
    # More tokens than the 131 embedding rows.
    ('tokenizer.model', None, ['tokenizer.model', 1024, 131]),
  ],
)
def test_a_model_that_could_not_be_used_is_refused(
  tmp_path, monkeypatch, name, content, named
):
  source = tmp_path / 'hf'
  source.mkdir()
  gemma2_files.write(source, gemma2_files.CONFIGS['no_caps'], 1)
  if content is None:
    tiny_tokenizer.train(source / name)
  else:
    (source / name).write_bytes(content)
  config = load_config(source=str(source), target=str(tmp_path / 'ours'))
  monkeypatch.setattr(
    convert.hf_load, 'open_source', lambda path: pytest.fail('read weights')
  )
  expected = naming(source, *named)
  with pytest.raises(UserError, match=expected) as caught:
    convert.run(config, '')
  assert '\n' not in str(caught.value)
  assert not (tmp_path / 'ours').exists()


def with_chat_template(folder, source):
  gemma2_files.write_with_tokenizer(folder)
  fields = {'bos_token': '<bos>', 'chat_template': source}
  (folder / 'tokenizer_config.json').write_text(json.dumps(fields))
  return folder


def test_a_chat_template_that_differs_is_reported(tmp_path, caplog):
  other = with_chat_template(tmp_path / 'other', templates.OTHER.source)
  gemma = with_chat_template(tmp_path / 'gemma', templates.GEMMA.source)
  with caplog.at_level('WARNING'):
    convert.run(load_config(source=str(gemma), target=str(tmp_path / 'a')), '')
    assert 'chat template' not in caplog.text
    convert.run(load_config(source=str(other), target=str(tmp_path / 'b')), '')
  assert any(
    names(x, other) and '[user]' in x and 'chat_template=checkpoint' in x
    for x in caplog.messages
  )


def test_the_chat_template_of_the_checkpoint(tmp_path, caplog):
  source = with_chat_template(tmp_path / 'hf', templates.OTHER.source)
  ours, exported = str(tmp_path / 'ours'), str(tmp_path / 'back')
  convert.run(
    load_config(source=str(source), target=ours, chat_template='checkpoint'),
    '',
  )
  back = load_config(source=ours, target=exported, direction='huggingface')
  convert.run(back, '')
  for directory in (ours, exported):
    size, _ = hf_config.read_config(str(source))
    tokenizer = model_directory.load_tokenizer(directory, size)
    ids = chat_format.render_user(tokenizer, 'Hello')
    assert tokenizer.decode(ids) == '[user] Hello\n[assistant] '
  plain = model_directory.identity(ours, None)
  (tmp_path / 'ours' / 'chat_format.json').unlink()
  assert model_directory.identity(ours, None) != plain


def test_a_checkpoint_without_a_chat_template(tmp_path):
  gemma2_files.write_with_tokenizer(tmp_path / 'hf')
  config = load_config(
    source=str(tmp_path / 'hf'),
    target=str(tmp_path / 'ours'),
    chat_template='checkpoint',
  )
  with pytest.raises(UserError, match=naming('config.chat_template', 'hf')):
    convert.run(config, '')
  assert not (tmp_path / 'ours').exists()
