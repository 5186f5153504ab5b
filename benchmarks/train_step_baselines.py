"""Training steps of grm_jax and transformers behind one interface.

A contender is a function (workload, weights) -> step. Each call of the step
makes one update and returns the loss before the update. All contenders have the
same weights, texts and AdamW settings, so that their losses agree at each step.
"""

import dataclasses
import functools
import importlib.util
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.workload import Workload
from grm_jax.model.batch import Batch
from grm_jax.model.config import ModelConfig
from grm_jax.model.init import init_params
from grm_jax.model.transformer import Transformer
from grm_jax.training import optimizer, train_state
from grm_jax.training.train_step import TrainStep, supervised_loss

LEARNING_RATE, BETAS, EPS, CLIP = 1e-4, (0.9, 0.95), 1e-8, 1.0
OURS, REPEATED, TRANSFORMERS = (
  'grm_jax',
  'grm_jax, prompt repeated',
  'transformers',
)


@dataclasses.dataclass(frozen=True)
class Weights:
  """Initial weights of all contenders.

  Attributes:
    model: grm_jax model, which is initialized with key 0.
    directory: Hugging Face checkpoint with the same weights.
  """

  model: Transformer
  directory: str

  @property
  def config(self) -> ModelConfig:
    return self.model.config


Step = Callable[[], float]
Contender = Callable[[Workload, Weights], Step]


def random_texts(
  workload: Workload, config: ModelConfig
) -> tuple[np.ndarray, np.ndarray]:
  """Returns random tokens: prompts [P, S] and generations [P, R, T]."""
  rng = np.random.default_rng(0)
  shape = (
    workload.prompts,
    workload.generations_per_prompt,
    workload.new_tokens,
  )
  return (
    rng.integers(
      4, config.vocab_size, (workload.prompts, workload.prompt_size), np.int32
    ),
    rng.integers(4, config.vocab_size, shape, np.int32),
  )


def grm_jax_step(
  workload: Workload, weights: Weights, *, repeated: bool = False
) -> Step:
  """Makes a TrainStep like the training stages, from new weights."""
  model = weights.model
  prompts, generations = random_texts(workload, model.config)
  if repeated:
    prompts = np.repeat(prompts, workload.generations_per_prompt, axis=0)
    generations = generations.reshape(
      -1, 1, workload.new_tokens
    )  # [P * R, 1, T]
  lengths = np.full(len(prompts), workload.prompt_size, np.int32)
  generation_lengths = np.full(
    generations.shape[:2], workload.new_tokens, np.int32
  )
  arrays = (prompts, lengths, generations, generation_lengths)
  batch = Batch(*map(jnp.asarray, arrays))
  optim, _ = optimizer.make(
    1,
    learning_rate=LEARNING_RATE,
    warmup_steps=0,
    schedule='constant',
    end_fraction=1.0,
    weight_decay=0.0,
    max_grad_norm=CLIP,
    b1=BETAS[0],
    b2=BETAS[1],
    eps=EPS,
    moment_dtype='float32',
  )
  train_step = TrainStep(
    model, optim, functools.partial(supervised_loss, model)
  )
  params = init_params(model, jax.random.key(0))
  state = train_state.init_state(model, optim, params)
  del params  # the step donates the buffers of the state

  def step():
    nonlocal state
    state, metrics = jax.block_until_ready(train_step(state, [batch]))
    return float(metrics['loss'])

  return step


def transformers_step(workload: Workload, weights: Weights) -> Step:
  """Makes a step of transformers with torch on all cores."""
  # Spinning torch threads stall on a busy machine; see sampler_baselines.py.
  os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
  import torch
  from transformers import Gemma2ForCausalLM
  from transformers.utils import logging

  logging.disable_progress_bar()
  torch.set_num_threads(os.cpu_count())
  network = Gemma2ForCausalLM.from_pretrained(
    weights.directory, attn_implementation='eager', dtype=torch.float32
  ).train()
  optim = torch.optim.AdamW(
    network.parameters(),
    lr=LEARNING_RATE,
    betas=BETAS,
    eps=EPS,
    weight_decay=0.0,
    fused=True,
  )
  prompts, generations = random_texts(workload, weights.config)
  prompts = np.repeat(prompts, workload.generations_per_prompt, axis=0)
  generations = generations.reshape(-1, workload.new_tokens)  # [P * R, T]
  tokens = torch.tensor(np.concatenate([prompts, generations], axis=1)).long()
  labels = tokens.clone()
  labels[:, : workload.prompt_size] = -100
  # The last prompt token predicts the first generated token.
  num_logits = workload.new_tokens + 1

  def step():
    out = network(
      tokens,
      attention_mask=torch.ones_like(tokens),
      labels=labels[:, -num_logits:],
      logits_to_keep=num_logits,
      use_cache=False,
    )
    out.loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
    optim.step()
    optim.zero_grad()
    return out.loss.item()

  return step


def contenders(workload: Workload) -> dict[str, Contender]:
  """Returns the installed contenders without duplicates."""
  available = {OURS: grm_jax_step}
  if workload.generations_per_prompt > 1:
    available[REPEATED] = functools.partial(grm_jax_step, repeated=True)
  if importlib.util.find_spec('transformers'):
    available[TRANSFORMERS] = transformers_step
  return available
