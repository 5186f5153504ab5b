"""Programs that can be compiled ahead of time, with abstract arguments.

Each is the jitted function of production with production's shardings. Only the
arrays are missing: arguments are ShapeDtypeStructs.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from grm_jax.model import init as model_init
from grm_jax.model import logprobs
from grm_jax.model.batch import Batch
from grm_jax.model.row_mask import RowMask
from grm_jax.model.transformer import Transformer
from grm_jax.sampling import compiled_functions, decode, decode_weights
from grm_jax.sharding.rules import HOST_MEMORY, ShardingLayout
from grm_jax.training import (
  flops,
  grpo_loss,
  optimizer,
  reward_model_loss,
  train_state,
  train_step,
)
from grm_jax.training.grpo_loss import GRPOLossConfig, PolicyBatch
from grm_jax.training.reward_model_loss import RewardBatch

DECODE_STEPS = 16  # decode_steps_per_call of the stages' configs


@dataclasses.dataclass(frozen=True)
class AotProgram:
  """A program that a step executes.

  Attributes:
    name: what it computes.
    jitted: the function.
    arguments: ShapeDtypeStructs with shardings.
    num_parameters: how many of the arguments, from the first, are parameters.
    runs_per_step: how many times a step executes it.
    useful_flops: FLOPs of one run on all devices that sequences without
      padding need, see training/flops.py.
    resident: other arrays that are in device memory at the same time.
    loop_reads: arrays that one iteration of its main loop must read; () if
      the cost is not counted by iteration.
    iterations: iterations of that loop in a run.
    mask: mask of its rows on local layers.
  """

  name: str
  jitted: Any
  arguments: tuple
  num_parameters: int = 1
  runs_per_step: int = 1
  useful_flops: int = 0
  resident: Any = ()
  loop_reads: Any = ()
  iterations: int = 1
  mask: RowMask | None = None


def of_config(config: ConfigDict, model: Transformer) -> list[AotProgram]:
  """Returns the programs that a step of `config.program` executes.

  Args:
    config: as configs/aot.py.
    model: model of config.size, with the layout of the topology.

  Raises:
    UserError: an unknown program, or sizes that the mesh cannot split.
  """
  has_generations = config.program not in ('prefill', 'prompts')
  mask = RowMask(
    config.prompt_size,
    config.generation_size if has_generations else 0,
    model.config.window,
  )
  programs = PROGRAMS[config.program](config, model)
  return [dataclasses.replace(x, mask=mask) for x in programs]


# The programs that update weights.
UPDATES = ('sft_step', 'grpo_update', 'reward_model_step')


def has_scalar_head(program: str) -> bool:
  """Returns whether the program uses a model with a scalar head."""
  return program == 'reward_model_step'


def is_sampling(program: str) -> bool:
  """Returns whether the program uses the decode layout."""
  return program in ('prefill', 'decode')


def _sft(config, model) -> list[AotProgram]:
  loss = functools.partial(train_step.supervised_loss, model)
  return _update(config, model, loss, _batch(config, model.layout))


def _reward_model(config, model) -> list[AotProgram]:
  loss = functools.partial(reward_model_loss.bce_loss, model)
  batch = _batch(config, model.layout)
  per_generation = _floats(config, model.layout, 2)
  return _update(
    config, model, loss, RewardBatch(batch, per_generation, per_generation)
  )


def _grpo(config, model) -> list[AotProgram]:
  loss_config = GRPOLossConfig(**config.loss, max_tokens=config.generation_size)
  loss = functools.partial(grpo_loss.grpo_loss, model, loss_config)
  per_generation = _floats(config, model.layout, 2)
  logps = _floats(config, model.layout, 3)
  batch = PolicyBatch(
    batch=_batch(config, model.layout),
    advantages=per_generation,
    weights=per_generation,
    rollout_logps=logps,
    ref_logps=logps if loss_config.kl_coef else None,
  )
  reference: Any = ()
  is_separate = model.adapter is None and not config.reference.offload_to_host
  if loss_config.kl_coef and is_separate:
    reference = _reference_params(config, model)
  return _update(config, model, loss, batch, reference)


def _update(config, model, loss, batch, resident=()) -> list[AotProgram]:
  """Gradients of each micro-batch, then the optimizer's update."""
  optim, _ = optimizer.make(1000, **config.optimizer)
  update = train_step.TrainStep(model, optim, loss)
  state = train_state.abstract_state(model, optim)
  frozen = model_init.abstract_frozen(model)
  first = jax.eval_shape(update.grad, state.params, frozen, batch)
  replicated = model.layout.sharding(())

  def scalar(x):
    """Returns the abstract form of a replicated scalar."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated)

  sums = train_step.AccumulatedGrads(
    model_init.abstract_trained(model),
    *jax.tree.map(scalar, (first.numerator, first.denominator, first.aux)),
  )
  useful = flops.train_step(
    model.config,
    *_lengths(config),
    scalar=model.scalar,
    frozen=frozen is not None,
  ).total
  several = config.grad_accum_steps > 1
  weights = (state.params, frozen)
  return [
    AotProgram(
      'gradients',
      update.accumulate if several else update.grad,
      (*weights, sums, batch) if several else (*weights, batch),
      len(weights),
      config.grad_accum_steps,
      useful,
      resident=(state.opt_state, resident),
    ),
    AotProgram(
      'update',
      update.apply_update,
      (state, sums),
      resident=(frozen, resident),
    ),
  ]


def _reference_params(config, model) -> dict:
  frozen = model_init.abstract_frozen(model)
  if frozen is not None:  # the reference is the base of the adapter
    return frozen
  dtype = config.reference.dtype
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding),
    model_init.abstract_params(model),
  )


def _reference(config, model) -> list[AotProgram]:
  return [
    AotProgram(
      'log-probabilities',
      grpo_loss.jit_logps(model),
      (_reference_params(config, model), _batch(config, model.layout)),
      runs_per_step=config.grad_accum_steps,
      useful_flops=flops.forward(model.config, *_lengths(config)).total,
    )
  ]


def _prompts(config, model) -> list[AotProgram]:
  lengths = np.full(config.micro_batch_prompts, config.prompt_size)
  # Prompts alone need no logits, so `forward` leaves the output head out.
  forward = flops.forward(model.config, lengths)
  head_flops = (
    2 * model.config.width * model.config.vocab_size * int(lengths.sum())
  )
  return [
    AotProgram(
      'log-probabilities',
      jax.jit(functools.partial(logprobs.prompt_logps, model)),
      (model_init.abstract_params(model), _batch(config, model.layout, False)),
      useful_flops=forward.total + head_flops,
    )
  ]


def _generations(config, model) -> list[AotProgram]:
  return [
    AotProgram(
      'log-probabilities',
      jax.jit(functools.partial(logprobs.generation_logps, model)),
      (model_init.abstract_params(model), _batch(config, model.layout)),
      useful_flops=flops.forward(model.config, *_lengths(config)).total,
    )
  ]


def _prefill(config, model) -> list[AotProgram]:
  weights = decode_weights.abstract_weights(model, config.sampling.int8)
  lengths = np.full(config.micro_batch_prompts, config.prompt_size)
  return [
    AotProgram(
      'prefill',
      jax.jit(functools.partial(decode.prefill, model)),
      (weights, _batch(config, model.layout, False)),
      useful_flops=flops.forward(model.config, lengths).total,
    )
  ]


def _decode(config, model) -> list[AotProgram]:
  sizes = compiled_functions.EngineShapes(
    prompts=config.micro_batch_prompts,
    generations_per_prompt=config.num_generations,
    max_new_tokens=config.generation_size,
    decode_steps_per_call=DECODE_STEPS,
    prefill_prompts=config.micro_batch_prompts,
    prompt_buckets=(config.prompt_size,),
  )
  weights = decode_weights.abstract_weights(model, config.sampling.int8)
  arguments = compiled_functions.decode_arguments(
    model, sizes, config.prompt_size
  )
  slots, _, state, *_ = arguments
  keys = config.prompt_size + config.generation_size
  token_flops = flops.decode(model.config, keys).total
  return [
    AotProgram(
      'decode',
      compiled_functions.decode_jit(
        model, DECODE_STEPS, sizes.cache_lengths()[-1]
      ),
      (weights, *arguments),
      useful_flops=token_flops
      * config.micro_batch_prompts
      * config.num_generations,
      loop_reads=(weights, slots.caches, state.caches),
      iterations=DECODE_STEPS,
    )
  ]


PROGRAMS: Mapping[
  str, Callable[[ConfigDict, Transformer], list[AotProgram]]
] = {
  'sft_step': _sft,
  'grpo_update': _grpo,
  'reference': _reference,
  'reward_model_step': _reward_model,
  'prefill': _prefill,
  'decode': _decode,
  'prompts': _prompts,
  'generations': _generations,
}


def _lengths(config) -> tuple[np.ndarray, np.ndarray]:
  """Lengths of prompts [P] and generations [P, R], without padding."""
  p, r = config.micro_batch_prompts, config.num_generations
  return (
    np.full(p, config.prompt_size),
    np.full((p, r), config.generation_size),
  )


def _batch(config, layout: ShardingLayout, generations: bool = True) -> Batch:
  p, s = config.micro_batch_prompts, config.prompt_size
  r, t = config.num_generations, config.generation_size
  prompts = _array(layout, jnp.int32, p, s), _array(layout, jnp.int32, p)
  if not generations:
    return Batch(*prompts)
  return Batch(
    *prompts,
    _array(layout, jnp.int32, p, r, t),
    _array(layout, jnp.int32, p, r),
  )


def _floats(config, layout, ndim) -> Any:
  """float32 [P, R] or [P, R, T]."""
  shape = (
    config.micro_batch_prompts,
    config.num_generations,
    config.generation_size,
  )
  return _array(layout, jnp.float32, *shape[:ndim])


def _array(layout, dtype, *shape) -> Any:
  """A ShapeDtypeStruct; typed Any because it stands for an array."""
  names = ('prompts', 'tokens', 'tokens')[: len(shape)]
  sharding = layout.sharding(names, shape)
  return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def bytes_per_device(tree: Any) -> int:
  """Returns the bytes of sharded arrays in the memory of one device.

  Arrays in the host's memory do not count.
  """
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * jnp.dtype(x.dtype).itemsize
    for x in jax.tree.leaves(tree)
    if x.sharding.memory_kind != HOST_MEMORY
  )
