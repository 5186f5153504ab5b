"""What benchmarks compute: so many prompts, generations and tokens."""

import dataclasses

import numpy as np

from grm_jax.model.config import ModelConfig
from grm_jax.training import flops


@dataclasses.dataclass(frozen=True)
class Case:
  """P prompts of S tokens each, R generations of each of T tokens."""

  prompts: int
  rows: int
  prompt_size: int
  new_tokens: int

  def __str__(self):
    return (
      f'P={self.prompts} R={self.rows} S={self.prompt_size} T={self.new_tokens}'
    )

  @property
  def drawn(self) -> int:
    """Tokens of all generations."""
    return self.prompts * self.rows * self.new_tokens

  @property
  def tokens(self) -> int:
    """Tokens of all prompts, once each, and of all generations."""
    return self.prompts * self.prompt_size + self.drawn

  @property
  def repeated(self) -> 'Case':
    """The same with each prompt given R times."""
    return dataclasses.replace(self, prompts=self.prompts * self.rows, rows=1)

  def train_flops(self, size: ModelConfig) -> int:
    """Of a training step."""
    prompts = np.full(self.prompts, self.prompt_size)
    own = np.full((self.prompts, self.rows), self.new_tokens)
    return flops.train_step(size, prompts, own).total
