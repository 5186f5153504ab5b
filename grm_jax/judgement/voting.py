"""Voting: combines the scores of k generations into one vote per response.

`samples` are the scores of k generations, each [C] in the example's own order,
or None for a generation that does not parse. Such a generation does not vote.
If none parses, there is no vote and the result is None. Voting@k and meta RM
guided voting are those of arXiv 2504.02495, section 4; `majority` is a common
alternative.

`metas` are k scores by the meta RM; those of generations that do not parse are
ignored. NaN ranks below every number, including -inf. Among equal metas the
smaller sample index wins.
"""

import math
from collections.abc import Iterable, Sequence

from grm_jax.errors import UserError

Scores = Sequence[float]
Samples = Sequence[Scores | None]
Metas = Sequence[float | None]


def sum_scores(samples: Samples, n: int) -> tuple[float, ...] | None:
  """Voting@k: the sum of each response's scores.

  Args:
    samples: k score lists, see the module.
    n: number of responses C.

  Returns:
    [C] votes, or None if no sample parses. Integer scores have integer votes.

  Raises:
    ValueError: a sample does not have C scores.
  """
  parsed = _parsed(samples, n)
  if not parsed:
    return None
  return tuple(sum(scores) for scores in zip(*parsed.values(), strict=True))


def mean_scores(samples: Samples, n: int) -> tuple[float, ...] | None:
  """Returns each response's mean score over the samples that parse.

  Args and errors are those of `sum_scores`.
  """
  votes = sum_scores(samples, n)
  if votes is None:
    return None
  return tuple(vote / num_parsed(samples) for vote in votes)


def majority(samples: Samples, n: int) -> tuple[float, ...] | None:
  """Returns the number of other responses that each response beats.

  A response beats another one if more samples score it higher than lower. With
  equally many of both, each gets half a win. A single response has 0 wins.

  Args and errors are those of `sum_scores`.
  """
  parsed = _parsed(samples, n)
  if not parsed:
    return None

  def win(i: int, j: int) -> float:
    """Returns 1, 0.5 or 0: i beats j in more, as many or fewer samples."""
    lead = sum((s[i] > s[j]) - (s[i] < s[j]) for s in parsed.values())
    return 1.0 if lead > 0 else 0.5 if lead == 0 else 0.0

  return tuple(
    math.fsum(win(i, j) for j in range(n) if j != i) for i in range(n)
  )


def meta_rm_vote(
  samples: Samples, metas: Metas, n: int, k_meta: int | None = None
) -> tuple[float, ...] | None:
  """MetaRM@k: the sum over the k_meta samples with the highest metas.

  Args:
    samples: k score lists, see the module.
    metas: k scores by the meta RM.
    n: number of responses C.
    k_meta: how many of the samples that parse vote; all of them if fewer parse.
      None means half of k, rounded up.

  Returns:
    [C] votes, or None if no sample parses.

  Raises:
    UserError: k_meta is not in 1..k.
    ValueError: a sample does not have C scores; the numbers of metas and
      samples differ; a sample that parses has no meta.
  """
  top = top_by_meta(samples, metas, n, k_meta)
  return sum_scores([samples[i] for i in top], n)


def top_by_meta(
  samples: Samples, metas: Metas, n: int, k_meta: int | None = None
) -> tuple[int, ...]:
  """Returns the indices of the samples in `meta_rm_vote`, best meta first.

  Args and errors are those of `meta_rm_vote`.
  """
  k = len(samples)
  if len(metas) != k:
    raise ValueError(f'{len(metas)} metas for {k} samples')
  if k_meta is not None and not 1 <= k_meta <= max(k, 1):
    raise UserError(f'k_meta is {k_meta}; it must be from 1 to {k}')
  parsed = _parsed(samples, n)

  def sort_key(index: int) -> tuple[bool, float]:
    """Orders samples by descending meta; samples with a NaN come last."""
    meta = metas[index]
    if meta is None:
      raise ValueError(f'sample {index} of {k} has no meta')
    return (True, 0.0) if math.isnan(meta) else (False, -meta)

  # The sort is stable: samples with equal metas stay in index order.
  ranking = sorted(parsed, key=sort_key)
  return tuple(ranking[: (k + 1) // 2 if k_meta is None else k_meta])


def winners(votes: Sequence[float]) -> tuple[int, ...]:
  """Returns the indices of all maxima, ascending."""
  top = max(votes)
  return tuple(i for i, vote in enumerate(votes) if vote == top)


def expected_correct(votes: Sequence[float] | None, best: int) -> float:
  """Returns the probability of the best response with random tie-breaking.

  Args:
    votes: [C]. Without a vote (None) the result is 0; report the failures next
      to it, see `num_parsed`.
    best: index of the best response.

  Returns:
    1 / the number of maxima if the best response is one of them, else 0.

  Raises:
    ValueError: `best` is out of range.
  """
  if votes is None:
    return 0.0
  if not 0 <= best < len(votes):
    raise ValueError(f'best is {best}; it must be from 0 to {len(votes) - 1}')
  # Equivalent to `winners` without the tuple: scaling curves call this for
  # millions of votes.
  top = max(votes)
  return 1 / votes.count(top) if votes[best] == top else 0.0


def num_parsed(samples: Samples) -> int:
  """Returns the number of samples that parse."""
  return sum(scores is not None for scores in samples)


def first_position_preference(
  pairs: Iterable[tuple[Sequence[int], Scores | None]],
) -> tuple[float, int]:
  """Counts how often the first response of the prompt scores highest.

  Args:
    pairs: (order, scores) of samples of any examples. order[0] is the index of
      the first response in the prompt; scores are in the example's own order.
      Parse failures and examples of a single response do not count.

  Returns:
    (preferred_first, total). A tie of m responses at the top counts 1/m. If
    every response is first equally often, preferred_first / total is 1/C for a
    judge without position bias.

  Raises:
    ValueError: an order and its scores have different lengths.
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


def _parsed(samples: Samples, n: int) -> dict[int, Scores]:
  """Returns the scores of the samples that parse, by sample index."""
  parsed = {i: scores for i, scores in enumerate(samples) if scores is not None}
  for i, scores in parsed.items():
    if len(scores) != n:
      raise ValueError(f'sample {i} has {len(scores)} scores; expected {n}')
  return parsed
