"""How good a model is as a judge while it is trained, on held-out examples.

One greedy judgement of each example, by an engine that is compiled once and
gets the new parameters each time. Strict accuracy is equation 10 of arXiv
2504.02495: a tie or a parse failure is no success.
"""

import copy
import dataclasses
from collections.abc import Callable, Sequence

from absl import logging
from ml_collections import ConfigDict

from grm_jax.data import example_sources
from grm_jax.judgement import correctness, voting
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.judgement import ExampleError, JudgedExample
from grm_jax.judges.factory import make_engine
from grm_jax.judges.generative import Judge, JudgeConfig
from grm_jax.model.transformer import Transformer
from grm_jax.sampling import decode_weights
from grm_jax.sampling.engine import Engine
from grm_jax.tokenizer.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class EvalMetrics:
  """Means over examples and samples; see `figures`.

  Attributes:
    accuracy: strict, of all examples.
    pair_accuracy: strict, of examples with two responses or more.
    parse_failures: share of generations without scores.
    ties: share of examples with several where the best is not alone on top.
    first_position: share of clear winners that were shown first.
    truncated: share of generations that reached the longest length.
    tokens: mean length of a generation.
    examples: how many were judged.
  """

  accuracy: float
  pair_accuracy: float
  parse_failures: float
  ties: float
  first_position: float
  truncated: float
  tokens: float
  examples: int


class JudgeEvaluator:
  """Examples, and the engine that judges them; call `measure`."""

  def __init__(
    self,
    examples: Sequence[JudgingExample],
    model: Transformer,
    tokenizer: Tokenizer,
    settings: JudgeConfig,
    engine: Engine | None = None,
    int8: bool = False,
    **sizes,
  ):
    """Compiles nothing yet, and holds no weights.

    Args:
      examples: with a best response, or with a label for n = 1.
      model: with the compute and the layout of decoding.
      tokenizer, settings: of the judge.
      engine: of this model, shared with others; None for one of its own.
      int8: whether the engine's kernels are int8.
      **sizes: prompts, rows, size, chunk, buckets of an engine of its own.

    Raises:
      UserError: an example that does not say what is right, a setting or a
        size that is wrong: now, and not when much has been trained.
    """
    for example in examples:
      correctness.is_correct(None, example)
    self.examples, self._model, self._int8 = examples, model, int8
    engine = engine or make_engine(model, None, tokenizer, **sizes)
    self._judge = Judge(engine, tokenizer, settings)

  def measure(self, params: dict, k: int = 0) -> EvalMetrics:
    """Figures of the model with these parameters; k = 0 is greedy."""
    return eval_metrics(self.judged(params, k))

  def judged(
    self,
    params: dict,
    k: int = 0,
    stops: Callable[[], bool] = lambda: False,
  ) -> list[JudgedExample] | None:
    """K judgements of each example; those that cannot be are left out.

    The log names the first of these and counts them. `stops` is asked after
    each example whether to give up; then there is nothing.
    """
    weights, _ = decode_weights.place(self._model, params, self._int8)
    # A copy shares the programs; its caches end with it, not with the run.
    judge = copy.copy(self._judge)
    judge.engine = copy.copy(self._judge.engine)
    judge.engine.programs.weights = weights
    items = judge.judge(
      self.examples, k, progress='held out', total=len(self.examples)
    )
    found, faults, stopped = [], [], False
    for item in items:
      (faults if isinstance(item, ExampleError) else found).append(item)
      stopped = stops()
      if stopped:
        break
    judge.engine.programs.weights = None  # not held between two calls
    if stopped:
      return None
    if faults:
      logging.warning(
        '%d of %d held-out examples are left out; the first, %s: %s',
        len(faults),
        len(self.examples),
        faults[0].id,
        faults[0].reason,
      )
    return found


def from_config(
  config: ConfigDict,
  model: Transformer,
  tokenizer: Tokenizer,
  engine: Engine | None = None,
  int8: bool = False,
  **sizes,
) -> JudgeEvaluator | None:
  """What judges config.evaluation.data, by config.prompt; None for no data.

  Args:
    config: of training.
    model, tokenizer, engine, int8, **sizes: see HeldOut.

  Raises:
    UserError: as HeldOut; the data cannot be read.
  """
  if not config.evaluation.data:
    return None
  examples, _ = example_sources.load(
    config.evaluation.data, 'held_out', config.fail_on_bad_rows
  )
  settings = JudgeConfig(
    template=config.prompt.template,
    single=config.prompt.single,
    too_long=config.prompt.too_long,
    seed=config.seed,
  )
  return JudgeEvaluator(
    examples, model, tokenizer, settings, engine, int8, **sizes
  )


def eval_metrics(judged: Sequence[JudgedExample]) -> EvalMetrics:
  """Figures over all samples of all examples.

  Raises:
    UserError: an example does not say what is right.
  """
  right, pairs, ties, samples, shown = [], [], [], [], []
  for one in judged:
    for sample in one.samples:
      samples.append(sample)
      right.append(correctness.is_correct(sample.scores, one.example))
      if len(one.example.responses) > 1:
        pairs.append(right[-1])
        ties.append(_tied(sample.scores, one.example.best))
        shown.append(_first(sample))
  clear = [first for first in shown if first is not None]
  return EvalMetrics(
    accuracy=_mean(right),
    pair_accuracy=_mean(pairs),
    parse_failures=_mean([x.scores is None for x in samples]),
    ties=_mean(ties),
    first_position=_mean(clear),
    truncated=_mean([x.finish == 'length' for x in samples]),
    tokens=_mean([x.num_tokens for x in samples]),
    examples=len({one.example.id for one in judged}) if samples else 0,
  )


def voting_accuracy(judged: Sequence[JudgedExample]) -> float:
  """Share of examples whose best response has most votes.

  Votes are summed over samples; see votes.expected_correct. Of an example with
  one response the mean score must be on its label's side of 1/2. A tie is half
  right, as if it was broken at random; nothing that parses is wrong.
  """
  right = []
  for one in judged:
    example, n = one.example, len(one.example.responses)
    scores = [sample.scores for sample in one.samples]
    if n > 1:
      found = voting.sum_scores(scores, n)
      right.append(voting.expected_correct(found, example.best))
    else:
      right.append(_on_its_side(voting.mean(scores, 1), example.rewards[0]))
  return _mean(right)


def format_metrics(found: EvalMetrics) -> str:
  """Some of the figures, for a person."""
  return (
    f'accuracy {found.accuracy:.3f}, of pairs {found.pair_accuracy:.3f}, '
    f'parse failures {found.parse_failures:.3f}, ties {found.ties:.3f}, '
    f'{found.tokens:.0f} tokens'
  )


def _on_its_side(mean, label) -> float:
  if mean is None:
    return 0.0
  return 0.5 if mean[0] == 0.5 else float((mean[0] > 0.5) == label)


def _tied(scores, best) -> bool:
  if scores is None:
    return False
  top = voting.winners(scores)
  return best in top and len(top) > 1


def _first(sample) -> bool | None:
  """Whether the only winner was shown first; None if there is none."""
  if sample.scores is None:
    return None
  top = voting.winners(sample.scores)
  return sample.order[0] == top[0] if len(top) == 1 else None


def _mean(values) -> float:
  return sum(values) / len(values) if values else 0.0
