"""Reads GGUF files that the package gguf writes, as llama.cpp does."""

import gguf
import numpy as np
import pytest
import tokenizers

from grm_jax.checkpoint import gguf as gguf_file
from grm_jax.checkpoint.huggingface import load as hf_load
from grm_jax.errors import UserError
from grm_jax.tokenizer import tokenizer
from tests import gemma2_files
from tests.messages import lines_with, names, naming
from tests.stages import stage_output
from tests.test_main import error_of, run

# 96 columns are three blocks of Q8_0.
FIELDS = gemma2_files.LLAMA | {'intermediate_size': 96}
NAMES = {
  'self_attn.q_proj': 'attn_q',
  'self_attn.k_proj': 'attn_k',
  'self_attn.v_proj': 'attn_v',
  'self_attn.o_proj': 'attn_output',
  'mlp.gate_proj': 'ffn_gate',
  'mlp.up_proj': 'ffn_up',
  'mlp.down_proj': 'ffn_down',
  'input_layernorm': 'attn_norm',
  'post_attention_layernorm': 'ffn_norm',
}
OUTER_NAMES = {'embed_tokens': 'token_embd', 'norm': 'output_norm'}


def gguf_name(key):
  """Returns the llama.cpp name of a Hugging Face tensor."""
  parts = key.split('.')
  if parts[1] == 'layers':
    return f'blk.{parts[2]}.{NAMES[".".join(parts[3:-1])]}.weight'
  return f'{OUTER_NAMES[parts[1]]}.weight'


def interleave(x, heads):
  """Returns the rows of queries or keys in the order of llama.cpp."""
  halves = x.reshape(heads, 2, x.shape[0] // heads // 2, -1)
  return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(x.shape)


def to_gguf(key, x):
  """Returns a Hugging Face tensor as GGUF stores it."""
  if 'q_proj' in key:
    return interleave(x, FIELDS['num_attention_heads'])
  if 'k_proj' in key:
    return interleave(x, FIELDS['num_key_value_heads'])
  return x


def make_vocabulary():
  """Returns control tokens, all bytes, and one merged token."""
  control = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  return [*control, *alphabet, 'is']


def write(
  path, arch='llama', pre='smollm', quantized=(), scaled=False, extra=()
):
  """Writes a GGUF file; returns its tensors as Hugging Face has them."""
  vocabulary = make_vocabulary()
  fields = FIELDS | {'vocab_size': len(vocabulary)}
  tensors = gemma2_files.random_tensors(fields, 5)
  out = gguf.GGUFWriter(path, arch)
  out.add_block_count(fields['num_hidden_layers'])
  out.add_embedding_length(fields['hidden_size'])
  out.add_feed_forward_length(fields['intermediate_size'])
  out.add_head_count(fields['num_attention_heads'])
  out.add_head_count_kv(fields['num_key_value_heads'])
  out.add_rope_freq_base(fields['rope_theta'])
  out.add_rope_dimension_count(fields['head_dim'])
  out.add_layer_norm_rms_eps(fields['rms_norm_eps'])
  if scaled:
    out.add_rope_scaling_type(gguf.RopeScalingType.YARN)
  for key, value in dict(extra).items():
    add = {float: out.add_float32, int: out.add_uint32, list: out.add_array}
    add[type(value)](f'llama.{key}', value)
  out.add_tokenizer_model('gpt2')
  out.add_tokenizer_pre(pre)
  out.add_token_list(vocabulary)
  out.add_token_types([3] * 3 + [1] * (len(vocabulary) - 3))
  out.add_token_merges(['i s'])
  for key, x in tensors.items():
    x = to_gguf(key, x)
    kind = gguf.GGMLQuantizationType.Q8_0
    if key in quantized:
      packed = gguf.quants.quantize(x, kind)
      out.add_tensor(gguf_name(key), packed, raw_dtype=kind)
    else:
      out.add_tensor(gguf_name(key), x)
  out.write_header_to_file()
  out.write_kv_data_to_file()
  out.write_tensors_to_file()
  out.close()
  return tensors


def test_every_tensor_equals_the_hugging_face_one(tmp_path):
  path = str(tmp_path / 'm.gguf')
  tensors = write(path)
  file = gguf_file.open_file(path)
  config = gguf_file.read_config(file)
  assert (config.num_layers, config.width, config.head_dim) == (4, 48, 8)
  assert (config.rope_base, config.norm_eps) == (100_000.0, 1e-5)
  assert config.window is None and not config.post_norms
  source = gguf_file.tensor_source(file, config)
  hf_load.check_keys(source, config, False)
  assert set(source.tensors) == set(tensors)
  for key, x in tensors.items():
    np.testing.assert_array_equal(source.slice(key)[:], x, err_msg=key)


def test_quantized_tensors_are_dequantized(tmp_path):
  path = str(tmp_path / 'm.gguf')
  name = 'model.layers.1.mlp.down_proj.weight'
  tensors = write(path, quantized=[name])
  file = gguf_file.open_file(path)
  x = gguf_file.tensor_source(file, gguf_file.read_config(file)).slice(name)[:]
  assert not np.array_equal(x, tensors[name])
  np.testing.assert_allclose(x, tensors[name], atol=5e-3)


def test_tokenizer(tmp_path):
  path = str(tmp_path / 'm.gguf')
  write(path)
  text = gguf_file.tokenizer_json(gguf_file.open_file(path))
  tk = tokenizer.from_bytes(text.encode(), 'tokenizer.json')
  assert tk.control_ids == (0, 1, 2)
  ids = tk.encode('this 12<|im_end|>')
  assert tk.codec.id_to_piece(ids[2]) == 'is'
  assert not set(ids) & {0, 1, 2}
  assert tk.decode(ids) == 'this 12<|im_end|>'


def test_convert_and_score(tmp_path):
  """Converts a GGUF file with the command line, then scores with it."""
  write(tmp_path / 'm.gguf')
  stdout, _ = run(
    '--config=configs/convert.py',
    f'--config.source={tmp_path}/m.gguf',
    f'--config.target={tmp_path}/model',
    '--config.verify=true',
  )
  assert lines_with(stdout, stage_output.DIFFERENCE, 'checkpoint', '0.00e+00')
  assert (tmp_path / 'model' / 'tokenizer.json').exists()
  run(
    '--config=configs/score.py:tiny',
    f'--config.checkpoint={tmp_path}/model',
    f'--workdir={tmp_path}/scored',
    '--config.sampling.concurrent_prompts=8',
    '--config.sampling.prompt_buckets=(4096,)',
    '--config.mesh.data=8',
  )
  scores = (tmp_path / 'scored' / 'scores.jsonl').read_text()
  assert scores.count('\n') == 3


def test_unreadable_files_are_rejected(tmp_path):
  convert = ('--config=configs/convert.py', f'--config.target={tmp_path}/to')

  def error_for(name):
    return error_of(*convert, f'--config.source={tmp_path}/{name}')

  assert names(error_for('m.gguf'), tmp_path / 'm.gguf')
  write(tmp_path / 'm.gguf')
  content = (tmp_path / 'm.gguf').read_bytes()
  (tmp_path / 'cut.gguf').write_bytes(content[: len(content) // 2])
  assert names(error_for('cut.gguf'), tmp_path / 'cut.gguf')
  (tmp_path / 'no.gguf').write_text('not a GGUF')
  assert names(error_for('no.gguf'), tmp_path / 'no.gguf')
  assert not (tmp_path / 'to').exists()


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'arch': 'qwen2'}, ['qwen2', 'llama']),
    ({'pre': 'tekken'}, ['tekken', 'smollm']),
    ({'scaled': True}, ['llama.rope.scaling.type', 'yarn']),
  ],
)
def test_unsupported_models_are_rejected(tmp_path, changes, words):
  path = str(tmp_path / 'm.gguf')
  write(path, **changes)
  with pytest.raises(UserError, match=naming(path, *words)):
    file = gguf_file.open_file(path)
    gguf_file.read_config(file)
    gguf_file.tokenizer_json(file)


@pytest.mark.parametrize(
  'key, value',
  [
    ('logit_scale', 0.5),
    ('attention.scale', 0.1),
    ('attention.sliding_window', 128),
    ('rope.scale_linear', 4.0),
    ('expert_count', 8),
    ('attention.value_length', 16),
    ('attention.key_length', 16),
    ('some.new_key', 1),
  ],
)
def test_metadata_that_changes_the_outputs_is_refused(tmp_path, key, value):
  path = str(tmp_path / 'm.gguf')
  write(path, extra={key: value})
  with pytest.raises(UserError, match=naming(path)) as caught:
    gguf_file.read_config(gguf_file.open_file(path))
  assert 'llama.' in str(caught.value) and '\n' not in str(caught.value)


def test_features_that_are_off_are_accepted(tmp_path):
  path = str(tmp_path / 'm.gguf')
  off = {'expert_count': 0, 'attention.key_length': 8, 'context_length': 99}
  write(path, extra=off)
  assert gguf_file.read_config(gguf_file.open_file(path)).head_dim == 8
