"""Rollouts: a group of generations for each visit, and what they earn.

  visits -> prompts -> engine, group_size samples of each -> texts -> verdicts
         -> rewards (+1 or -1, equation 10 of arXiv 2504.02495) -> groups

A generation that was cut off is incorrect whatever it says, and so is one that
does not parse. There is no format reward.
"""

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from absl import logging

from grm_jax.data.rollout_prompts import RolloutPrompt, RolloutPromptIterator
from grm_jax.errors import UserError
from grm_jax.judgement import rejection_sampling, response_order
from grm_jax.judgement.prompt_format import PromptFormat
from grm_jax.sampling.decode import DecodeWeights
from grm_jax.sampling.engine import Engine
from grm_jax.sampling.request import Generation, RejectedRequest, Request
from grm_jax.tokenizer import chat_format
from grm_jax.tokenizer.tokenizer import Tokenizer
from grm_jax.training import advantages

# Visits in a row that cannot be asked, after which a run gives up: all of its
# examples may be too long. Of few examples, so many that all were visited.
_MOST_FAULTS = 1000


class _Stopped(Exception):
  """The run was asked to stop within a rollout."""


@dataclasses.dataclass(frozen=True)
class RolloutGroup:
  """The generations of a visit.

  Attributes:
    visit: what was asked.
    prompt: its tokens.
    generations: by sample.
    verdicts: of each, see judgement/rejection_sampling.py.
    scores: of each, in the example's own order; None where nothing parses.
    rewards: float32 [R].
  """

  visit: RolloutPrompt
  prompt: tuple[int, ...]
  generations: tuple[Generation, ...]
  verdicts: tuple[str, ...]
  scores: tuple[tuple[int, ...] | None, ...]
  rewards: np.ndarray

  @property
  def spread(self) -> bool:
    """Whether one of the generations earned more than another."""
    return not advantages.no_spread(self.rewards[None])[0]


@dataclasses.dataclass(frozen=True)
class Rollout:
  """A rollout.

  Attributes:
    groups: as many as were asked for.
    all_groups: these, and those without spread that were drawn again.
    faults: visits that could not be asked.
  """

  groups: tuple[RolloutGroup, ...]
  all_groups: tuple[RolloutGroup, ...]
  faults: int


class RolloutSampler:
  """Draws rollouts with an engine that is compiled once."""

  def __init__(
    self,
    engine: Engine,
    tokenizer: Tokenizer,
    forms: PromptFormat,
    *,
    group_size: int,
    temperature: float,
    seed: int,
  ):
    """The engine need not hold weights: `roll` is given them."""
    self.engine, self._forms = engine, forms
    self._chat = functools.partial(chat_format.render_user, tokenizer)
    self._group_size, self._temperature = group_size, temperature
    self._seed = seed

  def roll(
    self,
    weights: DecodeWeights,
    visits: RolloutPromptIterator,
    count: int,
    attempts: int,
    stops: Callable[[], bool] = lambda: False,
  ) -> Rollout | None:
    """Groups of the next visits; None and no visit if it was stopped.

    What is drawn depends on weights, visits and seed only. Between two
    rollouts the devices hold neither weights nor caches for it.

    Args:
      weights: of the policy, from placing.place.
      visits: where to take them from.
      count: groups wanted.
      attempts: how often groups without spread are replaced by those of new
        visits (dynamic sampling, arXiv 2503.14476); 0 keeps them. After the
        last time the first of them fill up what is missing.
      stops: asked now and then whether to give up.

    Raises:
      UserError: too many visits in a row cannot be asked.
    """
    begin = visits.drawn
    # A copy shares the programs; its caches end with it, not with the run.
    engine = copy.copy(self.engine)
    engine.programs.weights = weights
    try:
      return self._roll(engine, visits, count, attempts, stops)
    except _Stopped:
      visits.drawn = begin
      return None
    finally:
      engine.programs.weights = None

  def _roll(self, engine, visits, count, attempts, stops):
    found, flat, faults = [], [], 0
    for attempt in range(attempts + 1):
      asked, more = self._ask(visits, count - len(found))
      faults += more
      groups = list(self._groups(engine, asked, stops))
      keep_all = not attempts
      found += [x for x in groups if keep_all or x.spread]
      flat += [x for x in groups if not keep_all and not x.spread]
      if len(found) == count:
        break
      logging.info(
        'attempt %d: %d of %d groups have a spread',
        *(attempt + 1, len(found), count),
      )
    everything = (*found, *flat)
    return Rollout((*found, *flat[: count - len(found)]), everything, faults)

  def _ask(
    self, visits: RolloutPromptIterator, count: int
  ) -> tuple[list[tuple[RolloutPrompt, tuple[int, ...]]], int]:
    """(visits with their prompts, how many could not be asked)."""
    asked, faults, in_a_row = [], 0, 0
    most = min(_MOST_FAULTS, 2 * len(visits.examples))
    while len(asked) < count:
      (visit,) = visits.take(1)
      try:
        asked.append((visit, self._tokens(visit)))
        in_a_row = 0
      except UserError as error:
        faults, in_a_row = faults + 1, in_a_row + 1
        if faults == 1:  # the others are counted in the metrics
          logging.warning('left out: %s: %s', visit.example.id, error)
        if in_a_row == most:
          raise UserError(
            f'{most} examples in a row cannot be asked; the last, '
            f'{visit.example.id}: {error}; give longer config.batch.prompt_buckets or '
            'shorter examples'
          ) from error
    return asked, faults

  def _tokens(self, visit: RolloutPrompt) -> tuple[int, ...]:
    limit = self.engine.limits.prompt
    return self._forms.tokenize(
      visit.example, visit.order, self._chat, limit=limit
    )

  def _groups(self, engine, asked, stops) -> Iterator[RolloutGroup]:
    """In the order in which they were asked for."""
    requests = [
      Request(
        id=str(number),
        prompt=prompt,
        num_samples=self._group_size,
        temperature=self._temperature,
        seed=self._seed,
        key=visit.name,
      )
      for number, (visit, prompt) in enumerate(asked)
    ]
    by_number: list[list[Generation]] = [[] for _ in asked]
    for item in engine.run(requests):
      if stops():
        raise _Stopped
      if isinstance(item, RejectedRequest):
        # `tokenize` has kept to the engine's limits.
        raise RuntimeError(f'{item.request}: {item.reason}')
      by_number[int(item.request)].append(item)
    for (visit, prompt), own in zip(asked, by_number, strict=True):
      yield self._group(visit, prompt, sorted(own, key=lambda x: x.sample))

  def _group(self, visit, prompt, own: Sequence[Generation]) -> RolloutGroup:
    n = len(visit.order)
    verdicts = tuple(self._verdict(visit, x) for x in own)
    shown = [self._forms.read(x.text, n) for x in own]
    return RolloutGroup(
      visit=visit,
      prompt=prompt,
      generations=tuple(own),
      verdicts=verdicts,
      scores=tuple(x and response_order.restore(x, visit.order) for x in shown),
      rewards=np.array(
        [1.0 if x == 'correct' else -1.0 for x in verdicts], np.float32
      ),
    )

  def _verdict(self, visit, item: Generation) -> str:
    sample = rejection_sampling.FilterSample(
      visit.example.id,
      visit.order,
      item.text,
      truncated=item.finish == 'length',
    )
    return rejection_sampling.verdict(sample, visit.example, self._forms)
