"""The combination of k generations' scores into one vote per response.

Here `samples` are k scores, each a tuple of n in the example's own order, or
None for a parse failure: that one votes for nobody. If none parses there is
no vote, None. Voting@k and the meta RM are those of arXiv 2504.02495, section
4; `majority` is what is often done instead. `metas` are k opinions of the
meta RM, of which those on parse failures are not looked at. A NaN is below
every number, -inf too, so that it is taken only after all of them; of equal
ones the sample with the smaller index is taken.
"""

import math
from collections.abc import Iterable, Sequence

from grm_jax.errors import UserError

Scores = tuple[int, ...]
Samples = Sequence[Scores | None]
Metas = Sequence[float | None]


def sum_scores(samples: Samples, n: int) -> tuple[int, ...] | None:
  """Voting@k: the sum of each response's scores, [n].

  Raises:
    ValueError: a sample without n scores.
  """
  parsed = _parsed(samples, n)
  if not parsed:
    return None
  return tuple(sum(scores) for scores in zip(*parsed.values(), strict=True))


def mean_scores(samples: Samples, n: int) -> tuple[float, ...] | None:
  """The mean of each response's scores over the samples that parse, [n].

  Raises:
    ValueError: a sample without n scores.
  """
  votes = sum_scores(samples, n)
  if votes is None:
    return None
  return tuple(vote / num_parsed(samples) for vote in votes)


def majority(samples: Samples, n: int) -> tuple[float, ...] | None:
  """How many of the others each response beats, [n].

  One beats another if more samples score it higher than lower; if as many do,
  the pair is drawn, half a win for both. A single response has nobody to beat.

  Raises:
    ValueError: a sample without n scores.
  """
  parsed = _parsed(samples, n)
  if not parsed:
    return None

  def wins(i, j):
    lead = sum((s[i] > s[j]) - (s[i] < s[j]) for s in parsed.values())
    return 1.0 if lead > 0 else 0.5 if lead == 0 else 0.0

  return tuple(
    math.fsum(wins(i, j) for j in range(n) if j != i) for i in range(n)
  )


def meta_rm_vote(
  samples: Samples, metas: Metas, n: int, k_meta: int | None = None
) -> tuple[int, ...] | None:
  """MetaRM@k: the sum over the k_meta samples that the meta RM likes most.

  Args:
    samples, metas: k of each.
    n: responses.
    k_meta: how many of those that parse count, all if fewer parse; None is
      half of k, rounded up.

  Returns:
    [n], or None.

  Raises:
    UserError: k_meta not in 1..k.
    ValueError: a sample without n scores; another number of metas than of
      samples, or none for a sample that parses.
  """
  liked = top_by_meta(samples, metas, n, k_meta)
  return sum_scores([samples[i] for i in liked], n)


def top_by_meta(
  samples: Samples, metas: Metas, n: int, k_meta: int | None = None
) -> tuple[int, ...]:
  """The samples that count for `guided`, the one most liked first.

  Args and errors are those of `guided`.
  """
  k = len(samples)
  if len(metas) != k:
    raise ValueError(f'{len(metas)} metas for {k} samples')
  if k_meta is not None and not 1 <= k_meta <= max(k, 1):
    raise UserError(f'k_meta is {k_meta}; there are {k} samples')
  parsed = _parsed(samples, n)
  for i in parsed:
    if metas[i] is None:
      raise ValueError(f'sample {i} of {k} has no meta')

  def dislike(i):
    return (True, 0.0) if math.isnan(metas[i]) else (False, -metas[i])

  liked = sorted(parsed, key=dislike)  # Stable: equals stay in order.
  return tuple(liked[: (k + 1) // 2 if k_meta is None else k_meta])


def winners(votes: Sequence[float]) -> tuple[int, ...]:
  """Indices of all maxima, ascending."""
  top = max(votes)
  return tuple(i for i, vote in enumerate(votes) if vote == top)


def expected_correct(votes: Sequence[float] | None, best: int) -> float:
  """The chance of choosing the best response if ties are broken at random.

  Args:
    votes: [n]. None, no vote, is 0: counted as wrong, and reported as failure
      beside the result (`num_parsed`).
    best: index of the best response.

  Returns:
    1 / the number of maxima if the best response is one of them, else 0.

  Raises:
    ValueError: a best that is no response.
  """
  if votes is None:
    return 0.0
  if not 0 <= best < len(votes):
    raise ValueError(f'best is {best}; there are {len(votes)} votes, from 0')
  # As `winners`, without listing them: curves ask this of millions of votes.
  top = max(votes)
  return 1 / votes.count(top) if votes[best] == top else 0.0


def num_parsed(samples: Samples) -> int:
  """How many of the samples are not parse failures."""
  return sum(scores is not None for scores in samples)


def first_position_preference(
  pairs: Iterable[tuple[Sequence[int], Scores | None]],
) -> tuple[float, int]:
  """How often the response shown first is scored highest.

  Args:
    pairs: (order, scores) of samples, of any examples: order[0] is the index
      of the response shown first, scores are in the example's own order.
      Parse failures and examples of a single response do not count.

  Returns:
    (preferred_first, total). A tie of m at the top counts 1/m. Without a
    preference for places, and with every response first equally often,
    preferred_first / total is 1/n.

  Raises:
    ValueError: an order of another length than the scores.
  """
  preferred, total = [], 0
  for order, scores in pairs:
    if scores is None or len(order) == 1:
      continue
    if len(order) != len(scores):
      raise ValueError(f'{len(scores)} scores for an order of {len(order)}')
    preferred.append(expected_correct(scores, order[0]))
    total += 1
  return math.fsum(preferred), total


def _parsed(samples, n):
  """Index -> scores of the samples that parse."""
  parsed = {i: s for i, s in enumerate(samples) if s is not None}
  for i, scores in parsed.items():
    if len(scores) != n:
      raise ValueError(f'sample {i} has {len(scores)} scores, not {n}')
  return parsed
