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
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

_RETRY_STATUSES = (429, 503)  # the queue is full, the server is restarting


@dataclasses.dataclass(frozen=True)
class RewardClient:
  """A client of one service.

  Attributes:
    url: address of the service, without a path.
    token: bearer token of the service; '' for none.
    group_size: maximum number of responses to one prompt that are judged
      together, at most config.limits.responses; 1 judges each alone.
    batch_size: maximum number of groups in an HTTP request, at most
      config.limits.batch.
    missing: reward of a response if no judgement parses; None raises an error.
    timeout_s: seconds to wait for an HTTP response.
    max_attempts: attempts per HTTP request while the service is full or
      restarting.
    options: other fields of a score request: k, temperature, order, seed, meta.
  """

  url: str
  token: str = ''
  group_size: int = 8
  batch_size: int = 64
  missing: float | None = None
  timeout_s: float = 900.0
  max_attempts: int = 30
  options: dict[str, Any] = dataclasses.field(default_factory=dict)

  def score(self, rows: Sequence[dict[str, Any]]) -> list[float]:
    """Returns the rewards of responses, in their order.

    Args:
      rows: {query or messages, response, reference (optional)}. Rows that
        differ only in the response are judged together.

    Raises:
      ValueError: the service rejects a row, or has no reward for it.
      OSError: the service cannot be reached.
    """
    rewards = [0.0] * len(rows)
    prompts = [json.dumps(_without_response(x), sort_keys=True) for x in rows]
    groups = group_by_prompt(prompts, self.group_size)
    for start in range(0, len(groups), self.batch_size):
      batch = groups[start : start + self.batch_size]
      requests = [self._score_request(rows, indices) for indices in batch]
      reply = self._post('/v1/score_batch', {'requests': requests})
      for indices, result in zip(batch, reply['results'], strict=True):
        if 'error' in result:
          raise ValueError(f'{self.url}: {result["error"]}')
        for i, index in enumerate(indices):
          rewards[index] = self._reward(result, i)
    return rewards

  def _score_request(self, rows, indices):
    return {
      **_without_response(rows[indices[0]]),
      **self.options,
      'responses': [rows[i]['response'] for i in indices],
    }

  def _reward(self, result, i) -> float:
    if result['scores'] is not None:
      return result['scores'][i]
    if self.missing is None:
      raise ValueError(
        f'no judgement of {result["id"]} parses; increase k, or set `missing` '
        'to a default reward'
      )
    return self.missing

  def _post(self, path, body) -> Any:
    """Posts JSON; retries while the service is full or restarting."""
    headers = {'Content-Type': 'application/json'}
    if self.token:
      headers['Authorization'] = f'Bearer {self.token}'
    data = json.dumps(body).encode()
    request = urllib.request.Request(self.url + path, data, headers)
    attempt = 0
    while True:
      attempt += 1
      try:
        with urllib.request.urlopen(request, timeout=self.timeout_s) as reply:
          return json.load(reply)
      except urllib.error.HTTPError as error:
        if error.code not in _RETRY_STATUSES or attempt == self.max_attempts:
          raise ValueError(f'{self.url}: {_error_message(error)}') from None
        time.sleep(float(error.headers.get('Retry-After', 1)))

  def trl(self) -> Callable[..., list[float]]:
    """Returns a TRL reward function: (prompts, completions, **columns).

    Prompts and completions are texts or lists of messages. An optional dataset
    column `reference` holds known correct answers.
    """

    # TRL logs the reward under the name of this function.
    def grm_reward(prompts, completions, reference=None, **unused):
      references = reference or [''] * len(prompts)
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


def _without_response(row: dict[str, Any]) -> dict[str, Any]:
  return {key: value for key, value in row.items() if key != 'response'}


def _error_message(error: urllib.error.HTTPError) -> str:
  try:
    return json.load(error)['error']
  except (ValueError, KeyError, TypeError):  # not from the service: a proxy
    return f'HTTP {error.code}'


def _make_row(
  prompt: str | list[dict], response: str, reference: Any
) -> dict[str, Any]:
  row: dict[str, Any] = {'response': response}
  if isinstance(prompt, str):
    row['query'] = prompt
  else:
    row['messages'] = [
      {'role': turn['role'], 'content': turn['content']} for turn in prompt
    ]
  return row | ({'reference': str(reference)} if reference else {})


def _completion_text(completion: str | list[dict]) -> str:
  """Returns the text, or the content of the last message."""
  return (
    completion if isinstance(completion, str) else completion[-1]['content']
  )


def verl_batch(
  data_sources: Iterable[str],
  solution_strs: Sequence[str],
  ground_truths: Sequence[Any],
  extra_infos: Sequence[dict[str, Any] | None],
  *,
  url: str,
  query: str = 'question',
  reference: bool = False,
  **client_options: Any,
) -> list[float]:
  """Returns the rewards of a batch, for verl's batch reward manager.

  Args:
    data_sources: not used.
    solution_strs: responses.
    ground_truths: known correct answers.
    extra_infos: extra_info of the dataset rows.
    url: address of the service.
    query: key of extra_info that holds the prompt, a text or messages.
    reference: whether the judge sees the known correct answer.
    **client_options: `token`, `group_size` and `missing` of RewardClient; any
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
    rows.append(_make_row(extra[query], response, answer if reference else ''))
  settings = {
    name: client_options.pop(name)
    for name in ('token', 'group_size', 'missing')
    if name in client_options
  }
  client = RewardClient(url, **settings, options=client_options)
  return client.score(rows)


def verl(
  data_source: str,
  solution_str: str,
  ground_truth: Any,
  extra_info: dict[str, Any] | None = None,
  **kwargs: Any,
) -> float:
  """Returns the reward of one response, judged alone; see verl_batch."""
  (reward,) = verl_batch(
    [data_source], [solution_str], [ground_truth], [extra_info], **kwargs
  )
  return reward
