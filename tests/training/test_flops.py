"""FLOP counts against a loop over tokens, the model, and literals."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from grm_jax.model import config as model_config
from grm_jax.model import logprobs
from grm_jax.model.compute_config import ComputeConfig
from grm_jax.model.init import abstract_params
from grm_jax.training import flops
from tests.messages import naming
from tests.model import tiny

# L 2, D 3, F 5, N 4, K 2, H 2, V 7: different numbers where possible.
CONFIG = model_config.ModelConfig(
  num_layers=2,
  width=3,
  mlp_width=5,
  num_heads=4,
  num_kv_heads=2,
  head_dim=2,
  query_pre_attn_scalar=2,
  vocab_size=7,
  window=4,
)
# 2 layers * 2 * (D*N*H 24 + D*K*H 12 + 12 + N*H*D 24 + 3*D*F 45)
PER_TOKEN = 468
PER_PAIR = 32  # 2 * N*H for the score, 2 * N*H for the value


def count_pairs(config, prompts, generations):
  """Counts (prompt, generation) query-key pairs of all layers in a loop."""
  prompt_pairs = generation_pairs = 0
  for layer in range(config.num_layers):
    window = config.window if layer % 2 == 0 else math.inf
    for length, lengths in zip(prompts, generations, strict=True):
      for query in range(length):
        prompt_pairs += sum(query - key < window for key in range(query + 1))
      for generation in lengths:
        for query in range(length, length + generation):
          generation_pairs += sum(
            query - key < window for key in range(query + 1)
          )
  return prompt_pairs, generation_pairs


def test_hand_counted_example():
  """A prompt of 5 tokens with generations of 2 and 0 tokens, window 4."""
  count = flops.forward(CONFIG, [5], [[2, 0]])
  # Global: 1+2+3+4+5 and 6+7; local: 1+2+3+4+4 and 4+4.
  assert count == flops.Flops(
    prompt=5 * PER_TOKEN,
    generation=2 * PER_TOKEN,
    prompt_attention=PER_PAIR * (15 + 14),
    generation_attention=PER_PAIR * (13 + 8),
    head=2 * 2 * 3 * 7,
  )
  assert count.total == 7 * 468 + 32 * 50 + 84 == 4960
  assert isinstance(count.total, int)


@pytest.mark.parametrize('window', [1, 2, 4, 6, 7, 100])
def test_attention_equals_a_loop_over_pairs(window):
  config = dataclasses.replace(CONFIG, num_layers=4, window=window)
  prompts, generations = [6, 1, 3], [[0, 5, 2], [4, 0, 0], [1, 3, 9]]
  count = flops.forward(config, np.array(prompts), np.array(generations))
  prompt_pairs, generation_pairs = count_pairs(config, prompts, generations)
  assert count.prompt_attention == PER_PAIR * prompt_pairs
  assert count.generation_attention == PER_PAIR * generation_pairs


def test_generation_equals_its_decode_steps():
  count = flops.forward(CONFIG, [3], [[4]])
  steps = [flops.decode(CONFIG, keys) for keys in (4, 5, 6, 7)]
  prompt_only = flops.forward(CONFIG, [3])
  assert prompt_only.generation == prompt_only.head == 0
  assert count.total == prompt_only.total + sum(s.total for s in steps)
  # 7 keys on the global layer, 4 on the local layer.
  assert steps[-1].generation_attention == PER_PAIR * 11


def test_prompts_are_counted_once():
  generations = [[2, 0, 3], [1, 1, 1]]
  shared = flops.forward(CONFIG, [5, 2], generations)
  repeated = flops.forward(
    CONFIG, [5] * 3 + [2] * 3, np.reshape(generations, (6, 1))
  )
  assert repeated.prompt == 3 * shared.prompt
  assert repeated.prompt_attention == 3 * shared.prompt_attention
  assert repeated.generation == shared.generation
  assert repeated.generation_attention == shared.generation_attention
  assert repeated.head == shared.head == 8 * 2 * 3 * 7


def test_train_step_is_three_forward_passes():
  one_pass = flops.forward(CONFIG, [5], [[2, 3]])
  step = flops.train_step(CONFIG, [5], [[2, 3]])
  assert step.total == 3 * one_pass.total
  assert step.head == 3 * one_pass.head


@pytest.mark.parametrize(
  'generations, values', [([[2, 0], [1, 9]], 4), (None, 2)]
)
def test_scalar_model_computes_one_value_per_generation(generations, values):
  count = flops.forward(CONFIG, [5, 1], generations, scalar=True)
  assert count.head == 2 * 3 * values
  assert count.prompt == flops.forward(CONFIG, [5, 1], generations).prompt


@pytest.mark.parametrize(
  'prompts, generations', [([5], [[1], [1]]), ([5, 5], [1, 1]), ([[5]], [[1]])]
)
def test_inconsistent_shapes_are_rejected(prompts, generations):
  with pytest.raises(
    ValueError, match=naming('prompt_lengths', 'generation_lengths')
  ):
    flops.forward(CONFIG, prompts, generations)


@pytest.mark.parametrize(
  'name, parameters, width, norms',
  [
    # Published parameter counts; 4 norms per layer and the final norm.
    ('gemma2_2b', 2_614_341_888, 2304, 4 * 26 + 1),
    ('gemma2_9b', 9_241_705_984, 3584, 4 * 42 + 1),
    ('gemma2_27b', 27_227_128_320, 4608, 4 * 46 + 1),
  ],
)
def test_token_uses_every_matrix_once(name, parameters, width, norms):
  config = model_config.from_name(name)
  matrices = parameters - 256_000 * width - norms * width
  assert flops.forward(config, [10]).prompt == 10 * 2 * matrices


def test_27b_literals():
  config = model_config.from_name('gemma2_27b')
  count = flops.forward(config, [6000], [[1000] * 4])
  assert count.prompt == 6000 * 52_093_255_680
  assert count.head == 4000 * 2_359_296_000
  # 23 global layers with 6000 * 6001 / 2 pairs, 23 local layers with
  # 4096 * 4097 / 2 + 1904 * 4096 pairs.
  assert count.prompt_attention == 4 * 4096 * 23 * (18_003_000 + 16_189_440)
  # 4 generations: global 1000 * 6000 + 1000 * 1001 / 2, local 1000 * 4096.
  assert count.generation_attention == 4 * 4 * 4096 * 23 * (
    6_500_500 + 4_096_000
  )


def test_sums_beyond_64_bits():
  config = model_config.from_name('gemma2_27b')
  count = flops.train_step(config, [2048] * 100_000, [[512] * 4] * 100_000)
  assert count.prompt == 3 * 204_800_000 * 52_093_255_680 > 2**63


def matmul_flops(jaxpr, times=1):
  """Returns the FLOPs of all matrix products, with the bodies of scans."""
  total = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'dot_general':
      contracted, _ = equation.params['dimension_numbers'][0]
      shape = equation.invars[0].aval.shape
      depth = math.prod(shape[axis] for axis in contracted)
      total += times * 2 * depth * math.prod(equation.outvars[0].aval.shape)
    inner = times * equation.params.get('length', 1)
    for part in jax.tree.leaves(list(equation.params.values())):
      body = getattr(part, 'jaxpr', part)
      if hasattr(body, 'eqns'):
        total += matmul_flops(body, inner)
  return total


def test_count_equals_the_traced_model():
  """Without padding; the model computes full attention rectangles."""
  p, s, r, t = 3, 5, 2, 4
  # A window that masks nothing, and no padding rows of the table.
  model = tiny.gemma(
    compute=ComputeConfig(head_chunk=p * r * t), window=100, vocab_size=256
  )
  batch = tiny.batch([s] * p, s, [[t] * r] * p, t)
  traced = jax.make_jaxpr(
    lambda params: logprobs.generation_logps(model, params, batch)
  )(abstract_params(model))
  count = flops.forward(
    model.config, batch.prompt_lengths, batch.generation_lengths
  )
  rectangles = model.config.num_layers * p * (s * s + r * t * (s + t))
  rectangles *= 4 * model.config.num_heads * model.config.head_dim
  dense = count.prompt + count.generation + count.head
  assert matmul_flops(traced.jaxpr) == dense + rectangles


@dataclasses.dataclass(frozen=True)
class Device:
  """The attributes of a device that peak_flops reads."""

  id: int
  device_kind: str
  platform: str = 'tpu'
  coords: tuple[int, ...] = ()
  process_index: int = 0


def test_peak_flops():
  two = [Device(i, 'TPU v5 lite', coords=(i, 0, 0)) for i in range(2)]
  assert flops.peak_flops(two) == 394e12
  gpu = Device(0, 'NVIDIA H100 80GB HBM3', 'gpu')
  assert flops.peak_flops([gpu, dataclasses.replace(gpu, id=1)]) == 1978e12


def test_v4_chip_with_two_devices_counts_once():
  cores = [Device(i, 'TPU v4', coords=(i // 2, 0, 0)) for i in range(4)]
  assert flops.peak_flops(cores) == 2 * 275e12
  # The same coordinates in another slice, which has other processes.
  other = [dataclasses.replace(d, process_index=1) for d in cores]
  assert flops.peak_flops([*cores, *other]) == 4 * 275e12


def test_tpu7x_chip_is_two_devices():
  cores = [Device(i, 'TPU7x', coords=(i // 2, 0, 0)) for i in range(4)]
  assert flops.peak_flops(cores) == 2 * 2307e12
  assert flops.peak_flops(cores[:1]) == 2307e12 / 2


def test_unknown_devices_have_no_peak():
  assert flops.peak_flops(jax.devices()) is None
  known = Device(0, 'TPU v4', coords=(0, 0, 0))
  unknown = Device(1, 'TPU v99', coords=(1, 0, 0))
  assert flops.peak_flops([known, unknown]) is None
