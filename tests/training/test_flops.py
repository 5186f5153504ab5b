"""FLOPs against a loop over tokens and keys, the model itself, and literals."""

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

# L 2, D 3, F 5, N 4, K 2, H 2, V 7: every letter another number where it may.
SIZE = model_config.ModelConfig(
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


def looped(size, prompts, generations):
  """(prompt, generation) query-key pairs of all layers, one by one."""
  of_prompts = of_generations = 0
  for layer in range(size.num_layers):
    window = size.window if layer % 2 == 0 else math.inf
    for length, lengths in zip(prompts, generations, strict=True):
      for query in range(length):
        of_prompts += sum(query - key < window for key in range(query + 1))
      for own in lengths:
        for query in range(length, length + own):
          of_generations += sum(
            query - key < window for key in range(query + 1)
          )
  return of_prompts, of_generations


def test_hand_counted():
  """A prompt of 5 with generations of 2 and 0 tokens, window 4."""
  counted = flops.forward(SIZE, [5], [[2, 0]])
  # Global: 1+2+3+4+5 and 6+7; local: 1+2+3+4+4 and 4+4.
  assert counted == flops.Flops(
    prompt=5 * PER_TOKEN,
    generation=2 * PER_TOKEN,
    prompt_attention=PER_PAIR * (15 + 14),
    generation_attention=PER_PAIR * (13 + 8),
    head=2 * 2 * 3 * 7,
  )
  assert counted.total == 7 * 468 + 32 * 50 + 84 == 4960
  assert isinstance(counted.total, int)


@pytest.mark.parametrize('window', [1, 2, 4, 6, 7, 100])
def test_attention_equals_a_loop_over_pairs(window):
  size = dataclasses.replace(SIZE, num_layers=4, window=window)
  prompts, own = [6, 1, 3], [[0, 5, 2], [4, 0, 0], [1, 3, 9]]
  counted = flops.forward(size, np.array(prompts), np.array(own))
  of_prompts, of_generations = looped(size, prompts, own)
  assert counted.prompt_attention == PER_PAIR * of_prompts
  assert counted.generation_attention == PER_PAIR * of_generations


def test_a_generation_is_its_decoding_steps():
  counted = flops.forward(SIZE, [3], [[4]])
  steps = [flops.decode(SIZE, keys) for keys in (4, 5, 6, 7)]
  of_prompt = flops.forward(SIZE, [3])
  assert of_prompt.generation == of_prompt.head == 0
  assert counted.total == of_prompt.total + sum(s.total for s in steps)
  # Global 7 keys, local 4.
  assert steps[-1].generation_attention == PER_PAIR * 11


def test_prompts_are_counted_once():
  own = [[2, 0, 3], [1, 1, 1]]
  shared = flops.forward(SIZE, [5, 2], own)
  again = flops.forward(SIZE, [5] * 3 + [2] * 3, np.reshape(own, (6, 1)))
  assert again.prompt == 3 * shared.prompt
  assert again.prompt_attention == 3 * shared.prompt_attention
  assert again.generation == shared.generation
  assert again.generation_attention == shared.generation_attention
  assert again.head == shared.head == 8 * 2 * 3 * 7


def test_a_step_is_three_passes():
  one = flops.forward(SIZE, [5], [[2, 3]])
  step = flops.train_step(SIZE, [5], [[2, 3]])
  assert step.total == 3 * one.total
  assert step.head == 3 * one.head


@pytest.mark.parametrize('own, values', [([[2, 0], [1, 9]], 4), (None, 2)])
def test_a_scalar_model_reads_one_value_each(own, values):
  counted = flops.forward(SIZE, [5, 1], own, scalar=True)
  assert counted.head == 2 * 3 * values
  assert counted.prompt == flops.forward(SIZE, [5, 1], own).prompt


@pytest.mark.parametrize(
  'prompts, own', [([5], [[1], [1]]), ([5, 5], [1, 1]), ([[5]], [[1]])]
)
def test_shapes_that_disagree(prompts, own):
  with pytest.raises(
    ValueError, match=naming('prompt_lengths', 'generation_lengths')
  ):
    flops.forward(SIZE, prompts, own)


@pytest.mark.parametrize(
  'name, parameters, width, norms',
  [
    # Published parameter counts; norms: 4 a layer and the last one.
    ('gemma2_2b', 2_614_341_888, 2304, 4 * 26 + 1),
    ('gemma2_9b', 9_241_705_984, 3584, 4 * 42 + 1),
    ('gemma2_27b', 27_227_128_320, 4608, 4 * 46 + 1),
  ],
)
def test_a_token_uses_every_matrix_once(name, parameters, width, norms):
  size = model_config.named(name)
  matrices = parameters - 256_000 * width - norms * width
  assert flops.forward(size, [10]).prompt == 10 * 2 * matrices


def test_27b_literals():
  size = model_config.named('gemma2_27b')
  counted = flops.forward(size, [6000], [[1000] * 4])
  assert counted.prompt == 6000 * 52_093_255_680
  assert counted.head == 4000 * 2_359_296_000
  # Global 6000 * 6001 / 2, local 4096 * 4097 / 2 + 1904 * 4096, 23 of each.
  assert counted.prompt_attention == 4 * 4096 * 23 * (18_003_000 + 16_189_440)
  # Global 1000 * 6000 + 1000 * 1001 / 2, local 1000 * 4096, of 4 generations.
  assert counted.generation_attention == 4 * 4 * 4096 * 23 * (
    6_500_500 + 4_096_000
  )


def test_sums_beyond_64_bits():
  size = model_config.named('gemma2_27b')
  counted = flops.train_step(size, [2048] * 100_000, [[512] * 4] * 100_000)
  assert counted.prompt == 3 * 204_800_000 * 52_093_255_680 > 2**63


def products(jaxpr, times=1):
  """FLOPs of the matrix products of a jaxpr, bodies of scans included."""
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
        total += products(body, inner)
  return total


def test_the_model_multiplies_as_much():
  """Traced, without padding; attention there computes full rectangles."""
  p, s, r, t = 3, 5, 2, 4
  # A window that cuts nothing, and no dead rows of the table.
  model = tiny.gemma(
    compute=ComputeConfig(head_chunk=p * r * t), window=100, vocab_size=256
  )
  batch = tiny.batch([s] * p, s, [[t] * r] * p, t)
  traced = jax.make_jaxpr(
    lambda params: logprobs.generation_logps(model, params, batch)
  )(abstract_params(model))
  counted = flops.forward(
    model.size, batch.prompt_lengths, batch.generation_lengths
  )
  rectangles = model.size.num_layers * p * (s * s + r * t * (s + t))
  rectangles *= 4 * model.size.num_heads * model.size.head_dim
  dense = counted.prompt + counted.generation + counted.head
  assert products(traced.jaxpr) == dense + rectangles


@dataclasses.dataclass(frozen=True)
class Device:
  """What peak_flops asks of a device."""

  id: int
  device_kind: str
  platform: str = 'tpu'
  coords: tuple[int, ...] = ()
  process_index: int = 0


def test_peaks():
  two = [Device(i, 'TPU v5 lite', coords=(i, 0, 0)) for i in range(2)]
  assert flops.peak_flops(two) == 394e12
  gpu = Device(0, 'NVIDIA H100 80GB HBM3', 'gpu')
  assert flops.peak_flops([gpu, dataclasses.replace(gpu, id=1)]) == 1978e12


def test_a_v4_chip_of_two_devices_counts_once():
  cores = [Device(i, 'TPU v4', coords=(i // 2, 0, 0)) for i in range(4)]
  assert flops.peak_flops(cores) == 2 * 275e12
  # The same coordinates in another slice, which other processes belong to.
  other = [dataclasses.replace(d, process_index=1) for d in cores]
  assert flops.peak_flops([*cores, *other]) == 4 * 275e12


def test_no_peak_is_made_up():
  assert flops.peak_flops(jax.devices()) is None
  known = Device(0, 'TPU v4', coords=(0, 0, 0))
  unknown = Device(1, 'TPU v99', coords=(1, 0, 0))
  assert flops.peak_flops([known, unknown]) is None
