"""OpenRLHF's remote reward: texts in, one number for each out.

Its trainers post {query, prompts, labels}: whole texts as the policy's
tokenizer decodes them, control tokens included, the prompts that they begin
with, and known answers. They read `rewards`, `scores` and `extra_logs` of the
answer (openrlhf/utils/remote_rm_utils.py and its documentation).
"""

import re
from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, Field

from grm_jax.errors import UserError
from grm_jax.serving.reward_client import together
from grm_jax.serving.schemas import (
  ErrorResponse,
  ScoreRequest,
  ScoreResponse,
  Text,
)

# What tokenizers put at the end of a turn: `<|im_end|>`, `</s>`, `<eos>`.
_END = re.compile(
  r'(?:\s*(?:<\|[a-z_]+\|>|</s>|<eos>|<end_of_turn>|<｜[^>]{1,40}｜>))+\s*$',
  re.IGNORECASE,
)


class RewardRequest(BaseModel):
  """What OpenRLHF posts; `missing` can be given by others."""

  query: Annotated[list[Text], Field(min_length=1)]
  prompts: list[Text] | None = Field(
    None, description='What each query begins with; needed.'
  )
  labels: list[Text | None] | None = Field(
    None, description='Answers known to be right.'
  )
  missing: float = Field(
    0.0,
    allow_inf_nan=False,
    description='The reward where no judgement parses.',
  )


class RewardResponse(BaseModel):
  """What OpenRLHF reads."""

  rewards: list[float] = Field(description='1 to 10.')
  scores: list[float] = Field(
    description='The same from 0 to 1, for dynamic filtering.'
  )
  extra_logs: dict[str, list[float]]


def read(
  asked: RewardRequest, most: int
) -> tuple[list[list[int]], list[ScoreRequest]]:
  """Which texts are judged together, and what is asked of each group.

  Args:
    asked: what was posted.
    most: responses of a request.

  Raises:
    UserError: there is not one prompt for each text, or a text does not
      begin with it.
  """
  count = len(asked.query)
  if asked.prompts is None:
    raise UserError(
      'prompts are missing: without them it is not known where a response '
      'begins; OpenRLHF sends them from release 0.5 on'
    )
  labels = asked.labels or [None] * count
  for name, found in (('prompts', asked.prompts), ('labels', labels)):
    if len(found) != count:
      raise UserError(f'{len(found)} {name} for {count} texts in query')
  groups = together(list(zip(asked.prompts, labels, strict=True)), most)
  return groups, [_request(asked, labels, places) for places in groups]


def _request(asked, labels, places) -> ScoreRequest:
  prompt, label = asked.prompts[places[0]], labels[places[0]]
  return ScoreRequest(
    query=prompt,
    responses=[_response(asked.query[i], prompt, i) for i in places],
    reference=label or '',
  )


def _response(text: str, prompt: str, i: int) -> str:
  """What the policy wrote; a token may stand before the prompt."""
  begin = text.find(prompt)
  if begin < 0:
    raise UserError(f'query {i} does not begin with its prompt')
  return _END.sub('', text[begin + len(prompt) :])


def rewards(
  groups: Sequence[Sequence[int]],
  found: Sequence[ScoreResponse | ErrorResponse],
  missing: float,
) -> RewardResponse:
  """One number for each text, in their order."""
  count = sum(map(len, groups))
  values, failed = [missing] * count, [1.0] * count
  for places, answer in zip(groups, found, strict=True):
    if isinstance(answer, ErrorResponse):
      continue
    for i, place in enumerate(places):
      failed[place] = answer.failures / len(answer.samples)
      if answer.scores is not None:
        values[place] = answer.scores[i]
  return RewardResponse(
    rewards=values,
    scores=[min(1.0, max(0.0, (x - 1) / 9)) for x in values],
    extra_logs={'parse_failures': failed},
  )
