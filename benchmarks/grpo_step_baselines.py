"""GRPO steps of grm_jax and google-tunix behind one interface.

A contender is made from a workload and a setup. Each call of its `step` makes
one step of on-policy GRPO and returns the seconds of its parts. All contenders
have the same weights, prompts, group size, optimizer and KL term. Every
generation has T tokens and rewards are random, so that the work is identical.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import importlib.util
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import sampler_baselines
from benchmarks.sampler_baselines import BOS_ID, NO_ID
from benchmarks.workload import Workload
from grm_jax.data.rollout_prompts import RolloutPromptIterator
from grm_jax.data.tokenized_example import BatchShape
from grm_jax.judgement.example import JudgingExample, Turn
from grm_jax.model.batch import Batch
from grm_jax.model.init import init_params
from grm_jax.model.transformer import Transformer
from grm_jax.sampling import decode_weights
from grm_jax.sampling.engine import Engine
from grm_jax.stages.grpo import collate, update
from grm_jax.stages.grpo.rollout import (
  RolloutGroup,
  RolloutSampler,
  group_advantages,
)
from grm_jax.training import grpo_loss, optimizer, train_state
from grm_jax.training.grpo_loss import GRPOLossConfig
from grm_jax.training.reference_policy import ReferencePolicy
from grm_jax.training.train_step import TrainStep

LEARNING_RATE, KL_COEF, CLIP = 1e-6, 0.08, 0.2
PARTS = ('rollout', 'reference', 'update')
OURS, TUNIX = 'grm_jax', 'google-tunix'

Seconds = dict[str, float]  # keyed by PARTS


@dataclasses.dataclass(frozen=True)
class StepSetup:
  """Initial weights and settings of all contenders.

  Attributes:
    model: grm_jax model.
    checkpoint: model directory with the parameters.
    micro: prompts (with their groups) of a micro-batch of tunix.
    decode_steps_per_call: steps of the grm_jax sampler between two refills.
  """

  model: Transformer
  checkpoint: str
  micro: int
  decode_steps_per_call: int

  def params(self) -> dict:
    """Initializes new parameters; a step donates their buffers."""
    return init_params(self.model, jax.random.key(0))


@dataclasses.dataclass(frozen=True)
class Contender:
  """GRPO training loop of one library.

  Attributes:
    step: makes one step.
    reference_logps: computes the reference log-probabilities [P, R, T] of
      generations [P, R, T] for the prompts of the workload.
    close: ends the threads of the loop, which would keep the process alive.
  """

  step: Callable[[], Seconds]
  reference_logps: Callable[[np.ndarray], np.ndarray]
  close: Callable[[], None] = lambda: None


def random_prompts(workload: Workload, model: Transformer) -> np.ndarray:
  """Returns random tokens [P, S] that begin with bos."""
  rng = np.random.default_rng(0)
  shape = (workload.prompts, workload.prompt_size)
  tokens = rng.integers(4, model.config.vocab_size, shape, np.int32)
  tokens[:, 0] = BOS_ID
  return tokens


def contenders() -> dict[str, Callable[[Workload, StepSetup], Contender]]:
  """Returns the installed contenders by name and version."""
  available = {OURS: make_grm_jax}
  if importlib.util.find_spec('tunix'):
    version = importlib.metadata.version(TUNIX)
    available[f'{TUNIX} {version}'] = make_tunix
  return available


class _PartTimer:
  """Accumulates the seconds of each part, with the wait for its arrays."""

  def __init__(self):
    self.seconds = dict.fromkeys(PARTS, 0.0)

  @contextlib.contextmanager
  def part(self, name: str) -> Iterator[list]:
    """Times a block; yields a list for the arrays to wait for."""
    start, arrays = time.perf_counter(), []
    yield arrays
    jax.block_until_ready(arrays)
    self.seconds[name] += time.perf_counter() - start

  def reset(self) -> Seconds:
    """Returns the seconds since the last reset and sets them to 0."""
    seconds, self.seconds = self.seconds, dict.fromkeys(PARTS, 0.0)
    return seconds


@dataclasses.dataclass(frozen=True)
class _FixedPromptFormat:
  """Replaces PromptFormat; returns the tokens of the prompt by example id."""

  prompts: np.ndarray

  def tokenize(self, example, order, chat, limit) -> tuple[int, ...]:
    del order, chat, limit
    return tuple(self.prompts[int(example.id)].tolist())

  def parse_scores(self, text, order) -> None:
    del text, order  # rewards are random and need no scores


def make_grm_jax(workload: Workload, setup: StepSetup) -> Contender:
  """Makes the rollout, reference and update steps of stages/grpo/train.py."""
  model = setup.model
  prompt_tokens = random_prompts(workload, model)
  engine = Engine(
    model,
    prompts=workload.prompts,
    generations_per_prompt=workload.generations_per_prompt,
    max_new_tokens=workload.new_tokens,
    prompt_buckets=(workload.prompt_size,),
    decode_steps_per_call=setup.decode_steps_per_call,
    detokenize=lambda ids: ' '.join(map(str, ids)),
  )
  rng = np.random.default_rng(0)
  sampler = RolloutSampler(
    engine,
    None,
    _FixedPromptFormat(prompt_tokens),
    reward_fn=lambda example, judgement: rng.choice([-1.0, 1.0]),
    group_size=workload.generations_per_prompt,
    temperature=1.0,
    seed=0,
  )
  rollout_prompts = RolloutPromptIterator(
    [_make_example(i) for i in range(workload.prompts)], 'fixed', 0
  )
  reference = ReferencePolicy.load(
    setup.checkpoint, None, model, dtype='float32', offload_to_host=False
  )
  optim, _ = optimizer.make(
    1,
    learning_rate=LEARNING_RATE,
    warmup_steps=0,
    schedule='constant',
    end_fraction=1.0,
    weight_decay=0.0,
    max_grad_norm=1.0,
    b2=0.95,
    moment_dtype='float32',
  )
  loss_config = GRPOLossConfig(
    kl_coef=KL_COEF,
    kl_estimator='k3',
    clip_low=CLIP,
    clip_high=CLIP,
    loss_agg_mode='sequence',
    max_tokens=workload.new_tokens,
  )
  loss = functools.partial(grpo_loss.grpo_loss, model, loss_config)
  train_step = TrainStep(model, optim, loss)
  batch_shape = BatchShape(
    (workload.prompt_size,),
    (workload.new_tokens,),
    workload.generations_per_prompt,
  )
  state = train_state.init_state(model, optim, setup.params())
  part_timer = _PartTimer()

  def step():
    nonlocal state
    with part_timer.part('rollout'):
      weights, _ = decode_weights.place(model, state.params)
      rollout = sampler.sample(weights, rollout_prompts, workload.prompts)
      del weights
    _check_lengths(rollout.groups, workload)
    with part_timer.part('reference'):
      minibatches = collate.make_minibatches(
        rollout.groups,
        group_advantages(rollout.groups, normalize_by_std=True),
        num_minibatches=1,
        micro_batch_prompts=workload.prompts,
        batch_shape=batch_shape,
        layout=model.layout,
      )
      minibatches = update.add_reference_logps(reference, minibatches)
    with part_timer.part('update') as arrays:
      state, _ = update.update_policy(train_step, state, minibatches, 1)
      arrays.append(state)
    return part_timer.reset()

  def reference_logps(tokens):
    lengths = np.full(workload.prompts, workload.prompt_size, np.int32)
    generation_lengths = np.full(
      tokens.shape[:2], workload.new_tokens, np.int32
    )
    arrays = (prompt_tokens, lengths, tokens, generation_lengths)
    batch = Batch(*map(jnp.asarray, arrays))
    return np.asarray(reference.logps([batch])[0])

  return Contender(step, reference_logps)


def _make_example(number: int) -> JudgingExample:
  # The texts are unused: _FixedPromptFormat supplies the tokens.
  return JudgingExample(str(number), (Turn('user', '?'),), ('a', 'b'), best=0)


def _check_lengths(groups: Sequence[RolloutGroup], workload: Workload) -> None:
  lengths = {len(x.tokens) for group in groups for x in group.generations}
  if lengths != {workload.new_tokens}:
    raise RuntimeError(
      f'generations have {lengths} tokens instead of {workload.new_tokens}'
    )


def make_tunix(workload: Workload, setup: StepSetup) -> Contender:
  """Makes the GRPOLearner of google-tunix with tunix's sampler and model.

  Its training loop runs in a separate thread and pulls batches of prompts from
  an iterator. A step lasts from one batch until the request for the next one.
  """
  from flax import nnx
  from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner

  cluster = _tunix_cluster(workload, setup)
  part_timer = _PartTimer()
  _time_method(cluster, 'generate', part_timer, 'rollout')
  _time_method(cluster, 'get_ref_per_token_logps', part_timer, 'reference')
  _time_method(
    cluster,
    'update_actor',
    part_timer,
    'update',
    lambda: nnx.state(cluster.actor_trainer.model),
  )
  learner = GRPOLearner(
    cluster,
    GRPOConfig(
      num_generations=workload.generations_per_prompt,
      num_iterations=1,
      beta=KL_COEF,
      kl_loss_mode='low_var_kl',
      epsilon=CLIP,
    ),
    _RandomRewards(),
  )
  prompt_tokens = random_prompts(workload, setup.model)
  texts = [' '.join(map(str, row)) for row in prompt_tokens]
  loop = _SteppedLoop(learner.train, {'prompts': texts})

  def step():
    loop.step()
    return part_timer.reset()

  def reference_logps(tokens):
    logps = cluster.get_ref_per_token_logps(
      prompt_tokens=jnp.asarray(
        np.repeat(prompt_tokens, workload.generations_per_prompt, axis=0)
      ),
      completion_tokens=jnp.asarray(tokens.reshape(-1, workload.new_tokens)),
      pad_id=sampler_baselines.PAD_ID,
      eos_id=NO_ID,
      micro_batch_size=setup.micro * workload.generations_per_prompt,
    )
    part_timer.reset()
    return np.asarray(logps).reshape(tokens.shape)

  return Contender(step, reference_logps, loop.close)


class _RandomRewards:
  """Reward function for tunix with random rewards."""

  __name__ = 'random'

  def __init__(self):
    self._rng = np.random.default_rng(0)

  def __call__(self, prompts, completions, **unused):
    del completions, unused
    return self._rng.choice([-1.0, 1.0], len(prompts)).tolist()


class _SteppedLoop:
  """Runs a training loop over an iterator one step at a time.

  The loop runs in a thread. `_requests` gets an item whenever the loop requests
  a batch (None) or ends (an exception); `_batches` carries the batches.
  """

  def __init__(self, train: Callable[[Iterator[dict]], None], batch: dict):
    self._batch, self._train = batch, train
    self._requests, self._batches = queue.Queue(), queue.Queue()
    self._thread = threading.Thread(target=self._run)
    self._thread.start()
    self._wait()

  def step(self) -> None:
    """Supplies a batch and waits for the request for the next one."""
    self._batches.put(self._batch)
    self._wait()

  def close(self) -> None:
    """Ends the loop and its thread."""
    self._batches.put(None)
    self._thread.join()

  def _wait(self):
    error = self._requests.get()
    if error is not None:
      raise RuntimeError('the training loop of tunix failed') from error

  def _run(self):
    try:
      self._train(self._iterate())
      self._requests.put(RuntimeError('the training loop ended'))
    except BaseException as error:
      self._requests.put(error)

  def _iterate(self):
    self._requests.put(None)
    while (batch := self._batches.get()) is not None:
      yield dict(batch)
      self._requests.put(None)


def _time_method(cluster, name, part_timer, part, extra_arrays=lambda: ()):
  """Wraps a method of the cluster to add its seconds to a part.

  Args:
    cluster: RLCluster of tunix.
    name: name of the method.
    part_timer: timer of the parts.
    part: key in PARTS.
    extra_arrays: returns arrays to wait for besides the result.
  """
  method = getattr(cluster, name)

  def timed_method(*args, **kwargs):
    with part_timer.part(part) as arrays:
      result = method(*args, **kwargs)
      arrays += [extra_arrays(), result if part == 'reference' else ()]
    return result

  setattr(cluster, name, timed_method)


def _tunix_cluster(workload: Workload, setup: StepSetup):
  """Makes actor, reference and rollout, all on one device."""
  from jax.sharding import Mesh
  from tunix.rl import rl_cluster
  from tunix.rl.rollout import base_rollout

  mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ('fsdp', 'tp'))
  roles = (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE)
  training = rl_cluster.RLTrainingConfig(
    actor_optimizer=optax.chain(
      optax.clip_by_global_norm(1.0), optax.adamw(LEARNING_RATE)
    ),
    mini_batch_size=workload.prompts,
    train_micro_batch_size=setup.micro,
    rollout_micro_batch_size=workload.prompts,
    compute_logps_micro_batch_size=setup.micro,
    eval_every_n_steps=10**9,
    max_steps=10**9,
  )
  rollout = base_rollout.RolloutConfig(
    max_tokens_to_generate=workload.new_tokens,
    max_prompt_length=workload.prompt_size,
    kv_cache_size=workload.prompt_size + workload.new_tokens,
    temperature=1.0,
    top_p=1.0,
    eos_tokens=[NO_ID],
  )
  actor, reference = (
    sampler_baselines.tunix_model(setup.model, setup.params()) for _ in roles
  )
  return rl_cluster.RLCluster(
    actor=actor,
    reference=reference,
    tokenizer=sampler_baselines.TokenIdTokenizer(),
    cluster_config=rl_cluster.ClusterConfig(
      role_to_mesh=dict.fromkeys((*roles, rl_cluster.Role.ROLLOUT), mesh),
      training_config=training,
      rollout_config=rollout,
    ),
  )
