"""OpenRLHF's remote reward protocol: texts in, one reward per text out.

OpenRLHF trainers post {query, prompts, labels}: query holds whole texts as the
policy's tokenizer decodes them, including control tokens; prompts holds the
prompt of each text; labels holds reference answers. They read `rewards`,
`scores` and `extra_logs` of the response.

Source: openrlhf/utils/remote_rm_utils.py of OpenRLHF and its documentation.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, FailFast, Field

from grm_jax.errors import UserError
from grm_jax.serving.reward_client import group_by_prompt, reference_text
from grm_jax.serving.schemas import (
  ErrorResponse,
  Float,
  ScoreRequest,
  ScoreResponse,
  Text,
)

# A control token at the end of a turn: `<|im_end|>`, `</s>`, `<eos>`.
_END_TOKEN = re.compile(
  r'(?:<\|[a-z_]{1,40}\|>|</s>|<eos>|<end_of_turn>|<｜[^>]{1,40}｜>)$',
  re.IGNORECASE,
)
_MAX_END_TOKEN = 44
# A mean score is in 1 to 10; OpenRLHF's `scores` are in 0 to 1.
_MIN_SCORE, _MAX_SCORE = 1, 10


def _label_text(label: Any) -> Any:
  """Returns a label as text; '' for null and for NaN, a missing number."""
  return label if isinstance(label, list | dict) else reference_text(label)


_Label = Annotated[
  Text,
  BeforeValidator(
    _label_text, json_schema_input_type=str | float | bool | None
  ),
]


class RewardRequest(BaseModel):
  """The request of OpenRLHF; it does not send `missing`, other clients can."""

  query: Annotated[list[Text], FailFast(), Field(min_length=1)]
  prompts: Annotated[list[Text] | None, FailFast()] = Field(
    default=None,
    description='The prompt that each query begins with; required.',
  )
  labels: Annotated[list[_Label] | None, FailFast()] = Field(
    default=None, description='Known correct answers; null for none.'
  )
  missing: Float = Field(
    default=0.0,
    description='The reward of a response without a judgement that parses.',
  )


class RewardResponse(BaseModel):
  """The response that OpenRLHF reads."""

  rewards: list[float] = Field(description='Mean scores, 1 to 10.')
  scores: list[float] = Field(
    description='The rewards scaled to 0 to 1, for dynamic filtering.'
  )
  extra_logs: dict[str, list[float]]


def parse(
  request: RewardRequest, max_texts: int, max_responses: int
) -> tuple[list[list[int]], list[ScoreRequest]]:
  """Groups texts with equal prompt and label into score requests.

  Args:
    request: the request.
    max_texts: maximum number of texts.
    max_responses: maximum number of responses of a score request.

  Returns:
    The text indices of each group, and the score request of each group.

  Raises:
    UserError: there are too many texts, the number of prompts or labels
      differs from the number of texts, or a text does not contain its prompt.
  """
  num_texts = len(request.query)
  if num_texts > max_texts:
    raise UserError(
      f'query has {num_texts} texts; the maximum of this server is {max_texts}'
    )
  if request.prompts is None:
    raise UserError(
      'prompts are missing, so the start of each response is unknown; OpenRLHF '
      'sends them since release 0.5'
    )
  labels = request.labels or [''] * num_texts
  for name, values in (('prompts', request.prompts), ('labels', labels)):
    if len(values) != num_texts:
      raise UserError(
        f'{len(values)} {name} for {num_texts} texts in query; send one for '
        'each text'
      )
  prompts = request.prompts
  groups = group_by_prompt(
    list(zip(prompts, labels, strict=True)), max_responses
  )
  score_requests = [
    ScoreRequest(
      query=prompts[indices[0]],
      responses=[_response(request.query[i], prompts[i], i) for i in indices],
      reference=labels[indices[0]],
    )
    for indices in groups
  ]
  return groups, score_requests


def _response(text: str, prompt: str, index: int) -> str:
  """Returns the text after the prompt, without control tokens at its end."""
  # Not `startswith`: a beginning-of-sequence token may precede the prompt.
  start = text.find(prompt)
  if start < 0:
    raise UserError(
      f'query {index} does not begin with its prompt; send the text of prompt '
      'and response together'
    )
  return _without_end_tokens(text[start + len(prompt) :])


def _without_end_tokens(response: str) -> str:
  """Removes control tokens at the end, with the spaces around them.

  It reads from the end and looks at a few characters at a time, so that long
  runs of spaces take linear time.
  """
  end = kept = len(response)
  while True:
    while end and response[end - 1].isspace():
      end -= 1
    token = _END_TOKEN.search(response[max(0, end - _MAX_END_TOKEN) : end])
    if token is None:
      return response[:kept]
    end -= len(token[0])
    while end and response[end - 1].isspace():
      end -= 1
    kept = end


def make_response(
  groups: Sequence[Sequence[int]],
  results: Sequence[ScoreResponse | ErrorResponse],
  missing: float,
) -> RewardResponse:
  """Returns a reward for each text, in the order of the request.

  Args:
    groups: text indices of each group, as returned by `parse`.
    results: the result of each group.
    missing: reward of a text without a score.
  """
  num_texts = sum(map(len, groups))
  rewards, failure_rates = [missing] * num_texts, [1.0] * num_texts
  for indices, result in zip(groups, results, strict=True):
    if isinstance(result, ErrorResponse):
      continue
    for i, index in enumerate(indices):
      failure_rates[index] = result.failures / len(result.samples)
      if result.scores is not None:
        rewards[index] = result.scores[i]
  scale = _MAX_SCORE - _MIN_SCORE
  return RewardResponse(
    rewards=rewards,
    scores=[min(1.0, max(0.0, (x - _MIN_SCORE) / scale)) for x in rewards],
    extra_logs={'parse_failures': failure_rates},
  )
