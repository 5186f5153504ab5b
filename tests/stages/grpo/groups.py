"""Groups of a rollout, built by hand."""

import numpy as np

from grm_jax.data.rollout_prompts import RolloutPrompt
from grm_jax.judgement import correctness
from grm_jax.judgement.example import JudgingExample, Turn
from grm_jax.judgement.judgement import Judgement
from grm_jax.sampling.request import Generation
from grm_jax.stages.grpo.rollout import Rollout, RolloutGroup


def make_generation(sample, tokens, finish):
  """Tokens with the model log-probabilities -token / 10."""
  tokens = np.array(tokens, np.int32)
  logps = (-tokens / 10).astype(np.float32)
  text = f'text {tokens.tolist()}'
  # The sampling distribution has other log-probabilities.
  return Generation('0', sample, tokens, finish, logps - 5, logps, text)


def make_group(
  name='e', prompt=(2, 5), tokens=((7,), (8, 9)), letters='rw', scores=None,
  order=(0, 1), epoch=0,
):  # fmt: skip
  """Returns a group with one generation per letter.

  Args:
    name: id of the example, which has as many responses as the order.
    prompt: token ids of the prompt.
    tokens: token ids of each generation.
    letters: r (right), w (wrong), x (parse failure) or c (cut off).
    scores: scores of each generation, in the example's own order; by default
      they fit the letters.
    order: order of the responses in the prompt.
    epoch: epoch of the rollout prompt.
  """
  n = len(order)
  label = {'rewards': (1.0,)} if n == 1 else {'best': 0}
  texts = tuple(f'response {i}' for i in range(n))
  example = JudgingExample(name, (Turn('user', 'why?'),), texts, **label)
  right = (1,) if n == 1 else tuple(range(9, 9 - n, -1))
  wrong = (0,) if n == 1 else tuple(range(1, n + 1))
  fitting = {'r': right, 'w': wrong, 'x': None, 'c': None}
  finishes = ['length' if x == 'c' else 'stop' for x in letters]
  generations = tuple(
    make_generation(i, x, finish)
    for i, (x, finish) in enumerate(zip(tokens, finishes, strict=True))
  )
  judgements = tuple(
    Judgement(order, x.text, len(x.tokens), x.finish, own)
    for x, own in zip(
      generations, scores or [fitting[x] for x in letters], strict=True
    )
  )
  rewards = [correctness.outcome_reward(example, x) for x in judgements]
  return RolloutGroup(
    rollout_prompt=RolloutPrompt(example, order, epoch),
    prompt=tuple(prompt),
    generations=generations,
    judgements=judgements,
    rewards=np.array(rewards, np.float32),
  )


def make_rollout(*groups, replaced=(), skipped_prompts=0):
  return Rollout(tuple(groups), (*groups, *replaced), skipped_prompts)
