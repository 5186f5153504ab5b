"""Generative reward models on TPU: judge, train and vote in JAX.

Importing this package is fast: JAX is imported only where it is needed.
"""

import typing
from typing import Any

if typing.TYPE_CHECKING:
  from grm_jax.judges.generative import Judge


def load_judge(
  checkpoint: str, meta_checkpoint: str | None = None, **settings: Any
) -> 'Judge':
  """Loads a judge for scripts and notebooks.

  Example:
    judge = grm_jax.load_judge('checkpoints/grm')
    judge.score([{'query': ..., 'responses': [...]}], k=8)

  Args:
    checkpoint: model directory of the judge.
    meta_checkpoint: model directory of the meta RM, if any.
    **settings: see grm_jax.judges.factory.load_judge.
  """
  from grm_jax.judges import factory as judge_factory

  return judge_factory.load_judge(checkpoint, meta_checkpoint, **settings)
