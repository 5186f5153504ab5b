"""Turns examples into engine requests, and generations into judgements.

  judgement requests -> orders -> prompts (one per order) -> engine requests
  generations -> texts -> scores -> judgements, grouped by example

Under balanced orders an example of n responses has at most n distinct prompts
for any number of samples, and each is computed once. If the template uses
principles, one generation writes them first, and all samples of the example
share them.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from grm_jax.errors import UserError
from grm_jax.judgement import response_order
from grm_jax.judgement.judgement import ExampleError, JudgedExample, Judgement
from grm_jax.judgement.judgement_request import JudgementRequest
from grm_jax.judgement.prompt_builder import PromptTokens
from grm_jax.judgement.prompt_format import PromptFormat
from grm_jax.judges import faults
from grm_jax.sampling.request import Generation, RejectedRequest, Request
from grm_jax.tokenizer import chat_format
from grm_jax.tokenizer.tokenizer import Tokenizer

Order = tuple[int, ...]
OnJudged = Callable[[int, JudgedExample | ExampleError], None]
OnSample = Callable[[int, int, Judgement], None]


@dataclasses.dataclass(frozen=True)
class RequestTag:
  """Tag of an engine request: what its generations are for.

  Attributes:
    example_number: number of the example in the stream of examples.
    example_id: id of the example.
    order: order of the responses; None for the request for principles.
    shortened: whether the prompt lacks text of the example.
  """

  example_number: int
  example_id: str
  order: Order | None
  shortened: bool


@dataclasses.dataclass(frozen=True)
class PromptBuilder:
  """Builds the prompts of examples.

  Attributes:
    judgement_format: prompts for judgements.
    principles_format: prompts for principles of examples without any; None if
      judgements use no principles.
    tokenizer: tokenizer of the model.
    limit: maximum length of a prompt, in tokens.
  """

  judgement_format: PromptFormat
  principles_format: PromptFormat | None
  tokenizer: Tokenizer
  limit: int

  def judgement_prompt(
    self, request: JudgementRequest, order: Order
  ) -> PromptTokens:
    """Returns the prompt for a judgement; UserError if it does not fit."""
    return self._tokenize(self.judgement_format, request, order, request.hint)

  def principles_prompt(self, request: JudgementRequest) -> PromptTokens:
    """Returns the prompt for principles; UserError if it does not fit."""
    assert self.principles_format is not None
    order = tuple(range(len(request.example.responses)))
    return self._tokenize(self.principles_format, request, order, hint=None)

  def _tokenize(self, prompt_format, request, order, hint):
    chat = functools.partial(chat_format.render_user, self.tokenizer)
    return prompt_format.tokenize(
      request.example, order, chat, limit=self.limit, hint=hint
    )


@dataclasses.dataclass
class PendingExample:
  """An example whose samples are being generated.

  Attributes:
    request: the judgement request.
    principles: principles that the judge wrote for it, '' if it wrote none.
    samples: judgements by sample index, None while missing.
    sample_indices: by order, the indices of the samples with this order.
    request_ids: ids of its engine requests.
  """

  request: JudgementRequest
  principles: str
  samples: list[Judgement | None]
  sample_indices: dict[Order, list[int]]
  request_ids: list[str]


class JudgementScheduler:
  """Keeps the examples that an engine is processing, numbered from 0."""

  def __init__(
    self,
    prompts: PromptBuilder,
    on_judged: OnJudged,
    on_sample: OnSample | None = None,
  ):
    """Starts without examples.

    Args:
      prompts: builds the prompts.
      on_judged: called once with the number and the result of every example.
      on_sample: called with an example's number, a sample index and the
        judgement, as soon as it is generated.
    """
    self._prompts = prompts
    self._on_judged, self._on_sample = on_judged, on_sample
    self._ready: collections.deque[Request] = collections.deque()
    # Examples whose principles are being written.
    self._awaiting_principles: dict[int, JudgementRequest] = {}
    self._pending: dict[int, PendingExample] = {}

  def requests(
    self, judgement_requests: Iterable[JudgementRequest | ExampleError | None]
  ) -> Iterator[Request | None]:
    """Yields the engine requests of every example, in the examples' order.

    Args:
      judgement_requests: read as the engine gets free. An ExampleError is the
        result of its example. None means that no example is ready, and is
        yielded as None.
    """
    number = 0
    for item in judgement_requests:
      if isinstance(item, ExampleError):
        self._on_judged(number, item)
      elif item is not None:
        self._schedule(number, item)
      number += item is not None
      while self._ready:
        yield self._ready.popleft()
      if item is None:
        yield None
    # Principles that are still being written lead to more requests.
    while self._ready or self._awaiting_principles:
      yield self._ready.popleft() if self._ready else None

  def drop(self, numbers: Iterable[int]) -> list[str]:
    """Cancels examples; they get no result.

    Returns:
      Ids of their requests that the engine may be processing.
    """
    request_ids = []
    for number in numbers:
      if self._awaiting_principles.pop(number, None) is not None:
        request_ids.append(_principles_id(number))
      pending = self._pending.pop(number, None)
      if pending is not None:
        request_ids += pending.request_ids
    if request_ids:
      self._ready = collections.deque(
        x for x in self._ready if x.id not in request_ids
      )
    return request_ids

  def collect(self, item: Generation | RejectedRequest) -> None:
    """Adds a result of the engine to its example."""
    tag = item.tag
    assert isinstance(tag, RequestTag)
    number = tag.example_number
    if number in self._awaiting_principles:
      self._collect_principles(number, item)
      return
    pending = self._pending.get(number)
    if pending is None:
      return  # another prompt of the example was rejected, or it was dropped
    try:
      if isinstance(item, RejectedRequest):
        raise UserError(item.reason)
      assert tag.order is not None
      index = pending.sample_indices[tag.order][item.sample]
      judgement = parse_judgement(
        item,
        tag.order,
        self._prompts.judgement_format,
        principles=pending.principles,
        shortened=tag.shortened,
      )
    except Exception as error:
      del self._pending[number]
      self._on_judged(number, faults.example_error(tag.example_id, error))
      return
    pending.samples[index] = judgement
    if self._on_sample is not None:
      self._on_sample(number, index, judgement)
    samples = tuple(x for x in pending.samples if x is not None)
    if len(samples) == len(pending.samples):
      del self._pending[number]
      self._on_judged(number, JudgedExample(pending.request.example, samples))

  def _schedule(
    self, number: int, request: JudgementRequest, principles: str = ''
  ) -> None:
    """Adds the next engine requests of an example to the ready ones."""
    example = request.example
    uses_principles = self._prompts.principles_format is not None
    try:
      if uses_principles and not example.principles:
        self._ready.append(self._principles_request(number, request))
        self._awaiting_principles[number] = request
      else:
        requests = self._judgement_requests(number, request, principles)
        self._ready.extend(requests)
    except Exception as error:
      self._on_judged(number, faults.example_error(example.id, error))

  def _principles_request(
    self, number: int, request: JudgementRequest
  ) -> Request:
    example_id = request.example.id
    prompt = self._prompts.principles_prompt(request)
    return _engine_request(
      request,
      id=_principles_id(number),
      prompt=prompt.tokens,
      num_samples=1,
      key=f'{example_id} principles',
      tag=RequestTag(number, example_id, None, prompt.shortened),
    )

  def _judgement_requests(
    self, number: int, request: JudgementRequest, principles: str
  ) -> list[Request]:
    """Returns one engine request per order; the example becomes pending."""
    example = request.example
    orders = response_order.orders(
      request.order,
      len(example.responses),
      max(1, request.k),
      request.seed,
      example.id,
    )
    sample_indices: dict[Order, list[int]] = {}
    for index, order in enumerate(orders):
      sample_indices.setdefault(order, []).append(index)
    prompts = [
      self._prompts.judgement_prompt(request, order) for order in sample_indices
    ]
    requests = [
      _engine_request(
        request,
        id=f'{number}:{i}',
        prompt=prompt.tokens,
        num_samples=len(indices),
        # The random draws depend on this string: do not change its form.
        key=f'{example.id} {",".join(map(str, order))}',
        tag=RequestTag(number, example.id, order, prompt.shortened),
      )
      for i, (prompt, (order, indices)) in enumerate(
        zip(prompts, sample_indices.items(), strict=True)
      )
    ]
    self._pending[number] = PendingExample(
      request=request,
      principles=principles,
      samples=[None] * len(orders),
      sample_indices=sample_indices,
      request_ids=[x.id for x in requests],
    )
    return requests

  def _collect_principles(
    self, number: int, item: Generation | RejectedRequest
  ) -> None:
    """Schedules the judgements of an example whose principles are written."""
    request = self._awaiting_principles.pop(number)
    if isinstance(item, RejectedRequest):
      self._on_judged(number, ExampleError(request.example.id, item.reason))
      return
    principles = (item.text or '').strip()
    if not principles:
      reason = 'the judge wrote no principles'
      self._on_judged(number, ExampleError(request.example.id, reason))
      return
    example = dataclasses.replace(request.example, principles=principles)
    request = dataclasses.replace(request, example=example)
    self._schedule(number, request, principles)


def parse_judgement(
  generation: Generation,
  order: Order,
  prompt_format: PromptFormat,
  principles: str = '',
  shortened: bool = False,
) -> Judgement:
  """Returns a generation with its parsed scores.

  Args:
    generation: from an engine with a detokenizer.
    order: order of the responses in its prompt.
    prompt_format: parses the scores.
    principles: principles that an earlier generation wrote; they come first
      in the text.
    shortened: whether the prompt lacks text of the example.

  Raises:
    FloatingPointError: the model computed NaN or an infinity.
  """
  if not np.isfinite(generation.model_logps).all():
    raise FloatingPointError(
      'the model computed a log-probability that is not finite'
    )
  assert generation.text is not None  # the engine has a detokenizer
  text = generation.text
  return Judgement(
    order=order,
    text=f'{principles}\n\n{text}' if principles else text,
    num_tokens=len(generation.tokens),
    finish=generation.finish,
    # A box inside the principles is not a score, so they are not parsed.
    scores=prompt_format.parse_scores(
      text, order, generation.finish == 'length'
    ),
    shortened=shortened,
    extraction_differs=prompt_format.extractions_differ(text, order),
  )


def _principles_id(number: int) -> str:
  return f'{number}:principles'


def _engine_request(request: JudgementRequest, **fields) -> Request:
  temperature = request.temperature if request.k else 0.0
  return Request(temperature=temperature, seed=request.seed, **fields)
