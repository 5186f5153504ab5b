"""Votes of subsets of the samples, vectorized over queries and subsets.

Q queries, K samples per query, C responses per query, M subsets of the samples.
Queries with the same C form a group. `judgement.voting` computes the same votes
for one query and one subset at a time; the tests compare the two.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from grm_jax.errors import UserError
from grm_jax.evaluation.metrics import Result
from grm_jax.judgement.judgement import JudgedExample

_CHUNK = 1 << 22  # maximum number of elements of an intermediate array


@dataclasses.dataclass(frozen=True)
class QueryGroup:
  """Arrays of the queries with the same number of responses.

  Attributes:
    index: int [Q], index of each query among all queries.
    scores: float64 [Q, K, C], 0 where a sample does not parse.
    parsed: bool [Q, K], whether a sample parses.
    metas: float [Q, K], meta-RM scores, NaN where there is none.
    best: int [Q], index of the best response, -1 where unknown.
    greedy: float64 [Q, C], 0 where the greedy generation does not parse.
    greedy_parsed: bool [Q], whether it parses.
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
  """All queries in groups, and the sizes that the queries share."""

  groups: tuple[QueryGroup, ...]
  num_queries: int
  num_samples: int
  has_metas: bool
  has_greedy: bool


def gather(judged: Sequence[JudgedExample]) -> SampleArrays:
  """Returns the arrays of all queries.

  Raises:
    UserError: there are no queries; they differ in the number of samples or in
      having a greedy generation; the number of scores of a sample is not the
      number of responses; or only some of the parsed samples have a meta score.
  """
  if not judged:
    raise UserError('no queries to evaluate; the data has no examples')
  first = judged[0]
  by_n: dict[int, list[int]] = {}
  for i, query in enumerate(judged):
    _check(first, query)
    by_n.setdefault(len(query.example.responses), []).append(i)
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


def _check(first: JudgedExample, query: JudgedExample) -> None:
  """Raises UserError if a query does not fit the first one."""
  if len(query.samples) != len(first.samples):
    raise UserError(
      f'query {query.example.id} has {len(query.samples)} samples, query '
      f'{first.example.id} has {len(first.samples)}; all queries need the '
      'same number'
    )
  if (query.greedy is None) != (first.greedy is None):
    raise UserError(
      f'only one of the queries {first.example.id} and {query.example.id} has '
      'a greedy generation; all queries need one, or none'
    )
  n = len(query.example.responses)
  for sample in (*query.samples, query.greedy):
    if sample and sample.scores is not None and len(sample.scores) != n:
      raise UserError(
        f'a sample of query {query.example.id} has {len(sample.scores)} scores '
        f'for {n} responses'
      )


def _has_metas(judged: Sequence[JudgedExample]) -> bool:
  """Returns whether samples have meta scores; unparseable ones need none."""
  num_metas, query_without = 0, None
  for query in judged:
    for sample in query.samples:
      num_metas += sample.meta is not None
      if sample.meta is None and sample.scores is not None:
        query_without = query_without or query.example.id
  if num_metas and query_without:
    raise UserError(
      f'a sample of query {query_without} has no meta score, {num_metas} other '
      'samples have one; the meta RM must rate all samples that parse'
    )
  return num_metas > 0


def _group(
  judged: Sequence[JudgedExample], index: Sequence[int], n: int
) -> QueryGroup:
  zeros = (0,) * n
  samples = [query.samples for query in judged]
  bests = [query.example.best for query in judged]
  greedy = [query.greedy and query.greedy.scores for query in judged]
  shape = len(judged), len(samples[0])
  scores = [[x.scores or zeros for x in row] for row in samples]
  parsed = [[x.scores is not None for x in row] for row in samples]
  metas = [[x.meta for x in row] for row in samples]  # None becomes NaN below
  return QueryGroup(
    index=np.array(index),
    scores=np.array(scores, np.float64).reshape(*shape, n),
    parsed=np.array(parsed, bool).reshape(shape),
    metas=np.array(metas, np.float64).reshape(shape),
    best=np.array([-1 if best is None else best for best in bests]),
    greedy=np.array([x or zeros for x in greedy], np.float64),
    greedy_parsed=np.array([x is not None for x in greedy]),
  )


def choose(
  num_samples: int, k: int, seed: int, max_exact: int, num_random: int
) -> tuple[np.ndarray, bool]:
  """Returns subsets of k samples.

  Args:
    num_samples: K.
    k: size of a subset.
    seed: seed of the random subsets, which are independent of each other.
    max_exact: if there are at most this many subsets, all are returned. For
      k = 1 and k = K it is always all.
    num_random: number of random subsets otherwise.

  Returns:
    (bool [M, K], whether these are all subsets).
  """
  if not 1 <= k <= num_samples:
    raise ValueError(f'k is {k}; it must be from 1 to {num_samples}')
  exact = k == 1 or math.comb(num_samples, k) <= max_exact
  if exact:
    subsets = np.array(list(itertools.combinations(range(num_samples), k)))
  else:
    # The first k of a random permutation are a random subset.
    keys = np.random.default_rng([seed, k]).random((num_random, num_samples))
    subsets = np.argsort(keys, axis=1)[:, :k]
  members = np.zeros((len(subsets), num_samples), bool)
  np.put_along_axis(members, subsets, True, axis=1)
  return members, exact


def votes(
  group: QueryGroup, members: np.ndarray, num_meta: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the summed scores of every query in every subset.

  Args:
    group: Q queries.
    members: bool [M, K], the subsets.
    num_meta: number of parsed samples of a subset whose scores are summed:
      those with the highest meta scores, as in `voting.meta_rm_vote`. None sums
      all of them.

  Returns:
    Votes, float64 [Q, M, C], and whether any sample parsed, bool [Q, M].
  """
  scores = group.scores  # [Q, K, C]
  used = members & group.parsed[:, None]  # [Q, M, K]
  if num_meta is not None:
    # Descending and stable, so ties keep the sample order; NaN comes last.
    order = np.argsort(-group.metas, axis=1, kind='stable')  # [Q, K]
    scores = np.take_along_axis(scores, order[..., None], axis=1)
    used = np.take_along_axis(used, order[:, None], axis=2)
    # Keep the first num_meta used samples in this order.
    used &= np.cumsum(used, axis=2, dtype=np.int32) <= num_meta
  # [Q, M, K] @ [Q, K, C]
  return np.matmul(used.astype(np.float64), scores), np.any(used, axis=2)


def expected_correct(
  votes: np.ndarray, has_vote: np.ndarray, best: np.ndarray
) -> np.ndarray:
  """Returns the expected accuracy if tied top votes are broken at random.

  It is 1/m if the best response is one of m with the top vote, otherwise 0.

  Args:
    votes: [Q, M, C] votes.
    has_vote: bool [Q, M]; the value is 0 where it is False.
    best: int [Q]; the value is NaN where it is -1.

  Returns:
    float64 [Q, M].
  """
  is_top = votes == np.max(votes, axis=-1, keepdims=True)  # [Q, M, C]
  # best = -1 reads the last response; np.where below discards the value.
  best_is_top = np.take_along_axis(is_top, best[:, None, None], axis=-1)[..., 0]
  correct = (best_is_top & has_vote) / np.sum(is_top, axis=-1)
  return np.where(best[:, None] < 0, np.nan, correct)


def expected(
  samples: SampleArrays, members: np.ndarray, num_meta: int | None = None
) -> np.ndarray:
  """Returns the expected accuracy of every query, averaged over the subsets.

  Args:
    samples: all queries.
    members: bool [M, K], the subsets.
    num_meta: see `votes`.

  Returns:
    float64 [Q] in the order of `gather`, NaN where no best response is known.
  """
  accuracies = np.full(samples.num_queries, np.nan)
  for group in samples.groups:
    for chunk in _split(group, members.size):
      chunk_votes, has_vote = votes(chunk, members, num_meta)
      correct = expected_correct(chunk_votes, has_vote, chunk.best)
      accuracies[chunk.index] = np.mean(correct, axis=1)
  return accuracies


def expected_greedy(samples: SampleArrays) -> np.ndarray:
  """Returns the accuracy of the greedy generations, like `expected`."""
  accuracies = np.full(samples.num_queries, np.nan)
  for group in samples.groups:
    # As votes of one subset: [Q, 1, C] and [Q, 1].
    votes, has_vote = group.greedy[:, None], group.greedy_parsed[:, None]
    correct = expected_correct(votes, has_vote, group.best)
    accuracies[group.index] = correct[:, 0]
  return accuracies


def _split(group: QueryGroup, size: int) -> Iterator[QueryGroup]:
  """Yields a group in chunks; `size` is the number of elements per query."""
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
  """Returns the results of all queries for one subset.

  Args:
    judged: the queries.
    samples: their arrays, made by `gather`.
    member: bool [K], the subset.
    num_meta: see `votes`.
  """
  subset_votes: list[tuple[float, ...] | None] = [None] * len(judged)
  for group in samples.groups:
    group_votes, has_vote = votes(group, member[None], num_meta)
    for i, vote, is_valid in zip(
      group.index.tolist(),
      group_votes[:, 0].tolist(),
      has_vote[:, 0].tolist(),
      strict=True,
    ):
      subset_votes[i] = tuple(vote) if is_valid else None
  return [
    Result(x.example, vote)
    for x, vote in zip(judged, subset_votes, strict=True)
  ]
