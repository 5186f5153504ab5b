"""Rollouts: a group of generations for each prompt, with their rewards.

rollout prompts -> prompt tokens -> engine, group_size samples of each prompt
  -> judgements (scores parsed from the texts) -> rewards -> groups
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
from absl import logging

from grm_jax.data.rollout_prompts import RolloutPrompt, RolloutPromptIterator
from grm_jax.errors import UserError
from grm_jax.judgement import correctness
from grm_jax.judgement.correctness import RewardFunction
from grm_jax.judgement.judgement import Judgement
from grm_jax.judgement.prompt_format import PromptFormat
from grm_jax.judges import judgement_scheduler
from grm_jax.sampling.decode_state import DecodeWeights
from grm_jax.sampling.engine import Engine
from grm_jax.sampling.request import Generation, RejectedRequest, Request
from grm_jax.tokenizer import chat_format
from grm_jax.tokenizer.tokenizer import Tokenizer
from grm_jax.training import advantages as advantages_lib

# A run ends after this many prompts in a row that are too long: all of its
# examples may be. With few examples, after each has been tried twice.
_MAX_SKIPPED_IN_A_ROW = 1000

# A rollout prompt and its tokens.
TokenizedPrompt = tuple[RolloutPrompt, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class RolloutGroup:
  """The generations of one prompt.

  Attributes:
    rollout_prompt: the example and the order of its responses.
    prompt: token ids of the prompt.
    generations: R generations, by sample number.
    judgements: their texts with parsed scores, by sample number.
    rewards: float32 [R].
  """

  rollout_prompt: RolloutPrompt
  prompt: tuple[int, ...]
  generations: tuple[Generation, ...]
  judgements: tuple[Judgement, ...]
  rewards: np.ndarray

  @property
  def outcomes(self) -> tuple[str, ...]:
    """One of correctness.OUTCOMES for each generation."""
    example = self.rollout_prompt.example
    return tuple(correctness.outcome(example, x) for x in self.judgements)

  @property
  def has_spread(self) -> bool:
    """True if rewards differ; otherwise all advantages are 0."""
    return not advantages_lib.zero_std(self.rewards[None])[0]


@dataclasses.dataclass(frozen=True)
class Rollout:
  """The groups that one or several updates train on.

  Attributes:
    groups: the groups to train on.
    all_groups: these, and groups without spread that were replaced. Metrics
      are computed over them, because `groups` is a biased selection.
    skipped_prompts: number of prompts that were too long.
  """

  groups: tuple[RolloutGroup, ...]
  all_groups: tuple[RolloutGroup, ...]
  skipped_prompts: int


@dataclasses.dataclass(frozen=True)
class RolloutSampler:
  """Samples rollouts; see `sample`.

  Attributes:
    engine: samples the generations.
    tokenizer: tokenizer of the policy.
    prompt_format: renders prompts and parses generations.
    reward_fn: reward of a judgement.
    group_size: R, generations per prompt.
    temperature: sampling temperature.
    seed: seed of the samples.
  """

  engine: Engine
  tokenizer: Tokenizer
  prompt_format: PromptFormat
  reward_fn: RewardFunction
  group_size: int
  temperature: float
  seed: int

  def sample(
    self,
    weights: DecodeWeights,
    prompts: RolloutPromptIterator,
    count: int,
    max_resample_attempts: int = 0,
    should_stop: Callable[[], bool] = lambda: False,
  ) -> Rollout | None:
    """Samples groups for the next prompts.

    The result depends only on weights, prompts and seed.

    Args:
      weights: of the policy, from decode_weights.place.
      prompts: where to take prompts from.
      count: number of groups.
      max_resample_attempts: how often groups without spread are replaced by
        groups of new prompts (dynamic sampling of DAPO, arXiv 2503.14476); 0
        keeps them. After the last attempt, the first groups without spread
        fill up the rollout.
      should_stop: polled after each generation; True ends the rollout.

    Returns:
      The rollout. None if it was stopped; `prompts` is then where it was, so
      that the same prompts are taken again.

    Raises:
      UserError: too many prompts in a row are too long.
    """
    start = prompts.num_taken
    groups: list[RolloutGroup] = []
    flat_groups: list[RolloutGroup] = []
    num_skipped = 0
    for attempt in range(max_resample_attempts + 1):
      tokenized, skipped = self._take_prompts(prompts, count - len(groups))
      num_skipped += skipped
      sampled = self._sample_groups(weights, tokenized, should_stop)
      if sampled is None:
        prompts.num_taken = start
        return None
      for (rollout_prompt, prompt), generations in zip(
        tokenized, sampled, strict=True
      ):
        group = self._score(rollout_prompt, prompt, generations)
        is_kept = group.has_spread or not max_resample_attempts
        (groups if is_kept else flat_groups).append(group)
      if len(groups) == count:
        break
      logging.info(
        'attempt %d: %d of %d groups have different rewards',
        *(attempt + 1, len(groups), count),
      )
    return Rollout(
      groups=(*groups, *flat_groups[: count - len(groups)]),
      all_groups=(*groups, *flat_groups),
      skipped_prompts=num_skipped,
    )

  def _take_prompts(
    self, prompts: RolloutPromptIterator, count: int
  ) -> tuple[list[TokenizedPrompt], int]:
    """Takes `count` prompts that fit; also returns the number of others."""
    tokenized: list[TokenizedPrompt] = []
    num_skipped = num_skipped_in_a_row = 0
    limit = min(_MAX_SKIPPED_IN_A_ROW, 2 * len(prompts.examples))
    while len(tokenized) < count:
      (rollout_prompt,) = prompts.take(1)
      try:
        tokenized.append((rollout_prompt, self._tokenize(rollout_prompt)))
        num_skipped_in_a_row = 0
      except UserError as error:
        num_skipped += 1
        num_skipped_in_a_row += 1
        example_id = rollout_prompt.example.id
        if num_skipped == 1:  # the metrics count the others
          logging.warning('skipping example %s: %s', example_id, error)
        if num_skipped_in_a_row == limit:
          raise UserError(
            f'{limit} examples in a row are too long; the last is '
            f'{example_id}: {error}; add a longer bucket to '
            'config.batch.prompt_buckets or give shorter examples'
          ) from error
    return tokenized, num_skipped

  def _tokenize(self, rollout_prompt: RolloutPrompt) -> tuple[int, ...]:
    return self.prompt_format.tokenize(
      rollout_prompt.example,
      rollout_prompt.order,
      functools.partial(chat_format.render_user, self.tokenizer),
      limit=self.engine.limits.max_prompt_tokens,
    ).tokens

  def _sample_groups(
    self,
    weights: DecodeWeights,
    prompts: Sequence[TokenizedPrompt],
    should_stop: Callable[[], bool],
  ) -> list[list[Generation]] | None:
    """Returns R generations of each prompt, by sample number.

    None if it was stopped.
    """
    requests = [
      Request(
        id=rollout_prompt.sample_key,
        prompt=tokens,
        num_samples=self.group_size,
        temperature=self.temperature,
        seed=self.seed,
        key=rollout_prompt.sample_key,
        tag=index,
      )
      for index, (rollout_prompt, tokens) in enumerate(prompts)
    ]
    groups: list[list[Generation]] = [[] for _ in prompts]
    for result in self.engine.run(weights, requests):
      if should_stop():
        return None
      if isinstance(result, RejectedRequest):
        # A bug: `_tokenize` keeps the limits of the engine.
        raise RuntimeError(f'{result.request_id}: {result.reason}')
      groups[result.tag].append(result)
    # The engine returns generations in the order in which they end.
    return [sorted(group, key=lambda x: x.sample) for group in groups]

  def _score(
    self,
    rollout_prompt: RolloutPrompt,
    prompt: tuple[int, ...],
    generations: Sequence[Generation],
  ) -> RolloutGroup:
    """Parses the generations of a prompt and computes their rewards."""
    judgements = tuple(
      judgement_scheduler.parse_judgement(
        generation, rollout_prompt.order, self.prompt_format
      )
      for generation in generations
    )
    rewards = [self.reward_fn(rollout_prompt.example, x) for x in judgements]
    return RolloutGroup(
      rollout_prompt=rollout_prompt,
      prompt=prompt,
      generations=tuple(generations),
      judgements=judgements,
      rewards=np.array(rewards, np.float32),
    )


def group_advantages(
  groups: Sequence[RolloutGroup], normalize_by_std: bool
) -> np.ndarray:
  """Returns the advantages of all generations, float32 [groups, R].

  Args:
    groups: groups of a rollout.
    normalize_by_std: divide by the standard deviation of the group's rewards.
  """
  rewards = np.stack([group.rewards for group in groups])  # [groups, R]
  return advantages_lib.advantages(rewards, std=normalize_by_std)
