"""GRPO steps behind one function: ours, and google-tunix's.

A contender is made from a case and weights; its `step` makes one whole step
of on-policy GRPO and returns the seconds of its parts. The same weights,
prompts, group size, optimizer and KL term for all, nobody stops before T
tokens, and rewards are drawn at random: what is measured is the work.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import importlib.util
import queue
import threading
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import sampler_baselines
from benchmarks.sampler_baselines import BOS_ID, NO_ID
from benchmarks.workload import Case
from grm_jax.data.rollout_prompts import RolloutPromptIterator
from grm_jax.data.tokenized_example import BatchShape
from grm_jax.judgement.example import JudgingExample, Turn
from grm_jax.model.batch import Batch
from grm_jax.model.init import init_params
from grm_jax.model.transformer import Transformer
from grm_jax.sampling import decode_weights
from grm_jax.sampling.engine import Engine
from grm_jax.stages.grpo import collate, update
from grm_jax.stages.grpo.rollout import RolloutSampler, group_advantages
from grm_jax.training import grpo_loss, optimizer, train_state
from grm_jax.training.grpo_loss import GRPOLossConfig
from grm_jax.training.reference_policy import ReferencePolicy
from grm_jax.training.train_step import TrainStep

LEARNING_RATE, KL_COEF, CLIP = 1e-6, 0.08, 0.2
PARTS = ('rollout', 'reference', 'update')
OURS, THEIRS = 'grm_jax', 'google-tunix'

Seconds = dict[str, float]  # by part


@dataclasses.dataclass(frozen=True)
class Setting:
  """What contenders begin with.

  Attributes:
    model: ours.
    checkpoint: a model directory with its parameters.
    micro: prompts, with their groups, that tunix updates on at once.
    chunk: steps of our sampler between two refills.
  """

  model: Transformer
  checkpoint: str
  micro: int
  chunk: int

  def params(self) -> dict:
    """Made anew: a step uses them up."""
    return init_params(self.model, jax.random.key(0))


@dataclasses.dataclass(frozen=True)
class Contender:
  """Steps from the same beginning.

  Attributes:
    step: makes a whole step.
    reference_logps: of generations [P, R, T] of the case's prompts.
    close: ends threads, without which the process would not end.
  """

  step: Callable[[], Seconds]
  reference_logps: Callable[[np.ndarray], np.ndarray]
  close: Callable[[], None] = lambda: None


def prompts(case: Case, model: Transformer) -> np.ndarray:
  """Random tokens [P, S], bos first."""
  rng = np.random.default_rng(0)
  shape = (case.prompts, case.prompt_size)
  found = rng.integers(4, model.config.vocab_size, shape, np.int32)
  found[:, 0] = BOS_ID
  return found


def contenders() -> dict[str, Callable[[Case, Setting], Contender]]:
  """Those that are installed, by name and version."""
  found = {OURS: ours}
  if importlib.util.find_spec('tunix'):
    version = importlib.metadata.version(THEIRS)
    found[f'{THEIRS} {version}'] = tunix
  return found


class _Watch:
  """Seconds by part; whatever a part returned is waited for."""

  def __init__(self):
    self.seconds = dict.fromkeys(PARTS, 0.0)

  @contextlib.contextmanager
  def part(self, name: str) -> Iterator[list]:
    """Yields a list for arrays that are to be waited for."""
    begin, arrays = time.perf_counter(), []
    yield arrays
    jax.block_until_ready(arrays)
    self.seconds[name] += time.perf_counter() - begin

  def take(self) -> Seconds:
    """What was measured since it was last taken."""
    found, self.seconds = self.seconds, dict.fromkeys(PARTS, 0.0)
    return found


@dataclasses.dataclass(frozen=True)
class _Tokens:
  """Stands for a PromptFormat: prompts are given as tokens."""

  prompts: np.ndarray

  def tokenize(self, example, order, chat, limit) -> tuple[int, ...]:
    del order, chat, limit
    return tuple(self.prompts[int(example.id)].tolist())

  def parse_scores(self, text, order) -> None:
    del text, order  # rewards are random and need no scores


def ours(case: Case, setting: Setting) -> Contender:
  """The rollout, the reference and the update of stages/grpo/train.py."""
  model, given = setting.model, prompts(case, setting.model)
  engine = Engine(
    model,
    prompts=case.prompts,
    generations_per_prompt=case.rows,
    max_new_tokens=case.new_tokens,
    prompt_buckets=(case.prompt_size,),
    decode_steps_per_call=setting.chunk,
    detokenize=lambda ids: ' '.join(map(str, ids)),
  )
  rng = np.random.default_rng(0)
  sampler = RolloutSampler(
    engine,
    None,
    _Tokens(given),
    reward_fn=lambda example, judgement: rng.choice([-1.0, 1.0]),
    group_size=case.rows,
    temperature=1.0,
    seed=0,
  )
  rollout_prompts = RolloutPromptIterator(
    [_example(i) for i in range(case.prompts)], 'fixed', 0
  )
  reference = ReferencePolicy(
    setting.checkpoint, None, model, dtype='float32', offload_to_host=False
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
    max_tokens=case.new_tokens,
  )
  loss = functools.partial(grpo_loss.grpo_loss, model, loss_config)
  train_step = TrainStep(model, optim, loss)
  batch_shape = BatchShape((case.prompt_size,), (case.new_tokens,), case.rows)
  state = train_state.init_state(model, optim, setting.params())
  watch = _Watch()

  def step():
    nonlocal state
    with watch.part('rollout'):
      weights, _ = decode_weights.place(model, state.params)
      rollout = sampler.sample(weights, rollout_prompts, case.prompts)
      del weights
    _check_lengths(rollout.groups, case)
    with watch.part('reference'):
      minibatches = collate.make_minibatches(
        rollout.groups,
        group_advantages(rollout.groups, normalize_by_std=True),
        num_minibatches=1,
        micro_batch_prompts=case.prompts,
        batch_shape=batch_shape,
        layout=model.layout,
      )
      minibatches = update.add_reference_logps(reference, minibatches)
    with watch.part('update') as arrays:
      state, _ = update.update_policy(train_step, state, minibatches, 1)
      arrays.append(state)
    return watch.take()

  def reference_logps(tokens):
    lengths = np.full(case.prompts, case.prompt_size, np.int32)
    own = np.full(tokens.shape[:2], case.new_tokens, np.int32)
    batch = Batch(*map(jnp.asarray, (given, lengths, tokens, own)))
    return np.asarray(reference.logps([batch])[0])

  return Contender(step, reference_logps)


def _example(number: int) -> JudgingExample:
  # Nobody reads it: _Tokens gives the prompt.
  return JudgingExample(str(number), (Turn('user', '?'),), ('a', 'b'), best=0)


def _check_lengths(groups, case) -> None:
  sizes = {len(x.tokens) for group in groups for x in group.generations}
  if sizes != {case.new_tokens}:
    raise RuntimeError(f'generations have {sizes} tokens, not those of {case}')


def tunix(case: Case, setting: Setting) -> Contender:
  """GRPOLearner of google-tunix, with its own sampler and model class.

  Its loop asks an iterator for batches of prompts, in a thread of its own; a
  step lasts from when it is given one until it asks for the next.
  """
  from flax import nnx
  from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner

  cluster = _tunix_cluster(case, setting)
  watch = _Watch()
  _measured(cluster, 'generate', watch, 'rollout')
  _measured(cluster, 'get_ref_per_token_logps', watch, 'reference')
  _measured(
    cluster,
    'update_actor',
    watch,
    'update',
    lambda: nnx.state(cluster.actor_trainer.model),
  )
  learner = GRPOLearner(
    cluster,
    GRPOConfig(
      num_generations=case.rows,
      num_iterations=1,
      beta=KL_COEF,
      kl_loss_mode='low_var_kl',
      epsilon=CLIP,
    ),
    _Rewards(),
  )
  given = prompts(case, setting.model)
  texts = [' '.join(map(str, row)) for row in given]
  loop = _Loop(learner.train, {'prompts': texts})

  def step():
    loop.step()
    return watch.take()

  def reference_logps(tokens):
    found = cluster.get_ref_per_token_logps(
      prompt_tokens=jnp.asarray(np.repeat(given, case.rows, axis=0)),
      completion_tokens=jnp.asarray(tokens.reshape(-1, case.new_tokens)),
      pad_id=sampler_baselines.PAD_ID,
      eos_id=NO_ID,
      micro_batch_size=setting.micro * case.rows,
    )
    watch.take()
    return np.asarray(found).reshape(tokens.shape)

  return Contender(step, reference_logps, loop.close)


class _Rewards:
  """A reward function of tunix, drawn at random."""

  __name__ = 'random'

  def __init__(self):
    self._rng = np.random.default_rng(0)

  def __call__(self, prompts, completions, **unused):
    del completions, unused
    return self._rng.choice([-1.0, 1.0], len(prompts)).tolist()


class _Loop:
  """A loop over an iterator, made to go one step at a time."""

  def __init__(self, train: Callable[[Iterator[dict]], None], batch: dict):
    self._batch, self._train = batch, train
    self._asked, self._given = queue.Queue(), queue.Queue()
    self._thread = threading.Thread(target=self._run)
    self._thread.start()
    self._wait()

  def step(self) -> None:
    """Gives a batch, and waits until the next one is asked for."""
    self._given.put(self._batch)
    self._wait()

  def close(self) -> None:
    """Ends the loop."""
    self._given.put(None)
    self._thread.join()

  def _wait(self):
    error = self._asked.get()
    if error is not None:
      raise RuntimeError('tunix stopped') from error

  def _run(self):
    try:
      self._train(self._batches())
      self._asked.put(RuntimeError('the loop ended'))
    except BaseException as error:
      self._asked.put(error)

  def _batches(self):
    self._asked.put(None)
    while (batch := self._given.get()) is not None:
      yield dict(batch)
      self._asked.put(None)


def _measured(cluster, name, watch, part, also=lambda: ()):
  """Replaces a method by one that adds its seconds to a part."""
  inner = getattr(cluster, name)

  def outer(*args, **kwargs):
    with watch.part(part) as arrays:
      found = inner(*args, **kwargs)
      arrays += [also(), found if part == 'reference' else ()]
    return found

  setattr(cluster, name, outer)


def _tunix_cluster(case: Case, setting: Setting):
  """Actor, reference and rollout, all on one device."""
  from jax.sharding import Mesh
  from tunix.rl import rl_cluster
  from tunix.rl.rollout import base_rollout

  mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ('fsdp', 'tp'))
  roles = (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE)
  training = rl_cluster.RLTrainingConfig(
    actor_optimizer=optax.chain(
      optax.clip_by_global_norm(1.0), optax.adamw(LEARNING_RATE)
    ),
    mini_batch_size=case.prompts,
    train_micro_batch_size=setting.micro,
    rollout_micro_batch_size=case.prompts,
    compute_logps_micro_batch_size=setting.micro,
    eval_every_n_steps=10**9,
    max_steps=10**9,
  )
  rollout = base_rollout.RolloutConfig(
    max_tokens_to_generate=case.new_tokens,
    max_prompt_length=case.prompt_size,
    kv_cache_size=case.prompt_size + case.new_tokens,
    temperature=1.0,
    top_p=1.0,
    eos_tokens=[NO_ID],
  )
  actor, reference = (
    sampler_baselines.tunix_model(setting.model, setting.params())
    for _ in roles
  )
  return rl_cluster.RLCluster(
    actor=actor,
    reference=reference,
    tokenizer=sampler_baselines.Numbers(),
    cluster_config=rl_cluster.ClusterConfig(
      role_to_mesh=dict.fromkeys((*roles, rl_cluster.Role.ROLLOUT), mesh),
      training_config=training,
      rollout_config=rollout,
    ),
  )
