"""What clients of the service send and get."""

import dataclasses
import hashlib
import json
import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from grm_jax.errors import UserError
from grm_jax.judgement import example as examples
from grm_jax.judgement import sections
from grm_jax.judgement import voting as voting_module
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.judgement import JudgedExample, Judgement
from grm_jax.judgement.judgement_request import JudgementRequest
from grm_jax.judgement.verdict import VoteConfig, counted, verdict
from grm_jax.serving.limits import ServerLimits


def _whole(text: str) -> str:
  """JSON can hold half a surrogate pair, which no tokenizer or answer can."""
  try:
    text.encode()
  except UnicodeEncodeError:
    raise UserError('the text has half of a surrogate pair') from None
  return text


Text = Annotated[str, AfterValidator(_whole)]


class Message(BaseModel):
  """A turn of the conversation."""

  model_config = ConfigDict(extra='forbid')
  role: Literal['system', 'user', 'assistant']
  content: Text


class ScoreRequest(BaseModel):
  """Responses to judge. Give `query` or `messages`; the rest has defaults."""

  model_config = ConfigDict(
    extra='forbid',
    json_schema_extra={
      'examples': [
        {
          'query': 'What is 2 + 3?',
          'responses': ['2 + 3 = 5.', 'It is 6.'],
          'k': 2,
        }
      ]
    },
  )
  query: Text | None = Field(None, description='What the user asked.')
  messages: list[Message] | None = Field(
    None, description='A whole conversation, which ends with the user.'
  )
  responses: Annotated[
    list[Text], Field(min_length=1, description='Candidates; one or more.')
  ]
  id: Text | None = Field(
    None,
    description=(
      'The draws depend on it and on the seed. By default it is made from what '
      'is judged: the same request has the same answer.'
    ),
  )
  k: int | None = Field(
    None, ge=0, description='Judgements to sample; 0 is one greedy judgement.'
  )
  temperature: float | None = Field(None, ge=0, allow_inf_nan=False)
  order: Literal['balanced', 'random', 'fixed'] | None = Field(
    None, description='In which the judge sees the responses.'
  )
  seed: int | None = None
  meta: bool | None = Field(
    None, description='Whether the meta RM picks the judgements that count.'
  )
  k_meta: int | None = Field(
    None, ge=0, description='How many it picks; 0 is half of k.'
  )
  principles: Text = Field('', description='What to judge by.')
  reference: Text = Field('', description='An answer known to be right.')
  stream: bool = Field(
    False, description='Send each judgement as it is written, as events.'
  )


class BatchRequest(BaseModel):
  """Many requests at once; none of them streams."""

  model_config = ConfigDict(extra='forbid')
  requests: Annotated[list[ScoreRequest], Field(min_length=1)]


class Sample(BaseModel):
  """One judgement."""

  place: int = Field(description='Which of the k it is, from 0.')
  order: list[int] = Field(
    description='order[i] is the response that was shown as number i + 1.'
  )
  scores: list[float] | None = Field(
    description='One per response, in your order; null if it does not parse.'
  )
  principles: str
  critique: str
  text: str = Field(description='All that was written.')
  tokens: int
  finish: str = Field(description='"stop", or "length" if it was cut off.')
  meta: float | None = Field(description="The meta RM's opinion of it.")


class Timings(BaseModel):
  """Of one request."""

  queued_seconds: float
  seconds: float = Field(description='In all, from the request on.')


class ScoreResponse(BaseModel):
  """Votes, what they come from, and how long it took."""

  id: str
  votes: list[float] | None = Field(
    description='One per response; null if no judgement parses.'
  )
  scores: list[float] | None = Field(
    description='Mean score of each response over judgements that parse.'
  )
  best: int | None = Field(description='The winner; one of the winners by lot.')
  winners: list[int]
  failures: int = Field(description='Judgements that do not parse.')
  samples: list[Sample]
  counted: list[int] = Field(
    description='Places of the judgements whose scores are in the votes.'
  )
  timings: Timings


class ErrorResponse(BaseModel):
  """Why there is no answer, and what to do."""

  error: str


class BatchResponse(BaseModel):
  """An answer or a refusal for each request, in their order."""

  results: list[ScoreResponse | ErrorResponse]


@dataclasses.dataclass(frozen=True)
class Defaults:
  """What requests leave open.

  Attributes:
    k, order, temperature, seed: see judgement/judgement_request.py.
    voting: how samples vote.
    has_meta: whether there is a meta RM to ask.
  """

  k: int
  order: str
  temperature: float
  seed: int
  voting: VoteConfig
  has_meta: bool


def read(
  request: ScoreRequest, defaults: Defaults, limits: ServerLimits
) -> tuple[JudgementRequest, VoteConfig]:
  """What is asked of the judge, and how its samples vote.

  Raises:
    UserError: the request is no example, or more than the limits allow.
  """
  example = _example(request)
  limits.check_example(example)
  asked = JudgementRequest(
    example,
    _given(request.k, defaults.k),
    _given(request.order, defaults.order),
    _given(request.temperature, defaults.temperature),
    _given(request.seed, defaults.seed),
  )
  limits.check_samples(asked.k)
  return asked, _voting(request, defaults)


def _given(value, default):
  return default if value is None else value


def _example(request) -> JudgingExample:
  row = request.model_dump(
    include={'query', 'messages', 'responses', 'principles', 'reference', 'id'},
    exclude_none=True,
  )
  row.setdefault('id', _digest(row))
  return examples.from_row(row, 0)


def _digest(row: dict[str, Any]) -> str:
  data = json.dumps(row, sort_keys=True).encode()
  return hashlib.blake2b(data, digest_size=12).hexdigest()


def _voting(request, defaults) -> VoteConfig:
  kind = defaults.voting.kind
  if request.meta is not None:
    kind = 'guided' if request.meta else 'sum'
  made = VoteConfig(kind, _given(request.k_meta, defaults.voting.k_meta))
  if made.needs_meta and not defaults.has_meta:
    raise UserError('meta is true, and this server has no meta RM')
  return made


def sample(place: int, found: Judgement) -> Sample:
  """A judgement for the client."""
  principles, critique = sections.split(found.text)
  return Sample(
    place=place,
    order=found.order,
    scores=found.scores,
    principles=principles,
    critique=critique,
    text=found.text,
    tokens=found.num_tokens,
    finish=found.finish,
    meta=_finite(found.meta),
  )


def _finite(value: float | None) -> float | None:
  """JSON has no other numbers."""
  return value if value is not None and math.isfinite(value) else None


def response(
  judged: JudgedExample, voting: VoteConfig, seed: int, timings: Timings
) -> ScoreResponse:
  """The answer to a request."""
  parsed = [x.scores for x in judged.samples]
  return ScoreResponse(
    **verdict(judged, voting, seed),
    scores=voting_module.mean(parsed, len(judged.example.responses)),
    samples=[sample(i, x) for i, x in enumerate(judged.samples)],
    counted=counted(judged, voting),
    timings=timings,
  )
