"""Groups of a rollout, made by hand."""

import numpy as np

from grm_jax.data.rollout_prompts import RolloutPrompt
from grm_jax.judgement.example import JudgingExample, Turn
from grm_jax.sampling.request import Generation
from grm_jax.stages.grpo.rollout import Rollout, RolloutGroup

_VERDICTS = {
  'r': 'correct',
  'w': 'incorrect',
  'x': 'parse_failure',
  'c': 'truncated',
}


def generation(sample, tokens, finish='stop'):
  """Tokens with the log-probabilities -token / 10; others were drawn from."""
  tokens = np.array(tokens, np.int32)
  logps = (-tokens / 10).astype(np.float32)
  text = f'text {tokens.tolist()}'
  return Generation('0', sample, tokens, finish, logps - 5, logps, text)


def group(
  name='e', prompt=(2, 5), tokens=((7,), (8, 9)), letters='rw', scores=None,
  order=(0, 1), epoch=0,
):  # fmt: skip
  """A group whose generations are right, wrong, unreadable or cut off.

  Args:
    name: id of the example, which has as many responses as the order.
    prompt: its tokens.
    tokens: of each generation.
    letters: what each is.
    scores: of each, in the example's own order; by default they fit.
    order, epoch: of the visit.
  """
  n = len(order)
  known = {'rewards': (1.0,)} if n == 1 else {'best': 0}
  texts = tuple(f'response {i}' for i in range(n))
  example = JudgingExample(name, (Turn('user', 'why?'),), texts, **known)
  right, wrong = tuple(range(9, 9 - n, -1)), tuple(range(1, n + 1))
  fitting = {'r': right, 'w': wrong, 'x': None, 'c': right}
  return RolloutGroup(
    visit=RolloutPrompt(example, order, epoch),
    prompt=tuple(prompt),
    generations=tuple(generation(i, x) for i, x in enumerate(tokens)),
    verdicts=tuple(_VERDICTS[x] for x in letters),
    scores=tuple(scores or [fitting[x] for x in letters]),
    rewards=np.array([1 if x == 'r' else -1 for x in letters], np.float32),
  )


def rolled(*groups, again=(), faults=0):
  return Rollout(tuple(groups), (*groups, *again), faults)
