"""Int8 weights: kernels are rounded to 255 values per channel, nothing else.

Covers the rounding, by hand-computed numbers; a network with int8 weights
equals the network with weights values * scale, on one device and on a mesh;
int8 is what rests and what is gathered; and Linen accepts a QuantizedWeight as
a parameter.
"""

import functools

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from grm_jax.model import logprobs, quantization, transformer
from grm_jax.model.attention import SequenceLayout
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.model.init import abstract_params
from grm_jax.model.layers import RMSNorm
from grm_jax.model.quantization import CONTRACTING_DIMS, QuantizedWeight
from grm_jax.sharding import mesh, rules
from tests.messages import naming
from tests.model import tiny
from tests.sharding.test_sharded import WARNING, stderr_into

BATCH = tiny.batch([1, 9, 4, 12], 12, [[7, 0], [3, 5], [1, 2], [6, 4]], 7)
SEQUENCE = SequenceLayout.from_batch(BATCH)
# name: (kernel, dimensions of its scale, activations, einsum)
KERNELS = {
  'query': ((6, 4, 3), (4, 3), (2, 5, 6), 'PXD,DNH->PXNH'),
  'key': ((6, 2, 3), (2, 3), (2, 5, 6), 'PXD,DKH->PXKH'),
  'value': ((6, 2, 3), (2, 3), (2, 5, 6), 'PXD,DKH->PXKH'),
  'out': ((4, 3, 6), (6,), (2, 5, 4, 3), 'PXNH,NHD->PXD'),
  'gate': ((6, 7), (7,), (2, 5, 6), 'PXD,DF->PXF'),
  'up': ((6, 7), (7,), (2, 5, 6), 'PXD,DF->PXF'),
  'down': ((7, 6), (6,), (2, 5, 7), 'PXF,FD->PXD'),
  'table': ((8, 6), (8,), (2, 5, 6), 'PMD,VD->PMV'),
}


def is_int8(x):
  return isinstance(x, QuantizedWeight)


def dequantize(params):
  """Returns the tree with plain arrays, values * scale."""

  def leaf(path, x):
    if not is_int8(x):
      return x
    scale = jnp.expand_dims(x.scale, CONTRACTING_DIMS[path[-1].key])
    return x.values.astype(jnp.float32) * scale

  return jax.tree_util.tree_map_with_path(leaf, params, is_leaf=is_int8)


def random_kernel(name, seed=0):
  """Returns a kernel with channels of very different magnitudes."""
  rng = np.random.default_rng(seed)
  shape = KERNELS[name][0]
  channels = 10.0 ** rng.uniform(-3, 2, KERNELS[name][1])
  channels = np.expand_dims(channels, CONTRACTING_DIMS[name])
  return jnp.asarray(channels * rng.standard_normal(shape), jnp.float32)


def test_quantize_by_hand():
  """Channels of gate [D, F] are columns, channels of table [V, D] rows."""
  matrix = jnp.array([[127.0, 2.54, 0.0], [-63.4, 1.0, 0.0]])
  expected = [[127, 127, 0], [-63, 50, 0]]
  params = quantization.quantize({'gate': matrix, 'table': matrix.T})
  gate, table = params['gate'], params['table']
  assert gate.values.dtype == table.values.dtype == jnp.int8
  assert gate.scale.dtype == table.scale.dtype == jnp.float32
  np.testing.assert_array_equal(gate.values, expected)
  np.testing.assert_array_equal(table.values, np.transpose(expected))
  for weight in (gate, table):
    np.testing.assert_allclose(weight.scale, [1, 0.02, 1], rtol=1e-6)


def test_largest_negative_element_is_minus_127():
  kernel = jnp.array([[-3.0], [1.5]])
  weight = quantization.quantize({'down': kernel})['down']
  np.testing.assert_array_equal(weight.values, [[-127], [64]])


def test_dithering_keeps_the_mean_of_small_changes():
  kernel = jnp.full((4000, 1), 5.2).at[:1000].set(127.0).at[1000:2000].set(-3)
  nearest, dithered = (
    quantization.quantize_kernel('gate', kernel, x).values
    for x in (False, True)
  )
  np.testing.assert_array_equal(nearest[2000:], 5)
  assert set(np.unique(dithered[2000:])) == {5, 6}
  assert np.mean(dithered[2000:]) == pytest.approx(5.2, abs=0.04)
  # What is on the grid stays there.
  np.testing.assert_array_equal(dithered[:2000], nearest[:2000])


def test_dithering_to_bfloat16():
  step = 2.0**-7  # of bfloat16 between 1 and 2
  x = np.repeat([1 + step / 5, -1 - step / 5, 1 - step, 0.0, np.inf], 2000)
  x = jnp.asarray(x.reshape(5, 2000), jnp.float32)
  y = np.asarray(quantization.dither_to_bfloat16(x), np.float32)
  np.testing.assert_array_equal(x[0].astype('bfloat16'), 1)
  assert set(y[0]) == {1, 1 + step}
  for row, sign in ((0, 1), (1, -1)):
    change = (sign * np.mean(y[row], dtype=np.float64) - 1) / step
    assert change == pytest.approx(0.2, abs=0.04)
  np.testing.assert_array_equal(y[2:], x[2:])  # bfloat16 already
  nan = quantization.dither_to_bfloat16(jnp.full(3, jnp.nan))
  assert np.isnan(nan.astype('float32')).all()


def test_channels_with_nan_or_inf_become_nan():
  bad = jnp.array([[1.0, jnp.nan, jnp.inf], [1.0, 1.0, 1.0]])
  wide = dequantize(quantization.quantize({'gate': bad}))['gate']
  assert np.all(np.isnan(wide), axis=0).tolist() == [False, True, True]


def test_all_kernels_are_covered():
  assert set(KERNELS) == set(CONTRACTING_DIMS)


@pytest.mark.parametrize('name', KERNELS)
def test_error_is_at_most_half_a_step_per_channel(name):
  kernel = random_kernel(name)
  params = quantization.quantize({name: kernel})
  weight = params[name]
  assert weight.shape == kernel.shape
  assert weight.scale.shape == KERNELS[name][1]
  assert quantization.scale_axes(name, kernel.shape) == KERNELS[name][1]
  step = np.expand_dims(weight.scale, CONTRACTING_DIMS[name])
  error = np.abs(kernel - dequantize(params)[name])
  assert np.all(error <= 0.5001 * step)
  # Every channel uses the whole range.
  largest = np.abs(weight.values).max(CONTRACTING_DIMS[name])
  np.testing.assert_array_equal(largest, 127)


@pytest.mark.parametrize('name', KERNELS)
def test_int8_einsum_equals_the_dequantized_one(name):
  _, _, shape, letters = KERNELS[name]
  x = jax.random.normal(jax.random.key(1), shape)
  params = quantization.quantize({name: random_kernel(name)})
  ours = quantization.einsum(letters, x, params[name])
  expected = jnp.einsum(letters, x, dequantize(params)[name])
  tiny.assert_close(ours, expected, 1e-6)


def test_int8_einsum_rounds_once():
  """Values are exact in bfloat16; sums and scales are float32."""
  x = jax.random.normal(jax.random.key(2), (8, 32, 512), jnp.bfloat16)
  w = jax.random.normal(jax.random.key(3), (512, 64))
  w = quantization.quantize({'gate': w})['gate']
  ours = quantization.einsum('PXD,DF->PXF', x, w)
  wide = quantization.einsum('PXD,DF->PXF', x.astype(jnp.float32), w)
  assert (ours.dtype, wide.dtype) == (jnp.bfloat16, jnp.float32)
  assert jnp.mean(ours == wide.astype(jnp.bfloat16)) > 0.999
  float32_out = quantization.einsum('PXD,DF->PXF', x, w, jnp.float32)
  tiny.assert_close(float32_out, wide, 1e-6)


@pytest.mark.parametrize(
  'letters, x, w',
  [
    ('PXD,DF->PXF', (2, 3, 4), (4, 5)),
    ('PXD,DNH->PXNH', (2, 3, 4), (4, 5, 6)),
    ('PXNH,NHD->PXD', (2, 3, 4, 5), (4, 5, 6)),
    ('PMD,VD->PMV', (2, 3, 4), (5, 4)),
    ('PRXNH,NHD->PRXD', (2, 1, 3, 4, 5), (4, 5, 6)),
  ],
)
def test_einsum_of_arrays_equals_jnp_einsum(letters, x, w):
  """Computed as a product of two matrices, in the dtype of the activations."""
  rng = np.random.default_rng(0)
  x, w = (
    jnp.asarray(rng.integers(-9, 9, shape), jnp.float32) for shape in (x, w)
  )
  expected = jnp.einsum(letters, x, w)
  np.testing.assert_array_equal(quantization.einsum(letters, x, w), expected)
  half = quantization.einsum(
    letters, x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)
  )
  assert half.dtype == jnp.bfloat16
  wide = quantization.einsum(letters, x, w, jnp.bfloat16)
  assert wide.dtype == jnp.bfloat16 and wide.shape == expected.shape


@pytest.fixture(scope='module')
def quantized():
  params = tiny.params(tiny.gemma(scalar=True))
  # Rows and columns of zeros, such as the padding rows of the table.
  params['embedder']['table'] = params['embedder']['table'].at[250:].set(0)
  gate = params['pairs']['local']['mlp']['gate']
  params['pairs']['local']['mlp']['gate'] = gate.at[:, :, 3].set(0)
  return quantization.quantize(params)


def test_everything_but_norms_and_value_head_is_int8(quantized):
  flat = jax.tree_util.tree_leaves_with_path(quantized, is_leaf=is_int8)
  plain = {path[-1].key for path, x in flat if not is_int8(x)}
  assert plain == {'scale', 'kernel'}
  assert sum(is_int8(x) for _, x in flat) == 1 + 2 * 7


def test_quantizing_a_stack_equals_quantizing_its_layers(quantized):
  """No scale is shared between layers."""
  params = tiny.params(tiny.gemma())['pairs']['global']
  for i in range(2):
    layer = quantization.quantize(jax.tree.map(lambda x, i=i: x[i], params))
    expected = jax.tree.map(lambda x, i=i: x[i], quantized['pairs']['global'])
    jax.tree.map(np.testing.assert_array_equal, layer, expected)


def test_quantizing_twice_is_an_error(quantized):
  with pytest.raises(ValueError, match=naming('table', 'int8')):
    quantization.quantize(quantized['embedder'])


@functools.partial(jax.jit, static_argnums=0)
def outputs(model, params):
  """Returns everything that a model computes from its weights."""
  hidden = model.apply({'params': params}, BATCH)
  return {
    'hidden': hidden,
    'generations': logprobs.generation_logps(model, params, BATCH),
    'prompts': logprobs.prompt_logps(model, params, BATCH),
    'logits': logprobs.logits(
      model, params['embedder']['table'], hidden.prompt[:, :2]
    )[..., : tiny.CONFIG.vocab_size],
    'values': logprobs.values(model, params, BATCH),
  }


def test_forward_equals_the_dequantized_model(quantized):
  compute = ComputeConfig(
    remat='nothing_saveable', head_chunk=16, query_block=8
  )
  model = tiny.gemma(scalar=True, compute=compute)
  ours = outputs(model, quantized)
  tiny.assert_close(ours, outputs(model, dequantize(quantized)), 1e-5)
  # The original weights give other outputs.
  original = outputs(model, tiny.params(model))['generations'][0]
  assert np.abs(original - ours['generations'][0]).max() > 1e-3


def test_one_layer_equals_the_dequantized_layer(quantized):
  """The layer is unstacked, as in decoding."""
  model = tiny.gemma()
  layer = jax.tree.map(lambda x: x[1], quantized['pairs']['local'])
  block = transformer.Block(model.config, model.compute, model.layout, 6)
  x = jax.random.normal(jax.random.key(4), (4, 12 + 14, 32))
  run = jax.jit(lambda params: block.apply({'params': params}, x, SEQUENCE)[0])
  ours, expected = run(layer), run(dequantize(layer))
  tiny.assert_close(ours, expected, 1e-5)


def test_bfloat16_is_close_to_float32(quantized):
  wide, narrow = (
    tiny.gemma(scalar=True, compute=ComputeConfig(dtype=dtype))
    for dtype in ('float32', 'bfloat16')
  )
  ours, expected = outputs(narrow, quantized), outputs(wide, quantized)
  assert ours['hidden'].prompt.dtype == jnp.bfloat16
  assert ours['logits'].dtype == jnp.float32
  ours = jax.tree.map(lambda x: x.astype(jnp.float32), ours)
  tiny.assert_close(ours, expected, 0.05)


def test_embedding_rows_are_dequantized_in_float32():
  """They are rounded once, and once more after sqrt(D), as arrays are."""
  model = tiny.gemma(compute=ComputeConfig(dtype='bfloat16'), width=3072)
  table = jax.random.normal(jax.random.key(5), (256, 3072))
  params = quantization.quantize({'table': table})
  module = transformer.Embedder(model.config, model.compute, model.layout)
  tokens = jnp.array([[0, 7, 999]])
  x = module.apply({'params': params}, tokens)
  wide = module.apply({'params': dequantize(params)}, tokens)
  assert x.dtype == jnp.bfloat16
  np.testing.assert_array_equal(x, wide)


def test_cast_keeps_int8(quantized):
  """A float copy of the kernel would cost the bytes that int8 saves."""
  table = quantized['embedder']['table']
  assert quantization.cast(table, jnp.bfloat16) is table


def test_num_bytes():
  def num_bytes(tree):
    return sum(x.nbytes for x in jax.tree.leaves(tree))

  for name, width in (('float32', 4), ('bfloat16', 2)):
    kernels = tiny.params(tiny.gemma(compute=ComputeConfig(param_dtype=name)))
    kernels = kernels['pairs']['local']['mlp']
    quantized = quantization.quantize(kernels)
    values = {name: w.values for name, w in quantized.items()}
    assert width * num_bytes(values) == num_bytes(kernels)
    # Scales [L/2, F], [L/2, F], [L/2, D] in float32.
    num_scale_bytes = num_bytes(quantized) - num_bytes(values)
    assert num_scale_bytes == 4 * 2 * (48 + 48 + 32)


def test_linen_checks_the_first_leaf_of_a_parameter(quantized):
  """QuantizedWeight relies on this; see the order of its fields."""
  table = quantized['embedder']['table']
  assert jax.tree.leaves(table)[0] is table.values
  model = tiny.gemma()
  module = transformer.Embedder(model.config, model.compute, model.layout)
  tokens = jnp.array([[1]])
  module.apply({'params': {'table': table}}, tokens)
  bad = table.replace(values=table.values[:-1])
  with pytest.raises(flax.errors.ScopeParamShapeError):
    module.apply({'params': {'table': bad}}, tokens)


def test_token_logps_checks_the_table(quantized):
  table = quantized['embedder']['table']
  bad = table.replace(values=table.values[:-1])
  hidden, targets = jnp.ones((1, 2, 32)), jnp.ones((1, 2), jnp.int32)
  with pytest.raises(ValueError, match=naming('table', '(255, 32)')):
    logprobs.token_logps(tiny.gemma(), bad, hidden, targets)


def test_norm_scales_are_not_quantized():
  """They have the same name as a field of QuantizedWeight."""
  params = {'scale': jnp.ones(32)}
  assert quantization.quantize(params)['scale'] is params['scale']
  RMSNorm(tiny.CONFIG, ComputeConfig()).apply(
    {'params': params}, jnp.ones((1, 1, 32))
  )


def test_constrain_splits_a_scale_as_its_kernel():
  layout = rules.make_layout(mesh.make_mesh(2, 2, 2), rules.RULES)
  w = quantization.quantize({'down': jnp.ones((48, 32))})['down']
  axes = ('mlp', 'embed')
  w = jax.jit(lambda w: quantization.constrain(layout, 'down', w, axes))(w)
  assert w.values.sharding.spec == PartitionSpec('tensor', 'fsdp')
  assert w.scale.sharding.spec == PartitionSpec('fsdp')


def shardings(model):
  """Returns shardings of an int8 tree: scales are split as their kernel."""

  def leaf(path, shape):
    name, sharding = path[-1].key, shape.sharding
    if name not in CONTRACTING_DIMS:
      return sharding
    spec = sharding.spec
    spec = (*spec, *(None,) * (len(shape.shape) - len(spec)))
    spec = PartitionSpec(*quantization.scale_axes(name, spec))
    return QuantizedWeight(sharding, NamedSharding(sharding.mesh, spec))

  return jax.tree_util.tree_map_with_path(leaf, abstract_params(model))


@pytest.fixture(scope='module', params=[(2, 2, 2), (1, 4, 2)], ids=str)
def on_mesh(request, quantized):
  """Returns (log-probabilities on a mesh, executable, what XLA printed)."""
  layout = rules.make_layout(mesh.make_mesh(*request.param), rules.RULES)
  model = tiny.gemma(layout, scalar=True, compute=ComputeConfig(head_chunk=16))
  params = jax.device_put(quantized, shardings(model))
  batch = jax.device_put(BATCH, layout.sharding(('prompts',)))
  run = jax.jit(logprobs.generation_logps, static_argnums=0)
  messages = []
  with stderr_into(messages):
    executable = run.lower(model, params, batch).compile()
  return executable(params, batch), executable, ''.join(messages)


def test_mesh_equals_one_device(on_mesh, quantized):
  model = tiny.gemma(scalar=True)
  expected = logprobs.generation_logps(model, quantized, BATCH)
  tiny.assert_close(jax.device_get(on_mesh[0]), expected, 1e-5)


def test_xla_rematerializes_nothing(on_mesh):
  assert WARNING not in on_mesh[2]


def test_kernels_are_gathered_as_int8(on_mesh):
  """Kernels [D, F] = [32, 48] are gathered over fsdp before the cast."""
  gathers = [
    line for line in on_mesh[1].as_text().splitlines() if ' all-gather(' in line
  ]
  kernels = [line for line in gathers if '[32,24]' in line]
  assert kernels
  assert all('s8[32,24]' in line for line in kernels)
