"""Shape of the workload that a benchmark measures."""

import dataclasses

import numpy as np

from grm_jax.model.config import ModelConfig
from grm_jax.training import flops


@dataclasses.dataclass(frozen=True)
class Workload:
  """P prompts of S tokens, each with R generations of T tokens.

  Attributes:
    prompts: P.
    generations_per_prompt: R.
    prompt_size: S, tokens of each prompt.
    new_tokens: T, tokens of each generation.
  """

  prompts: int
  generations_per_prompt: int
  prompt_size: int
  new_tokens: int

  def __str__(self):
    return (
      f'P={self.prompts} R={self.generations_per_prompt} '
      f'S={self.prompt_size} T={self.new_tokens}'
    )

  @property
  def num_generated_tokens(self) -> int:
    """Tokens of all generations, P * R * T."""
    return self.prompts * self.generations_per_prompt * self.new_tokens

  @property
  def num_tokens(self) -> int:
    """Tokens of all generations and of each prompt once."""
    return self.prompts * self.prompt_size + self.num_generated_tokens

  @property
  def repeated(self) -> 'Workload':
    """The same workload with each prompt repeated for every generation."""
    return dataclasses.replace(
      self,
      prompts=self.prompts * self.generations_per_prompt,
      generations_per_prompt=1,
    )

  def train_flops(self, config: ModelConfig) -> int:
    """Returns the FLOPs of one training step."""
    prompt_lengths = np.full(self.prompts, self.prompt_size)
    generation_lengths = np.full(
      (self.prompts, self.generations_per_prompt), self.new_tokens
    )
    return flops.train_step(config, prompt_lengths, generation_lengths).total
