"""Pads prompts and texts of any length to batches of static shapes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from grm_jax.model.batch import Batch

Tokens = Sequence[int]
# A prompt and the texts that follow it, as token ids.
PromptWithTexts = tuple[Tokens, Sequence[Tokens]]


def pad_prompts(
  prompts: Sequence[Tokens], num_prompts: int, prompt_size: int
) -> Batch:
  """Returns prompts [P, S]; prompts of one token fill the batch up."""
  tokens: Any = np.zeros((num_prompts, prompt_size), np.int32)
  lengths: Any = np.ones(num_prompts, np.int32)
  for i, prompt in enumerate(prompts):
    tokens[i, : len(prompt)] = prompt
    lengths[i] = len(prompt)
  return Batch(tokens, lengths)


def pad_items(
  items: Sequence[PromptWithTexts], shape: tuple[int, int, int, int]
) -> Batch:
  """Returns prompts with texts as generations; dummies fill the batch up.

  Args:
    items: up to P prompts of up to S tokens, each with up to R texts of up to T
      tokens.
    shape: (P, S, R, T).
  """
  p, s, r, t = shape
  batch = pad_prompts([prompt for prompt, _ in items], p, s)
  generations: Any = np.zeros((p, r, t), np.int32)
  lengths: Any = np.zeros((p, r), np.int32)
  for i, (_, texts) in enumerate(items):
    for j, text in enumerate(texts):
      generations[i, j, : len(text)] = text
      lengths[i, j] = len(text)
  return Batch(batch.prompts, batch.prompt_lengths, generations, lengths)
