"""JSON schemas of requests and responses."""

import dataclasses
import hashlib
import json
import math
from typing import Annotated, Any, Literal

from pydantic import (
  AfterValidator,
  AllowInfNan,
  BaseModel,
  BeforeValidator,
  ConfigDict,
  FailFast,
  Field,
  StrictBool,
  model_validator,
)

from grm_jax.errors import UserError
from grm_jax.io import terminal
from grm_jax.judgement import example as examples
from grm_jax.judgement import sections, temperature_range, voting
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.judgement import JudgedExample, Judgement
from grm_jax.judgement.judgement_request import JudgementRequest
from grm_jax.judgement.verdict import VoteConfig, counted_samples, verdict
from grm_jax.serving.limits import ServerLimits


def _check_unicode(text: str) -> str:
  """Rejects unpaired surrogates: valid in JSON, but not encodable as UTF-8."""
  try:
    text.encode()
  except UnicodeEncodeError:
    raise UserError('the text has an unpaired surrogate; remove it') from None
  return text


def _check_number(value: Any) -> Any:
  """Rejects booleans and texts, which pydantic would convert to numbers."""
  if isinstance(value, bool | str):
    raise UserError(f'{value!r} is not a number; send it as a JSON number')
  return value


Text = Annotated[str, AfterValidator(_check_unicode)]
Int = Annotated[int, BeforeValidator(_check_number)]
Float = Annotated[
  float, BeforeValidator(_check_number), AllowInfNan(allow_inf_nan=False)
]
# An error message holds texts of the request, so it is cut and escaped.
Reason = Annotated[str, AfterValidator(terminal.short)]


class RequestModel(BaseModel):
  """Base of all parts of a request: no field that is not listed."""

  model_config = ConfigDict(extra='forbid')

  @model_validator(mode='before')
  @classmethod
  def _check_names(cls, data: Any) -> Any:
    """Rejects the first unknown field.

    Pydantic would report all of them, and a body can have 500,000.
    """
    for name in data if isinstance(data, dict) else ():
      if name not in cls.model_fields:
        raise UserError(f'{name!r} is not a field')
    return data


class Message(RequestModel):
  """A turn of a conversation."""

  role: Literal['system', 'user', 'assistant']
  content: Text


class ScoreRequest(RequestModel):
  """Responses to judge. `query` or `messages` is required."""

  model_config = ConfigDict(
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
  query: Text | None = Field(default=None, description="The user's question.")
  messages: Annotated[list[Message] | None, FailFast()] = Field(
    default=None, description='A conversation that ends with a user turn.'
  )
  responses: Annotated[
    list[Text],
    FailFast(),
    Field(min_length=1, description='One or more responses to judge.'),
  ]
  id: Text | None = Field(
    default=None,
    description=(
      'Samples depend on the id and the seed. The default is a hash of the '
      'texts, so the same request has the same result.'
    ),
  )
  k: Int | None = Field(
    default=None,
    ge=0,
    description='Number of sampled judgements; 0 for one greedy judgement.',
  )
  temperature: Float | None = Field(
    default=None,
    ge=0,
    le=temperature_range.MAX,
    description=f'Of sampling; below {temperature_range.MIN:g} is greedy.',
  )
  order: Literal['balanced', 'random', 'fixed'] | None = Field(
    default=None, description='Order in which the judge sees the responses.'
  )
  seed: Int | None = Field(
    default=None, ge=0, lt=2**64, description='Seed of sampling.'
  )
  meta: StrictBool | None = Field(
    default=None,
    description='Whether the meta RM selects the judgements that vote.',
  )
  k_meta: Int | None = Field(
    default=None,
    ge=0,
    description=(
      'Number of judgements the meta RM selects, at most k; 0 for half of k. '
      'It needs a vote by the meta RM.'
    ),
  )
  principles: Text = Field(default='', description='Principles to judge by.')
  reference: Text = Field(default='', description='A known correct answer.')
  stream: StrictBool = Field(
    default=False,
    description='Send each judgement when it is finished, as an event.',
  )


class BatchRequest(RequestModel):
  """Many requests; none of them can stream."""

  requests: Annotated[list[ScoreRequest], FailFast(), Field(min_length=1)]


class Sample(BaseModel):
  """One judgement."""

  place: int = Field(description='Index of the judgement, from 0 to k - 1.')
  order: list[int] = Field(
    description='order[i] is the index of the response shown as number i + 1.'
  )
  scores: list[float] | None = Field(
    description=(
      'A score per response, in the order of the request; null if the '
      'judgement does not parse.'
    )
  )
  principles: str
  critique: str
  text: str = Field(description='The whole generation.')
  tokens: int = Field(description='Length of the generation.')
  finish: str = Field(
    description='"stop", or "length" if the generation was truncated.'
  )
  meta: float | None = Field(description="The meta RM's score; null if none.")
  shortened: bool = Field(
    description='Whether texts were shortened to fit the prompt.'
  )


class Timings(BaseModel):
  """Durations of one request."""

  queued_seconds: float = Field(description='Time in the queue.')
  seconds: float = Field(description='Time from arrival to result.')


class ScoreResponse(BaseModel):
  """The votes, the judgements behind them, and durations."""

  id: str
  votes: list[float] | None = Field(
    description='Combined vote per response; null if no judgement parses.'
  )
  scores: list[float] | None = Field(
    description='Mean score per response over the judgements that parse.'
  )
  best: int | None = Field(
    description='Index of the winner; a random one of the winners if tied.'
  )
  winners: list[int] = Field(description='All responses with the top vote.')
  failures: int = Field(description='Number of judgements that do not parse.')
  samples: list[Sample]
  counted: list[int] = Field(
    description='Indices of the judgements whose scores are in the votes.'
  )
  timings: Timings


class ErrorResponse(BaseModel):
  """The reason of a failure and how to fix it."""

  error: Reason


class BatchResponse(BaseModel):
  """A result or an error for each request, in the same order."""

  results: list[ScoreResponse | ErrorResponse]


@dataclasses.dataclass(frozen=True)
class Defaults:
  """Values of fields that a request leaves out.

  Attributes:
    k: number of samples.
    order: order of the responses.
    temperature: sampling temperature.
    seed: seed of sampling.
    voting: how samples vote.
    has_meta: whether the server has a meta RM.
  """

  k: int
  order: str
  temperature: float
  seed: int
  voting: VoteConfig
  has_meta: bool


def parse(
  request: ScoreRequest, defaults: Defaults, limits: ServerLimits
) -> tuple[JudgementRequest, VoteConfig]:
  """Returns the request for the judge and the vote over its samples.

  Args:
    request: the request.
    defaults: values of fields that the request leaves out.
    limits: limits that the request must not exceed.

  Raises:
    UserError: the request is invalid or exceeds a limit.
  """
  example = _make_example(request)
  limits.check_example(example)
  judgement_request = JudgementRequest(
    example,
    _or_default(request.k, defaults.k),
    _or_default(request.order, defaults.order),
    _or_default(request.temperature, defaults.temperature),
    _or_default(request.seed, defaults.seed),
  )
  limits.check_samples(judgement_request.k)
  return judgement_request, _vote_config(request, judgement_request.k, defaults)


def _or_default(value, default):
  return default if value is None else value


def _make_example(request) -> JudgingExample:
  row = request.model_dump(
    include={'query', 'messages', 'responses', 'principles', 'reference', 'id'},
    exclude_none=True,
  )
  row.setdefault('id', _content_hash(row))
  return examples.from_row(row, 0)


def _content_hash(row: dict[str, Any]) -> str:
  data = json.dumps(row, sort_keys=True).encode()
  return hashlib.blake2b(data, digest_size=12).hexdigest()


def _vote_config(request, k, defaults) -> VoteConfig:
  kind = defaults.voting.kind
  if request.meta is not None and request.meta != defaults.voting.needs_meta:
    kind = 'guided' if request.meta else 'sum'
  if VoteConfig(kind).needs_meta and not defaults.has_meta:
    raise UserError(
      'meta is true, but this server has no meta RM; leave meta out, or start '
      'the server with config.meta_checkpoint'
    )
  if request.k_meta:
    return VoteConfig(kind, _checked_k_meta(request.k_meta, k, kind))
  # The server's k_meta is for its own k.
  k_meta = defaults.voting.k_meta if request.k_meta is None else 0
  return VoteConfig(kind, k_meta if k_meta <= k and kind == 'guided' else 0)


def _checked_k_meta(k_meta: int, k: int, kind: str) -> int:
  if k_meta > k:
    raise UserError(
      f'k_meta is {k_meta}, and k is {k}; the meta RM selects at most k '
      'judgements'
    )
  if kind != 'guided':
    raise UserError(
      f'k_meta is {k_meta}, but it has no effect because the vote is {kind}; '
      'set meta to true on a server that has a meta RM, or leave k_meta out'
    )
  return k_meta


def make_sample(place: int, judgement: Judgement) -> Sample:
  """Returns the JSON form of a judgement."""
  principles, critique = sections.split(judgement.text)
  scores = judgement.scores
  return Sample(
    place=place,
    order=list(judgement.order),
    scores=None if scores is None else list(scores),
    principles=principles,
    critique=critique,
    text=judgement.text,
    tokens=judgement.num_tokens,
    finish=judgement.finish,
    meta=_finite_or_none(judgement.meta),
    shortened=judgement.shortened,
  )


def _finite_or_none(value: float | None) -> float | None:
  """Returns None for infinities and NaN, which JSON cannot represent."""
  return value if value is not None and math.isfinite(value) else None


def make_response(
  judged: JudgedExample, vote_config: VoteConfig, seed: int, timings: Timings
) -> ScoreResponse:
  """Returns the JSON form of a judged example."""
  sample_scores = [x.scores for x in judged.samples]
  num_responses = len(judged.example.responses)
  scores = voting.mean_scores(sample_scores, num_responses)
  return ScoreResponse(
    **verdict(judged, vote_config, seed),
    scores=None if scores is None else list(scores),
    samples=[make_sample(i, x) for i, x in enumerate(judged.samples)],
    counted=list(counted_samples(judged, vote_config)),
    timings=timings,
  )
