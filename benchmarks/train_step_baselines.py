"""Training steps behind one function: ours, and transformers'.

A contender is a function (case, weights) -> step, and a step makes one update
and returns the loss before it. The same weights, texts and settings of AdamW
for all, so that the losses of every step agree.
"""

import dataclasses
import functools
import importlib.util
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.workload import Case
from grm_jax.model.batch import Batch
from grm_jax.model.config import ModelConfig
from grm_jax.model.init import init_params
from grm_jax.model.transformer import Transformer
from grm_jax.training import optimizer, train_state
from grm_jax.training.train_step import TrainStep, supervised_loss

LEARNING_RATE, BETAS, EPS, CLIP = 1e-4, (0.9, 0.95), 1e-8, 1.0
OURS, REPEATED, THEIRS = 'grm_jax', 'grm_jax, prompt repeated', 'transformers'


@dataclasses.dataclass(frozen=True)
class Weights:
  """What contenders begin with.

  Attributes:
    model: ours.
    directory: of the Hugging Face files with the same weights.
  """

  model: Transformer
  directory: str

  @property
  def size(self) -> ModelConfig:
    return self.model.config


Step = Callable[[], float]
Contender = Callable[[Case, Weights], Step]


def texts(case: Case, size: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
  """Random tokens: prompts [P, S], generations [P, R, T]."""
  rng = np.random.default_rng(0)
  shape = (case.prompts, case.rows, case.new_tokens)
  return (
    rng.integers(
      4, size.vocab_size, (case.prompts, case.prompt_size), np.int32
    ),
    rng.integers(4, size.vocab_size, shape, np.int32),
  )


def ours(case: Case, weights: Weights, *, repeated: bool = False) -> Step:
  """Steps, as the training stages use it; the weights are made anew."""
  model = weights.model
  prompts, own = texts(case, model.config)
  if repeated:
    prompts = np.repeat(prompts, case.rows, axis=0)
    own = own.reshape(-1, 1, case.new_tokens)
  lengths = np.full(len(prompts), case.prompt_size, np.int32)
  own_lengths = np.full(own.shape[:2], case.new_tokens, np.int32)
  batch = Batch(*map(jnp.asarray, (prompts, lengths, own, own_lengths)))
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
  steps = TrainStep(model, optim, functools.partial(supervised_loss, model))
  params = init_params(model, jax.random.key(0))
  state = train_state.init_state(model, optim, params)
  del params  # given away with the state

  def step():
    nonlocal state
    state, metrics = jax.block_until_ready(steps(state, [batch]))
    return float(metrics['loss'])

  return step


def theirs(case: Case, weights: Weights) -> Step:
  """Transformers with torch, on all cores."""
  # Torch's threads would wait by spinning, which stalls them where anything
  # else runs too; see sampler_peers.py.
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
  prompts, own = texts(case, weights.size)
  prompts = np.repeat(prompts, case.rows, axis=0)
  own = own.reshape(-1, case.new_tokens)
  tokens = torch.tensor(np.concatenate([prompts, own], axis=1)).long()
  labels = tokens.clone()
  labels[:, : case.prompt_size] = -100
  # The last prompt token predicts the first of the generation.
  keep = case.new_tokens + 1

  def step():
    out = network(
      tokens,
      attention_mask=torch.ones_like(tokens),
      labels=labels[:, -keep:],
      logits_to_keep=keep,
      use_cache=False,
    )
    out.loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
    optim.step()
    optim.zero_grad()
    return out.loss.item()

  return step


def contenders(case: Case) -> dict[str, Contender]:
  """Those that are installed; none twice."""
  found = {OURS: ours}
  if case.rows > 1:
    found[REPEATED] = functools.partial(ours, repeated=True)
  if importlib.util.find_spec('transformers'):
    found[THEIRS] = theirs
  return found
