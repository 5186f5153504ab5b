"""What a GRM said about an example: k generations, each parsed or not."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from grm_jax.judgement.example import JudgingExample


@dataclasses.dataclass(frozen=True)
class Judgement:
  """One generation.

  Attributes:
    order: order[place] is the index of the response shown at that place.
    text: what was written.
    num_tokens: its length.
    finish: 'stop', 'length' or 'string'.
    scores: one per response, in the example's own order; None if the text
      does not parse.
    meta: the meta RM's opinion of the text, None without one.
  """

  order: tuple[int, ...]
  text: str
  num_tokens: int
  finish: str
  scores: tuple[float, ...] | None
  meta: float | None = None


@dataclasses.dataclass(frozen=True)
class JudgedExample:
  """An example and its judgements: samples 0 to k - 1, and a greedy one."""

  example: JudgingExample
  samples: tuple[Judgement, ...]
  greedy: Judgement | None = None


@dataclasses.dataclass(frozen=True)
class ExampleError:
  """An example that was not judged, and why."""

  id: str
  reason: str


def to_row(judgement: Judgement) -> dict[str, Any]:
  """A judgement as JSON values."""
  return dataclasses.asdict(judgement)


def from_row(row: Mapping[str, Any]) -> Judgement:
  """The judgement of a row by `to_row`."""
  scores = row['scores']
  return Judgement(
    order=tuple(row['order']),
    text=row['text'],
    num_tokens=row['num_tokens'],
    finish=row['finish'],
    scores=None if scores is None else tuple(scores),
    meta=row['meta'],
  )
