"""Generative reward models on TPU: judge, train and vote in JAX.

Importing this package is cheap; JAX is imported by what needs it.
"""

import typing
from typing import Any

if typing.TYPE_CHECKING:
  from grm_jax.judges.generative import Judge


def load_judge(
  checkpoint: str, meta_checkpoint: str | None = None, **settings: Any
) -> 'Judge':
  """A judge for scripts and notebooks; see grm_jax.judges.factory.

  judge = grm_jax.load_judge('checkpoints/grm')
  judge.score([{'query': ..., 'responses': [...]}], k=8)
  """
  from grm_jax.judges import factory as judge_factory

  return judge_factory.load_judge(checkpoint, meta_checkpoint, **settings)
