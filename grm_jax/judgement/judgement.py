"""A judgement: one generation of a GRM about an example, with its scores."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from grm_jax.judgement.example import JudgingExample


@dataclasses.dataclass(frozen=True)
class Judgement:
  """One generation about an example; its text is parsed once, when it is made.

  Attributes:
    order: order[position] is the index of the response at that position of the
      prompt.
    text: the generated text.
    num_tokens: its length in tokens.
    finish: why generation ended: 'stop' (end of turn), 'length' (the maximum
      was reached) or 'string' (a stop string).
    scores: one per response, in the example's own order; None if the text does
      not parse. A truncated generation has scores only if
      config.prompt.truncated is 'read'.
    meta: the meta RM's score of the text; None without a meta RM.
    shortened: whether text of the example was left out of what the model read,
      see judgement/prompt_builder.py.
    extraction_differs: whether strict and model-card extraction of the scores
      differ, see judgement/prompt_format.py.
  """

  order: tuple[int, ...]
  text: str
  num_tokens: int
  finish: str
  scores: tuple[float, ...] | None
  meta: float | None = None
  shortened: bool = False
  extraction_differs: bool = False

  @property
  def truncated(self) -> bool:
    """True if generation reached the maximum length before it ended."""
    return self.finish == 'length'


@dataclasses.dataclass(frozen=True)
class JudgedExample:
  """An example with its judgements.

  Attributes:
    example: the judged example.
    samples: k sampled judgements, by sample index.
    greedy: the judgement at temperature 0, None if there is none.
  """

  example: JudgingExample
  samples: tuple[Judgement, ...]
  greedy: Judgement | None = None


@dataclasses.dataclass(frozen=True)
class ExampleError:
  """An example that could not be judged.

  Attributes:
    id: the example's id, or the one that its row states.
    reason: what is wrong with it, one line.
  """

  id: str | int
  reason: str


def to_row(judgement: Judgement) -> dict[str, Any]:
  """Returns a judgement as JSON values."""
  return dataclasses.asdict(judgement)


def from_row(row: Mapping[str, Any]) -> Judgement:
  """Returns the judgement that `to_row` wrote."""
  scores = row['scores']
  return Judgement(
    order=tuple(row['order']),
    text=row['text'],
    num_tokens=row['num_tokens'],
    finish=row['finish'],
    scores=None if scores is None else tuple(scores),
    meta=row['meta'],
    shortened=row['shortened'],
    extraction_differs=row['extraction_differs'],
  )
