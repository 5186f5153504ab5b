"""Votes of subsets of a query's samples, for all queries at once, as arrays.

Q queries, K samples of each, C responses, M subsets of the samples. Queries
are grouped by their number of responses. The same votes as judging.votes, one
query and one subset at a time, which the tests compare with.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from grm_jax.errors import UserError
from grm_jax.evaluation.metrics import Result
from grm_jax.judgement.judgement import JudgedExample

_CHUNK = 1 << 22  # Elements of an intermediate array.


@dataclasses.dataclass(frozen=True)
class QueryGroup:
  """The queries with the same number of responses, as arrays.

  Attributes:
    index: int [Q], the places of the queries in what was given.
    scores: float64 [Q, K, C], 0 where a sample does not parse.
    parsed: bool [Q, K].
    metas: float [Q, K], NaN where there is none.
    best: int [Q], -1 where unknown.
    greedy: float64 [Q, C], 0 where it does not parse.
    greedy_parsed: bool [Q].
  """

  index: np.ndarray
  scores: np.ndarray
  parsed: np.ndarray
  metas: np.ndarray
  best: np.ndarray
  greedy: np.ndarray
  greedy_parsed: np.ndarray


@dataclasses.dataclass(frozen=True)
class SampleArrays:
  """All queries, grouped; the sizes that they share."""

  groups: tuple[QueryGroup, ...]
  num_queries: int
  num_samples: int
  has_metas: bool
  has_greedy: bool


def gather(judged: Sequence[JudgedExample]) -> SampleArrays:
  """The arrays of all queries.

  Raises:
    UserError: there are no queries; they differ in the number of samples
      or in whether there is a greedy generation; a sample has another number
      of scores than there are responses; or only some of the samples that
      parse have a meta score.
  """
  if not judged:
    raise UserError('there are no queries')
  first = judged[0]
  by_n: dict[int, list[int]] = {}
  for i, one in enumerate(judged):
    _check(first, one)
    by_n.setdefault(len(one.example.responses), []).append(i)
  groups = [
    _group([judged[i] for i in index], index, n)
    for n, index in sorted(by_n.items())
  ]
  return SampleArrays(
    groups=tuple(groups),
    num_queries=len(judged),
    num_samples=len(first.samples),
    has_metas=_has_metas(judged),
    has_greedy=first.greedy is not None,
  )


def _check(first: JudgedExample, one: JudgedExample) -> None:
  if len(one.samples) != len(first.samples):
    raise UserError(
      f'query {one.example.id} has {len(one.samples)} samples, query '
      f'{first.example.id} has {len(first.samples)}; all need as many'
    )
  if (one.greedy is None) != (first.greedy is None):
    raise UserError(
      f'of queries {first.example.id} and {one.example.id} only one has a '
      'greedy generation'
    )
  n = len(one.example.responses)
  for sample in (*one.samples, one.greedy):
    if sample and sample.scores is not None and len(sample.scores) != n:
      raise UserError(
        f'a sample of query {one.example.id} has {len(sample.scores)} scores '
        f'for {n} responses'
      )


def _has_metas(judged: Sequence[JudgedExample]) -> bool:
  """Whether samples have meta scores; parse failures need none."""
  have, lack = 0, None
  for one in judged:
    for sample in one.samples:
      have += sample.meta is not None
      if sample.meta is None and sample.scores is not None:
        lack = lack or one.example.id
  if have and lack:
    raise UserError(
      f'a sample of query {lack} has no meta score, {have} others have one'
    )
  return have > 0


def _group(
  judged: Sequence[JudgedExample], index: Sequence[int], n: int
) -> QueryGroup:
  nothing = (0,) * n
  samples = [one.samples for one in judged]
  bests = [one.example.best for one in judged]
  greedy = [one.greedy and one.greedy.scores for one in judged]
  shape = len(judged), len(samples[0])
  scores = [[x.scores or nothing for x in own] for own in samples]
  parsed = [[x.scores is not None for x in own] for own in samples]
  # None becomes NaN.
  metas = [[x.meta for x in own] for own in samples]
  return QueryGroup(
    index=np.array(index),
    scores=np.array(scores, np.float64).reshape(*shape, n),
    parsed=np.array(parsed, bool).reshape(shape),
    metas=np.array(metas, np.float64).reshape(shape),
    best=np.array([-1 if best is None else best for best in bests]),
    greedy=np.array([x or nothing for x in greedy], np.float64),
    greedy_parsed=np.array([x is not None for x in greedy]),
  )


def choose(
  num_samples: int, k: int, seed: int, most: int, num: int
) -> tuple[np.ndarray, bool]:
  """Subsets of k of the samples, and whether they are all of them.

  Args:
    num_samples: K.
    seed: of the random ones, which are drawn independently.
    most: how many subsets there may be for all to be used. Those of one
      sample, and of all, are always all used.
    num: how many are drawn at random otherwise.

  Returns:
    (bool [M, K], exact).
  """
  if not 1 <= k <= num_samples:
    raise ValueError(f'k is {k}, there are {num_samples} samples')
  exact = k == 1 or math.comb(num_samples, k) <= most
  if exact:
    chosen = np.array(list(itertools.combinations(range(num_samples), k)))
  else:
    draws = np.random.default_rng([seed, k]).random((num, num_samples))
    chosen = np.argsort(draws, axis=1)[:, :k]
  members = np.zeros((len(chosen), num_samples), bool)
  np.put_along_axis(members, chosen, True, axis=1)
  return members, exact


def votes(
  group: QueryGroup, members: np.ndarray, num_meta: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """The summed scores of every query in every subset.

  Args:
    members: bool [M, K].
    num_meta: sum only so many of the samples of a subset that parse, those
      that the meta RM likes most; as `judging.votes.guided`. None sums all.

  Returns:
    (float64 [Q, M, C], bool [Q, M]: whether anything parsed).
  """
  scores, used = group.scores, members & group.parsed[:, None]  # [Q, M, K]
  if num_meta is not None:
    # Stable, and NaN comes last.
    order = np.argsort(-group.metas, axis=1, kind='stable')
    scores = np.take_along_axis(scores, order[..., None], axis=1)
    used = np.take_along_axis(used, order[:, None], axis=2)
    used &= np.cumsum(used, axis=2, dtype=np.int32) <= num_meta
  return np.matmul(used.astype(np.float64), scores), np.any(used, axis=2)


def expected_correct(
  votes: np.ndarray, some: np.ndarray, best: np.ndarray
) -> np.ndarray:
  """1/m where the best response is one of m with the highest vote, else 0.

  Args:
    votes: [Q, M, C].
    some: bool [Q, M]; without a vote the value is 0.
    best: int [Q]; the value is NaN where it is -1.

  Returns:
    float64 [Q, M].
  """
  top = votes == np.max(votes, axis=-1, keepdims=True)
  won = np.take_along_axis(top, best[:, None, None], axis=-1)[..., 0]
  correct = (won & some) / np.sum(top, axis=-1)
  return np.where(best[:, None] < 0, np.nan, correct)


def expected(
  samples: SampleArrays, members: np.ndarray, num_meta: int | None = None
) -> np.ndarray:
  """The expected correctness of every query, averaged over the subsets.

  Returns:
    float64 [Q] in the order that `gather` was given, NaN where the best
    response is unknown.
  """
  result = np.full(samples.num_queries, np.nan)
  for group in samples.groups:
    for part in _parts(group, members.size):
      own, some = votes(part, members, num_meta)
      correct = expected_correct(own, some, part.best)
      result[part.index] = np.mean(correct, axis=1)
  return result


def expected_greedy(samples: SampleArrays) -> np.ndarray:
  """The expected correctness of the greedy generations, as `expected`."""
  result = np.full(samples.num_queries, np.nan)
  for group in samples.groups:
    own, some = group.greedy[:, None], group.greedy_parsed[:, None]
    result[group.index] = expected_correct(own, some, group.best)[:, 0]
  return result


def _parts(group: QueryGroup, size: int) -> Iterator[QueryGroup]:
  """A group in parts of a bounded size, `size` being that of one query."""
  step = max(_CHUNK // size, 1)
  names = [field.name for field in dataclasses.fields(group)]
  for start in range(0, len(group.index), step):
    rows = slice(start, start + step)
    yield QueryGroup(**{name: getattr(group, name)[rows] for name in names})


def results(
  judged: Sequence[JudgedExample],
  samples: SampleArrays,
  member: np.ndarray,
  num_meta: int | None = None,
) -> list[Result]:
  """The results of all queries for one subset, bool [K]; see `votes`."""
  found: list[Result | None] = [None] * len(judged)
  for group in samples.groups:
    own, some = votes(group, member[None], num_meta)
    for i, vote, valid in zip(
      group.index.tolist(),
      own[:, 0].tolist(),
      some[:, 0].tolist(),
      strict=True,
    ):
      found[i] = Result(judged[i].example, tuple(vote) if valid else None)
  return found
