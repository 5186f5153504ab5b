r"""The service as the reward of another RL run: TRL and verl.

Needs the standard library only: on machines without grm_jax copy this file.

TRL (a reward function of GRPOTrainer and others):

  reward = Rewards('http://127.0.0.1:8080').trl()
  GRPOTrainer(reward_funcs=[reward], ...)

verl (a function of a file, called for each batch by the `batch` manager, or for
each response by the others):

  custom_reward_function.path=grm_jax/serving/reward_client.py
  custom_reward_function.name=verl_batch  # or verl
  +custom_reward_function.reward_kwargs.url=http://127.0.0.1:8080

OpenRLHF asks the service itself: --remote_rm_url http://127.0.0.1:8080/openrlhf

A reward is the mean score of a response over the judgements that parse, 1 to
10. Responses to one prompt are judged together, as a GRM can: scores of a group
are then on one scale. Where no judgement parses there is no reward: `missing`.
"""

import dataclasses
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

_BUSY = (429, 503)


@dataclasses.dataclass(frozen=True)
class RewardClient:
  """A service, and how it is asked.

  Attributes:
    url: where it is, without a path.
    token: that it asks for.
    together: most responses to one prompt that are judged together; 1 judges
      each alone. No more than config.limits.responses.
    batch: most prompts of a request; no more than config.limits.batch.
    missing: the reward where no judgement parses; None raises an error.
    seconds: to wait for a request.
    tries: of a request while the service is full or starts anew.
    how: k, temperature, order, seed, meta: as in a request.
  """

  url: str
  token: str = ''
  together: int = 8
  batch: int = 64
  missing: float | None = None
  seconds: float = 900.0
  tries: int = 30
  how: dict[str, Any] = dataclasses.field(default_factory=dict)

  def of(self, rows: Sequence[dict[str, Any]]) -> list[float]:
    """Rewards of responses, in their order.

    Args:
      rows: {query | messages, response[, reference]}; those that differ in
        nothing but the response are judged together.

    Raises:
      ValueError: the service refuses one of them, or has no reward for it.
      OSError: the service is not there.
    """
    rewards: list[float | None] = [None] * len(rows)
    prompts = [json.dumps(_rest(row), sort_keys=True) for row in rows]
    groups = together(prompts, self.together)
    for first in range(0, len(groups), self.batch):
      some = groups[first : first + self.batch]
      asked = [self._request(rows, places) for places in some]
      answers = self._post('/v1/score_batch', {'requests': asked})['results']
      for places, answer in zip(some, answers, strict=True):
        if 'error' in answer:
          raise ValueError(f'{self.url}: {answer["error"]}')
        for i, place in enumerate(places):
          rewards[place] = self._reward(answer, i)
    return rewards

  def _request(self, rows, places):
    responses = [rows[place]['response'] for place in places]
    return {**_rest(rows[places[0]]), **self.how, 'responses': responses}

  def _reward(self, answer, i) -> float:
    if answer['scores'] is not None:
      return answer['scores'][i]
    if self.missing is None:
      raise ValueError(
        f'no judgement of {answer["id"]} parses; ask for a larger k, or say '
        'what its reward is by `missing`'
      )
    return self.missing

  def _post(self, path, body) -> Any:
    headers = {'Content-Type': 'application/json'}
    if self.token:
      headers['Authorization'] = f'Bearer {self.token}'
    data = json.dumps(body).encode()
    request = urllib.request.Request(self.url + path, data, headers)
    tries = 0
    while True:
      tries += 1
      try:
        with urllib.request.urlopen(request, timeout=self.seconds) as answer:
          return json.load(answer)
      except urllib.error.HTTPError as error:
        if error.code not in _BUSY or tries == self.tries:
          raise ValueError(f'{self.url}: {_words(error)}') from None
        time.sleep(float(error.headers.get('Retry-After', 1)))

  def trl(self) -> Callable[..., list[float]]:
    """A reward function of TRL: (prompts, completions, **columns) -> rewards.

    Prompts and completions are texts or lists of messages; a column
    `reference`, if the data set has one, is an answer known to be right.
    """

    def grm_reward(prompts, completions, reference=None, **unused):
      references = reference or [''] * len(prompts)
      return self.of(
        [
          _row(prompt, _text(completion), known)
          for prompt, completion, known in zip(
            prompts, completions, references, strict=True
          )
        ]
      )

    return grm_reward


def together(prompts: Sequence[Hashable], most: int) -> list[list[int]]:
  """Places of responses to the same prompt, at most so many in a group."""
  by_prompt: dict[Hashable, list[int]] = {}
  for place, prompt in enumerate(prompts):
    by_prompt.setdefault(prompt, []).append(place)
  return [
    places[first : first + most]
    for places in by_prompt.values()
    for first in range(0, len(places), most)
  ]


def _rest(row: dict[str, Any]) -> dict[str, Any]:
  return {key: value for key, value in row.items() if key != 'response'}


def _words(error: urllib.error.HTTPError) -> str:
  try:
    return json.load(error)['error']
  except (ValueError, KeyError, TypeError):
    return f'HTTP {error.code}'


def _row(prompt: str | list[dict], response: str, reference: Any) -> dict:
  row = {'response': response}
  if isinstance(prompt, str):
    row['query'] = prompt
  else:
    row['messages'] = [
      {'role': turn['role'], 'content': turn['content']} for turn in prompt
    ]
  return row | ({'reference': str(reference)} if reference else {})


def _text(completion: str | list[dict]) -> str:
  """What was answered; a list of messages ends with it."""
  return (
    completion if isinstance(completion, str) else completion[-1]['content']
  )


def verl_batch(
  data_sources: Iterable[str],
  solution_strs: Sequence[str],
  ground_truths: Sequence[Any],
  extra_infos: Sequence[dict[str, Any]],
  *,
  url: str,
  query: str = 'question',
  reference: bool = False,
  token: str = '',
  together: int = 8,
  missing: float | None = None,
  **how: Any,
) -> list[float]:
  """The rewards of a batch, for verl's batch reward manager.

  Args:
    data_sources: not used.
    solution_strs: responses.
    ground_truths: known answers.
    extra_infos: of the data set; `query` names what was asked in them: a text
      or a list of messages.
    url, token, together, missing, how: see Rewards.
    query: see extra_infos.
    reference: whether the judge is told the known answer.
  """
  rows = []
  for response, known, extra in zip(
    solution_strs, ground_truths, extra_infos, strict=True
  ):
    if not extra or query not in extra:
      raise ValueError(
        f'extra_info has no {query!r}; say where the prompt is by '
        'custom_reward_function.reward_kwargs.query'
      )
    rows.append(_row(extra[query], response, known if reference else ''))
  rewards = RewardClient(
    url, token=token, together=together, missing=missing, how=how
  )
  return rewards.of(rows)


def verl(
  data_source: str,
  solution_str: str,
  ground_truth: Any,
  extra_info: dict[str, Any] | None = None,
  **given: Any,
) -> float:
  """The reward of one response, judged alone; see verl_batch."""
  (found,) = verl_batch(
    [data_source], [solution_str], [ground_truth], [extra_info], **given
  )
  return found
