"""Reads the outputs of any judge on benchmarks, as samples of their examples.

A row of the file has the outputs on one example:

  id        id of the example, such as 'judgebench/PAIR_ID/AB'
  scores    [k] samples, each a list of one number per response
  verdicts  [k] samples instead of scores: 'A>B', 'B>A' or 'A=B' for two
            responses, or the index from 0 of the best response
  metas     [k] scores by a meta RM; optional
  greedy    the sample at temperature 0; optional

A sample that did not parse is null. Responses have the order of the published
file of the benchmark. The suites shuffle it; this module does the same.
"""

import collections
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from grm_jax.data import dataset_files
from grm_jax.errors import UserError
from grm_jax.evaluation import generation_stats, vote_subsets
from grm_jax.judgement import example as examples_lib
from grm_jax.judgement import preference_rows, response_order, row_values
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.judgement import ExampleError, JudgedExample, Judgement

# Suites that do not shuffle. A game of JudgeBench has its own order: response B
# of the file is the first one of PAIR_ID/BA.
NOT_SHUFFLED = ('judgebench',)
# Text of the samples of an example without outputs.
MISSING = '[no output]'
_PAIR_VERDICTS = {'A>B': (1.0, 0.0), 'B>A': (0.0, 1.0), 'A=B': (0.0, 0.0)}
_MAX_LOGGED_ERRORS = 5

Scores = tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class JudgeOutput:
  """The outputs of a judge on one example.

  Attributes:
    id: id of the example.
    samples: [k] scores in the order of the example; None for a sample that did
      not parse.
    metas: [k] scores by a meta RM, None without one.
    greedy: scores at temperature 0, None without them.
  """

  id: str
  samples: tuple[Scores | None, ...]
  metas: tuple[float | None, ...]
  greedy: Scores | None


def load(
  path: str, suites: Mapping[str, Sequence[JudgingExample]]
) -> dict[str, list[JudgedExample]]:
  """Returns all examples of the suites, with their outputs in a file.

  Bad rows are logged and skipped. An example without outputs has k samples that
  did not parse, see `count_missing`.

  Args:
    path: a .json, .jsonl or .parquet file, see the module docstring.
    suites: examples by suite.

  Raises:
    UserError: the file cannot be read; it has no outputs for one of the suites;
      only some of the rows have metas.
  """
  examples = {x.id: x for members in suites.values() for x in members}
  outputs, errors = _without_other_k(*_read(path, examples))
  for message in errors[:_MAX_LOGGED_ERRORS]:
    logging.warning('%s: %s', path, message)
  if errors:
    logging.warning('%s: skipped %d bad rows', path, len(errors))
  judged = {}
  for suite, members in suites.items():
    suite_outputs = [outputs[x.id] for x in members if x.id in outputs]
    if not suite_outputs:
      bad = f'; bad rows: {len(errors)}, first: {errors[0]}' if errors else ''
      raise UserError(
        f'{path} has no outputs for the {len(members)} examples of '
        f'config.suites.{suite}, such as {members[0].id!r}{bad}'
      )
    judged[suite] = _join(members, suite_outputs)
    _check(suite, judged[suite])
  return judged


def _check(suite: str, judged: Sequence[JudgedExample]) -> None:
  """Raises UserError if only some have metas; logs how many have no outputs."""
  vote_subsets.gather(judged)
  if missing := count_missing(judged):
    logging.warning(
      '%s: %d of %d examples have no outputs and count as parse failures',
      suite,
      missing,
      len(judged),
    )


def count_missing(judged: Sequence[JudgedExample]) -> int:
  """Returns the number of examples without outputs."""
  return sum(
    any(x is not None and x.text == MISSING for x in (*y.samples, y.greedy))
    for y in judged
  )


def _read(
  path: str, examples: Mapping[str, JudgingExample]
) -> tuple[dict[str, JudgeOutput], list[str]]:
  """Returns the outputs by id, and what is wrong with each bad row."""
  outputs: dict[str, JudgeOutput] = {}
  errors = []
  parse = functools.partial(_parse_row, examples)
  for number, item in dataset_files.convert_rows(path, parse):
    if isinstance(item, ExampleError):
      errors.append(f'row {number}: {item.reason}')
    elif item.id in outputs:
      errors.append(f'row {number}: {item.id!r} has an earlier row too')
    else:
      outputs[item.id] = item
  return outputs, errors


def _parse_row(
  examples: Mapping[str, JudgingExample], row: Any, number: int
) -> JudgeOutput:
  if not isinstance(row, dict):
    raise UserError('the row is not a JSON object')
  if row.get('id') is None:
    raise row_values.missing_field('id', row)
  id = str(examples_lib.id_of_row(row, number))
  if id not in examples:
    raise UserError(f'no suite has an example {id!r:.80}')
  field = _samples_field(row)
  parse = functools.partial(_parse_sample, examples[id], field)
  samples = tuple(map(parse, row[field]))
  metas = _parse_metas(row.get('metas'), samples)
  greedy = parse(row.get('greedy'))
  if not samples and greedy is None:
    raise UserError(f'{field} is empty; give at least one sample, or greedy')
  return JudgeOutput(id, samples, metas, greedy)


def _samples_field(row: Mapping[str, Any]) -> str:
  """Returns the field that has the samples."""
  fields = [x for x in ('scores', 'verdicts') if row.get(x) is not None]
  if not fields:
    raise row_values.missing_field('scores or verdicts', row)
  if len(fields) == 2:
    raise UserError('a row must have either scores or verdicts, not both')
  if not isinstance(row[fields[0]], list):
    raise UserError(f'{fields[0]} must be a list of samples')
  return fields[0]


def _parse_sample(
  example: JudgingExample, field: str, value: Any
) -> Scores | None:
  """Returns the scores of a sample in the order of the example."""
  if value is None:
    return None
  n = len(example.responses)
  scores = (_parse_scores if field == 'scores' else _parse_verdict)(value, n)
  if example.tags['suite'] in NOT_SHUFFLED:
    return scores
  order = preference_rows.shuffled_order(example.id, n)
  return response_order.apply(scores, order)


def _parse_scores(value: Any, n: int) -> Scores:
  values = value if isinstance(value, list) else []
  scores = [row_values.finite_number(x) for x in values]
  numbers = tuple(x for x in scores if x is not None)
  if len(scores) != n or len(numbers) != n:
    raise UserError(
      f'a sample is {value!r:.60}; it must be a list of {n} finite numbers, '
      'one per response, or null'
    )
  return numbers


def _parse_verdict(value: Any, n: int) -> Scores:
  if n == 2 and isinstance(value, str) and value in _PAIR_VERDICTS:
    return _PAIR_VERDICTS[value]
  best = row_values.integer(value)
  if n < 2 or best is None or not 0 <= best < n:
    raise UserError(
      f'a verdict is {value!r:.60}; it must be null, an index from 0 of {n} '
      "responses, or for two 'A>B', 'B>A' or 'A=B'; one response needs scores"
    )
  return tuple(float(i == best) for i in range(n))


def _parse_metas(
  value: Any, samples: Sequence[Scores | None]
) -> tuple[float | None, ...]:
  """Returns a meta score per sample; those of parse failures may be null."""
  if value is None:
    return (None,) * len(samples)
  values = value if isinstance(value, list) else []
  metas = tuple(row_values.finite_number(x) for x in values)
  if len(metas) != len(samples) or any(
    meta is None and scores is not None
    for meta, scores in zip(metas, samples, strict=True)
  ):
    raise UserError(
      f'metas is {value!r:.60}; it must be a list of {len(samples)} finite '
      'numbers, one per sample'
    )
  return metas


def _without_other_k(
  outputs: Mapping[str, JudgeOutput], errors: Sequence[str]
) -> tuple[dict[str, JudgeOutput], list[str]]:
  """Moves rows with another number of samples than most to the errors."""
  counts = collections.Counter(len(x.samples) for x in outputs.values())
  k = counts.most_common(1)[0][0] if counts else 0
  other_k = [
    f'{x.id!r} has {len(x.samples)} samples, most rows have {k}'
    for x in outputs.values()
    if len(x.samples) != k
  ]
  same_k = {id: x for id, x in outputs.items() if len(x.samples) == k}
  return same_k, [*errors, *other_k]


def _join(
  examples: Sequence[JudgingExample], outputs: Sequence[JudgeOutput]
) -> list[JudgedExample]:
  """Returns all examples of a suite with their outputs, or parse failures."""
  scores = [s for x in outputs for s in (*x.samples, x.greedy) if s is not None]
  # The report shows how often each integer score of a GRM occurs.
  are_grm_scores = all(x in generation_stats.SCORES for s in scores for x in s)
  make_judged = functools.partial(
    _make_judged,
    number=int if are_grm_scores else float,
    has_greedy=any(x.greedy is not None for x in outputs),
  )
  failures = (None,) * len(outputs[0].samples)
  missing = JudgeOutput('', failures, failures, None)
  by_id = {x.id: x for x in outputs}
  return [make_judged(x, by_id.get(x.id, missing)) for x in examples]


def _make_judged(
  example: JudgingExample,
  output: JudgeOutput,
  number: type[int] | type[float],
  has_greedy: bool,
) -> JudgedExample:
  order = tuple(range(len(example.responses)))
  text = '' if output.id else MISSING

  def make_judgement(
    scores: Scores | None, meta: float | None = None
  ) -> Judgement:
    """Returns a judgement without a text."""
    if scores is not None:
      scores = tuple(map(number, scores))
    return Judgement(order, text, 0, '', scores, meta)

  samples = tuple(map(make_judgement, output.samples, output.metas))
  greedy = make_judgement(output.greedy) if has_greedy else None
  return JudgedExample(example, samples, greedy)
