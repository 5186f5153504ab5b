r"""Clients that use the service as the reward of an RL run: TRL and verl.

Only the standard library is needed; copy this file to machines without grm_jax.

TRL (a reward function for GRPOTrainer and other trainers):

  reward = RewardClient('http://127.0.0.1:8080').trl()
  GRPOTrainer(reward_funcs=[reward], ...)

verl (a function in a file; `batch` reward managers call it once per batch, the
others once per response):

  custom_reward_function.path=grm_jax/serving/reward_client.py
  custom_reward_function.name=verl_batch  # or verl
  +custom_reward_function.reward_kwargs.url=http://127.0.0.1:8080

OpenRLHF needs no client: --remote_rm_url http://127.0.0.1:8080/openrlhf

The reward of a response is its mean score over the judgements that parse, 1 to
10. Responses to the same prompt are judged together, so that their scores are
on one scale. `missing` is the reward if no judgement parses.
"""

import dataclasses
import datetime
import email.utils
import http.client
import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

# The upload was too slow, the queue is full, a proxy finds no server, the
# server is restarting.
_RETRY_STATUSES = (408, 429, 502, 503)
# The body is too large, or has too many examples: a part of it may pass.
_SPLIT_STATUSES = (413, 422)
_MAX_BACKOFF_S = 30.0
_ENDPOINTS = ('/v1/score_batch', '/v1/score', '/openrlhf')
# Texts of missing numbers in NumPy and pandas.
_MISSING_NUMBERS = ('nan', '<na>', 'nat')


@dataclasses.dataclass(frozen=True)
class RewardClient:
  """A client of one service.

  Attributes:
    url: address of the service, with the path prefix of a proxy if there is
      one. The path of an endpoint is ignored.
    token: bearer token of the service; '' for none.
    group_size: maximum number of responses to one prompt that are judged
      together, at most config.limits.responses; 1 judges each alone.
    batch_size: maximum number of groups in an HTTP request. A request above
      config.limits.batch is split.
    body_bytes: maximum size of an HTTP request. A request above
      config.limits.body_bytes, or above the limit of a proxy, is split.
    missing: reward of a response if no judgement parses. TRL leaves a reward of
      None out.
    timeout_s: seconds to wait for an HTTP response.
    max_attempts: attempts per HTTP request while the service is full,
      restarting or out of reach.
    backoff_s: seconds before the second attempt, if the service states none;
      doubled for each further one, up to 30.
    options: other fields of a score request: k, temperature, order, seed, meta.
  """

  url: str
  token: str = ''
  group_size: int = 8
  batch_size: int = 64
  body_bytes: int = 4_000_000
  missing: float | None = None
  timeout_s: float = 900.0
  max_attempts: int = 30
  backoff_s: float = 1.0
  options: dict[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    if not self.url.strip().startswith(('http://', 'https://')):
      raise ValueError(f'url is {self.url!r}; begin it with http://')

  def score(self, rows: Sequence[dict[str, Any]]) -> list[float | None]:
    """Returns the rewards of responses, in their order.

    Args:
      rows: {query or messages, response, reference (optional)}. Rows that
        differ only in the response are judged together. A reference of None or
        NaN is none.

    Raises:
      ValueError: the service rejects a row, or a row is too large.
      OSError: the service cannot be reached.
    """
    rewards: list[float | None] = [self.missing] * len(rows)
    prompts = [_without_response(x) for x in rows]
    keys = [json.dumps(x, sort_keys=True) for x in prompts]
    groups = group_by_prompt(keys, self.group_size)
    score_requests = [
      {
        **prompts[indices[0]],
        **self.options,
        'responses': [rows[i]['response'] for i in indices],
      }
      for indices in groups
    ]
    results = self._judge([json.dumps(x).encode() for x in score_requests])
    for indices, result in zip(groups, results, strict=True):
      if 'error' in result:
        raise ValueError(f'{self.url}: {result["error"]}')
      if result['scores'] is not None:
        for index, reward in zip(indices, result['scores'], strict=True):
          rewards[index] = reward
    return rewards

  def _judge(self, score_requests: Sequence[bytes]) -> list[dict[str, Any]]:
    """Returns the result of each encoded score request, in their order."""
    results = []
    for start, end in _batches(
      [len(x) for x in score_requests], self.batch_size, self.body_bytes
    ):
      results += self._judge_batch(score_requests[start:end])
    return results

  def _judge_batch(self, batch: Sequence[bytes]) -> list[dict[str, Any]]:
    """Posts a batch; splits it in two if the service refuses it as a whole."""
    body = _BODY_START + b','.join(batch) + _BODY_END
    try:
      return _results(self._post('/v1/score_batch', body), len(batch))
    except urllib.error.HTTPError as error:
      if error.code not in _SPLIT_STATUSES or len(batch) == 1:
        raise ValueError(f'{self.url}: {_error_message(error)}') from None
    except ValueError as error:
      raise ValueError(f'{self.url}: {error}') from None
    middle = len(batch) // 2
    return self._judge_batch(batch[:middle]) + self._judge_batch(batch[middle:])

  def _post(self, path: str, body: bytes) -> bytes:
    """Posts JSON; retries while the service is full or out of reach.

    Raises:
      HTTPError: the service refuses the request.
      ConnectionError: the service cannot be reached.
    """
    headers = {'Content-Type': 'application/json'}
    if self.token:
      headers['Authorization'] = f'Bearer {self.token}'
    request = urllib.request.Request(_base_url(self.url) + path, body, headers)
    wait_s = self.backoff_s
    for attempts_left in reversed(range(self.max_attempts)):
      retry_after = None
      try:
        with urllib.request.urlopen(request, timeout=self.timeout_s) as reply:
          return reply.read()
      except urllib.error.HTTPError as error:
        if error.code not in _RETRY_STATUSES or not attempts_left:
          raise
        retry_after = error.headers.get('Retry-After')
      except (OSError, http.client.HTTPException) as error:
        if not attempts_left:
          raise ConnectionError(
            f'{self.url} cannot be reached ({error}), attempts: '
            f'{self.max_attempts}; check the address and whether it runs'
          ) from error
      time.sleep(min(_wait_s(retry_after, wait_s), self.timeout_s))
      wait_s = min(2 * wait_s, _MAX_BACKOFF_S)
    raise ValueError(
      f'max_attempts is {self.max_attempts}; set it to 1 or more'
    )

  def trl(self) -> Callable[..., list[float | None]]:
    """Returns a TRL reward function: (prompts, completions, **columns).

    Prompts and completions are texts or lists of messages. An optional dataset
    column `reference` holds known correct answers.
    """

    # TRL logs the reward under the name of this function.
    def grm_reward(prompts, completions, reference=None, **unused):
      references = [None] * len(prompts) if reference is None else reference
      return self.score(
        [
          _make_row(prompt, _completion_text(completion), answer)
          for prompt, completion, answer in zip(
            prompts, completions, references, strict=True
          )
        ]
      )

    return grm_reward


def group_by_prompt(
  prompts: Sequence[Hashable], max_size: int
) -> list[list[int]]:
  """Returns the indices of equal prompts in groups of at most `max_size`."""
  indices_of: dict[Hashable, list[int]] = {}
  for index, prompt in enumerate(prompts):
    indices_of.setdefault(prompt, []).append(index)
  return [
    indices[start : start + max_size]
    for indices in indices_of.values()
    for start in range(0, len(indices), max_size)
  ]


_RESULT_KEYS = {'error', 'scores'}
_BODY_START, _BODY_END = b'{"requests":[', b']}'


def _batches(
  sizes: Sequence[int], max_count: int, max_bytes: int
) -> list[tuple[int, int]]:
  """Returns (start, end) of consecutive score requests that fit in one body.

  Args:
    sizes: bytes of each encoded score request.
    max_count: maximum number of score requests in a body.
    max_bytes: maximum size of a body.

  Raises:
    ValueError: a score request alone is too large.
  """
  room = max_bytes - len(_BODY_START) - len(_BODY_END)
  batches, start, total = [], 0, 0
  for i, size in enumerate(sizes):
    if size > room:
      raise ValueError(
        f'the responses to a prompt have {size} bytes, and a request can have '
        f'{max_bytes}; shorten them, or reduce group_size'
      )
    if i - start == max_count or total + size > room:
      batches.append((start, i))
      start, total = i, 0
    total += size + 1  # a comma
  return [*batches, (start, len(sizes))] if sizes else []


def _base_url(url: str) -> str:
  """Returns the URL without the path of an endpoint and a slash at its end."""
  url = url.strip().rstrip('/')
  for endpoint in _ENDPOINTS:
    url = url.removesuffix(endpoint)
  return url.rstrip('/')


def _wait_s(retry_after: str | None, default: float) -> float:
  """Returns the seconds of a Retry-After header, a number or an HTTP date."""
  text = (retry_after or '').strip()
  try:
    seconds = float(text)
  except ValueError:
    try:
      date = email.utils.parsedate_to_datetime(text)
    except (ValueError, IndexError, OverflowError):
      return default
    if date.tzinfo is None:  # "-0000" means UTC
      date = date.replace(tzinfo=datetime.UTC)
    seconds = (date - datetime.datetime.now(datetime.UTC)).total_seconds()
  return max(0.0, seconds) if math.isfinite(seconds) else default


def _without_response(row: dict[str, Any]) -> dict[str, Any]:
  """Returns the fields of a score request that all responses share."""
  prompt = {key: value for key, value in row.items() if key != 'response'}
  reference = reference_text(prompt.pop('reference', None))
  if reference:
    prompt['reference'] = reference
  if prompt.get('messages') is not None:
    prompt['messages'] = [
      {'role': turn['role'], 'content': _content_text(turn)}
      for turn in prompt['messages']
    ]
  return prompt


def reference_text(reference: Any) -> str:
  """Returns a known answer as text; '' for None and NaN, but '0' for 0."""
  text = '' if reference is None else str(reference)
  is_number = not isinstance(reference, str)
  return '' if is_number and text.lower() in _MISSING_NUMBERS else text


def _results(reply: bytes, count: int) -> list[dict[str, Any]]:
  """Returns the results of `count` score requests.

  Raises:
    ValueError: the reply is not one of the service.
  """
  try:
    results = json.loads(reply)['results']
    if len(results) == count and all(x.keys() & _RESULT_KEYS for x in results):
      return results
  except (ValueError, KeyError, TypeError, AttributeError):
    pass
  raise ValueError(
    f'not a reply of grm_jax to {count} requests: {reply[:80]!r}; check the '
    'address'
  )


def _error_message(error: urllib.error.HTTPError) -> str:
  try:
    return json.load(error)['error']
  # Not from the service but from a proxy, or cut off.
  except (ValueError, KeyError, TypeError, OSError, http.client.HTTPException):
    return f'HTTP {error.code}'


def _make_row(
  prompt: str | list[dict], response: str, reference: Any
) -> dict[str, Any]:
  kind = 'query' if isinstance(prompt, str) else 'messages'
  return {kind: prompt, 'response': response, 'reference': reference}


def _completion_text(completion: str | list[dict]) -> str:
  """Returns the text, or the content of the last message."""
  if isinstance(completion, str):
    return completion
  return _content_text(completion[-1]) if len(completion) else ''


def _content_text(message: dict) -> str:
  """Returns the text of a message; '' for one of tool calls alone."""
  content = message.get('content')
  if content is None or isinstance(content, str):
    return content or ''
  return ''.join(part.get('text') or '' for part in content)


def verl_batch(
  data_sources: Iterable[str],
  solution_strs: Sequence[str],
  ground_truths: Sequence[Any],
  extra_infos: Sequence[dict[str, Any] | None],
  *,
  url: str,
  query: str = 'question',
  reference: bool = False,
  missing: float = 0.0,
  **client_options: Any,
) -> list[float | None]:
  """Returns the rewards of a batch, for verl's batch reward manager.

  Args:
    data_sources: not used.
    solution_strs: responses.
    ground_truths: known correct answers.
    extra_infos: extra_info of the dataset rows.
    url: address of the service.
    query: key of extra_info that holds the prompt, a text or messages.
    reference: whether the judge sees the known correct answer.
    missing: reward of a response if no judgement parses.
    **client_options: other attributes of RewardClient, such as `token`; any
      other is a field of the score request, such as k.

  Raises:
    ValueError: extra_info has no such key, or the service rejects a row.
  """
  rows = []
  for response, answer, extra in zip(
    solution_strs, ground_truths, extra_infos, strict=True
  ):
    if not extra or query not in extra:
      raise ValueError(
        f'extra_info has no key {query!r}; set the key of the prompt in '
        'custom_reward_function.reward_kwargs.query'
      )
    known_answer = answer if reference else None
    rows.append(_make_row(extra[query], response, known_answer))
  settings = {
    field.name: client_options.pop(field.name)
    for field in dataclasses.fields(RewardClient)
    if field.name in client_options
  }
  settings['options'] = settings.get('options', {}) | client_options
  client = RewardClient(url, missing=missing, **settings)
  return client.score(rows)


def verl(
  data_source: str,
  solution_str: str,
  ground_truth: Any,
  extra_info: dict[str, Any] | None = None,
  **kwargs: Any,
) -> float | None:
  """Returns the reward of one response, judged alone; see verl_batch."""
  (reward,) = verl_batch(
    [data_source], [solution_str], [ground_truth], [extra_info], **kwargs
  )
  return reward
