"""The programs that can be compiled ahead of time, with their arguments.

Each is the jitted function of production with production's shardings; only the
arrays are missing.
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

from grm_jax.errors import UserError
from grm_jax.model import init as model_init
from grm_jax.model import logprobs
from grm_jax.model.batch import Batch
from grm_jax.model.transformer import Transformer
from grm_jax.sampling import compiled_functions, decode, decode_weights
from grm_jax.sharding.rules import HOST_MEMORY, ShardingLayout
from grm_jax.training import (
  flops,
  grpo_loss,
  optimizer,
  reference_policy,
  reward_model_loss,
  train_state,
  train_step,
)
from grm_jax.training.grpo_loss import GRPOLossConfig, PolicyBatch
from grm_jax.training.reward_model_loss import RewardBatch

DECODE_STEPS = 16  # of one call, as configs have it


@dataclasses.dataclass(frozen=True)
class AotProgram:
  """A program of a step.

  Attributes:
    name: what it does.
    jitted: the function.
    arguments: ShapeDtypeStructs with shardings.
    times: how often a step runs it.
    useful: FLOPs of one run on all devices that lengths without padding need,
      see training/flops.py.
    waits: arrays that are on the devices meanwhile and are no arguments.
    read: arrays that one pass of its main loop must read; () if it is not
      looked at by the pass.
    passes: of that loop in a run.
  """

  name: str
  jitted: Callable
  arguments: tuple
  times: int = 1
  useful: int = 0
  waits: Any = ()
  read: Any = ()
  passes: int = 1


def parts(config: ConfigDict, model: Transformer) -> list[AotProgram]:
  """What a step of `config.program` runs.

  Args:
    config: as configs/aot.py.
    model: of config.size, laid out on the topology.

  Raises:
    UserError: an unknown program, or sizes that the mesh cannot split.
  """
  if config.program not in PROGRAMS:
    raise UserError(
      f'config.program is {config.program!r}; it can be {", ".join(PROGRAMS)}'
    )
  if config.grad_accum_steps < 1:
    raise UserError(
      f'config.grad_accum_steps is {config.grad_accum_steps}; 1 or more'
    )
  return PROGRAMS[config.program](config, model)


def is_scalar(program: str) -> bool:
  """Whether the program is of a model with a scalar head."""
  return program == 'meta_rm_step'


def is_sampling(program: str) -> bool:
  """Whether the program runs in the layout of decoding."""
  return program in ('prefill', 'decode')


def _sft(config, model) -> list[AotProgram]:
  loss = functools.partial(train_step.supervised_loss, model)
  return _update(config, model, loss, _batch(config, model.layout))


def _meta_rm(config, model) -> list[AotProgram]:
  loss = functools.partial(reward_model_loss.bce_loss, model)
  batch = _batch(config, model.layout)
  known = _floats(config, model.layout, 2)
  return _update(config, model, loss, RewardBatch(batch, known, known))


def _grpo(config, model) -> list[AotProgram]:
  objective = GRPOLossConfig(**config.loss, max_tokens=config.generation_size)
  loss = functools.partial(grpo_loss.grpo_loss, model, objective)
  known, logps = (_floats(config, model.layout, n) for n in (2, 3))
  batch = PolicyBatch(
    batch=_batch(config, model.layout),
    advantages=known,
    weights=known,
    rollout_logps=logps,
    ref_logps=logps if objective.kl_coef else None,
  )
  held = ()
  if objective.kl_coef and not config.reference.offload_to_host:
    held = _reference_params(config, model)
  return _update(config, model, loss, batch, held)


def _update(config, model, loss, batch, waits=()) -> list[AotProgram]:
  """Gradients of each batch, then the update by all of them."""
  optim, _ = optimizer.make(1000, **config.optimizer)
  update = train_step.TrainStep(model, optim, loss)
  state = train_state.abstract_state(model, optim)
  first = jax.eval_shape(update.first, state.params, batch)
  whole = model.layout.sharding(())

  def scalar(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole)

  sums = train_step.AccumulatedGrads(
    model_init.abstract_params(model),
    *jax.tree.map(scalar, (first.numerator, first.denominator, first.extras)),
  )
  useful = flops.train_step(
    model.size, *_lengths(config), scalar=model.scalar
  ).total
  several = config.grad_accum_steps > 1
  return [
    AotProgram(
      'gradients',
      update.add if several else update.first,
      (state.params, sums, batch) if several else (state.params, batch),
      config.grad_accum_steps,
      useful,
      waits=(state.opt_state, waits),
    ),
    AotProgram('update', update.apply, (state, sums), waits=waits),
  ]


def _reference_params(config, model) -> dict:
  dtype = config.reference.dtype
  reference_policy.check_dtype(dtype)
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding),
    model_init.abstract_params(model),
  )


def _reference(config, model) -> list[AotProgram]:
  return [
    AotProgram(
      'log-probabilities',
      jax.jit(functools.partial(grpo_loss.logps, model)),
      (_reference_params(config, model), _batch(config, model.layout)),
      config.grad_accum_steps,
      flops.forward(model.size, *_lengths(config)).total,
    )
  ]


def _prompts(config, model) -> list[AotProgram]:
  lengths = np.full(config.micro_batch_prompts, config.prompt_size)
  every = flops.forward(model.size, lengths)
  of_head = 2 * model.size.width * model.size.vocab_size * int(lengths.sum())
  return [
    AotProgram(
      'log-probabilities',
      jax.jit(functools.partial(logprobs.prompt_logps, model)),
      (model_init.abstract_params(model), _batch(config, model.layout, False)),
      useful=every.total + of_head,
    )
  ]


def _generations(config, model) -> list[AotProgram]:
  return [
    AotProgram(
      'log-probabilities',
      jax.jit(functools.partial(logprobs.generation_logps, model)),
      (model_init.abstract_params(model), _batch(config, model.layout)),
      useful=flops.forward(model.size, *_lengths(config)).total,
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
      useful=flops.forward(model.size, lengths).total,
    )
  ]


def _decode(config, model) -> list[AotProgram]:
  sizes = compiled_functions.EngineShapes(
    prompts=config.micro_batch_prompts,
    rows=config.num_generations,
    size=config.generation_size,
    chunk=DECODE_STEPS,
    prefill=config.micro_batch_prompts,
    buckets=(config.prompt_size,),
  )
  weights = decode_weights.abstract_weights(model, config.sampling.int8)
  rest = compiled_functions.decode_arguments(model, sizes, config.prompt_size)
  slots, _, state, *_ = rest
  keys = config.prompt_size + config.generation_size
  one = flops.decode(model.size, keys).total
  return [
    AotProgram(
      'decode',
      compiled_functions.decode_jit(
        model, DECODE_STEPS, sizes.all_reaches()[-1]
      ),
      (weights, *rest),
      useful=one * config.micro_batch_prompts * config.num_generations,
      read=(weights, slots.caches, state.caches),
      passes=DECODE_STEPS,
    )
  ]


PROGRAMS: Mapping[
  str, Callable[[ConfigDict, Transformer], list[AotProgram]]
] = {
  'sft_step': _sft,
  'grpo_update': _grpo,
  'reference': _reference,
  'meta_rm_step': _meta_rm,
  'prefill': _prefill,
  'decode': _decode,
  'prompts': _prompts,
  'generations': _generations,
}


def _lengths(config) -> tuple[np.ndarray, np.ndarray]:
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
  own = _array(layout, jnp.int32, p, r, t), _array(layout, jnp.int32, p, r)
  return Batch(*prompts, *own)


def _floats(config, layout, ndim) -> jax.ShapeDtypeStruct:
  shape = (
    config.micro_batch_prompts,
    config.num_generations,
    config.generation_size,
  )
  return _array(layout, jnp.float32, *shape[:ndim])


def _array(layout, dtype, *shape) -> jax.ShapeDtypeStruct:
  names = ('prompts', 'tokens', 'tokens')[: len(shape)]
  sharding = layout.sharding(names, shape)
  return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def bytes_a_device(tree: Any) -> int:
  """Of arrays with shardings, what one device holds of them.

  What rests in the host's memory is left out.
  """
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * jnp.dtype(x.dtype).itemsize
    for x in jax.tree.leaves(tree)
    if x.sharding.memory_kind != HOST_MEMORY
  )
