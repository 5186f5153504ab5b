"""Accuracy of a model as a judge on held-out examples during training.

One greedy judgement per example, by an engine that is compiled once and gets
the new weights at each evaluation. Strict accuracy is equation 10 of arXiv
2504.02495: a tie or a parse failure counts as wrong.
"""

import dataclasses
from collections.abc import Callable, Sequence

from absl import logging
from ml_collections import ConfigDict

from grm_jax.data import example_sources, labelled_examples
from grm_jax.errors import UserError
from grm_jax.judgement import correctness, voting
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.judgement import ExampleError, JudgedExample, Judgement
from grm_jax.judgement.prompt_format import PromptFormat
from grm_jax.judges.factory import make_engine
from grm_jax.judges.generative import Judge, JudgeConfig
from grm_jax.model.transformer import Transformer
from grm_jax.sampling import decode_weights
from grm_jax.sampling.engine import Engine
from grm_jax.tokenizer.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class EvalMetrics:
  """Means over examples and samples; see `eval_metrics`.

  Attributes:
    accuracy: strict accuracy over all examples.
    pair_accuracy: strict accuracy over examples with two or more responses.
    parse_failures: fraction of generations without scores.
    ties: fraction of examples with two or more responses where the best one
      shares the highest score.
    first_position_win_rate: fraction of sole winners that stood first in the
      prompt.
    truncated_fraction: fraction of generations that reached the maximum length.
    mean_generation_length: mean length of a generation, in tokens.
    examples: number of judged examples.
  """

  accuracy: float
  pair_accuracy: float
  parse_failures: float
  ties: float
  first_position_win_rate: float
  truncated_fraction: float
  mean_generation_length: float
  examples: int


class JudgeEvaluator:
  """Judges held-out examples with given parameters; see `measure`."""

  def __init__(
    self,
    examples: Sequence[JudgingExample],
    model: Transformer,
    tokenizer: Tokenizer,
    judge_config: JudgeConfig,
    engine: Engine | None = None,
    int8: bool = False,
    **engine_shapes,
  ):
    """Compiles nothing yet, and holds no weights between two evaluations.

    Args:
      examples: with a best response, or with a label if there is only one.
      model: with the compute and the layout of decoding.
      tokenizer: tokenizer of the model.
      judge_config: settings of the judge.
      engine: an engine of this model to share; None to make one.
      int8: whether kernels are quantized to int8.
      **engine_shapes: prompts, generations_per_prompt, max_new_tokens,
        decode_steps_per_call and prompt_buckets of the engine to make.

    Raises:
      UserError: an example has no label, or a setting is wrong. This comes
        before training, not at the first evaluation.
    """
    for example in examples:
      correctness.is_correct(None, example)
    self.examples, self._model, self._int8 = examples, model, int8
    engine = engine or make_engine(model, tokenizer, **engine_shapes)
    self._judge = Judge(engine, None, tokenizer, judge_config)

  def measure(self, params: dict, k: int = 0) -> EvalMetrics:
    """Returns the metrics of these parameters; k = 0 is greedy."""
    judged = self.judged(params, k)
    assert judged is not None  # nothing stops it
    return eval_metrics(judged)

  def judged(
    self,
    params: dict,
    k: int = 0,
    stops: Callable[[], bool] = lambda: False,
  ) -> list[JudgedExample] | None:
    """Returns k judgements of each example.

    Examples that cannot be judged are left out; the log counts them and names
    the first.

    Args:
      params: parameters in the form of training.
      k: samples of each example; 0 for one greedy judgement.
      stops: polled after each example; True ends the evaluation.

    Returns:
      The judged examples, or None if `stops` has ended the evaluation.
    """
    weights, _ = decode_weights.place(self._model, params, self._int8)
    # Weights and caches belong to this call and are freed with it.
    items = self._judge.with_weights(weights).judge(
      self.examples, k, progress='held out', total=len(self.examples)
    )
    judged, errors = [], []
    for item in items:
      if isinstance(item, ExampleError):
        errors.append(item)
      else:
        judged.append(item)
      if stops():
        return None
    if errors:
      logging.warning(
        '%d of %d held-out examples cannot be judged and are left out; the '
        'first is %s: %s',
        len(errors),
        len(self.examples),
        errors[0].id,
        errors[0].reason,
      )
    return judged


def from_config(
  config: ConfigDict,
  prompt_format: PromptFormat,
  model: Transformer,
  tokenizer: Tokenizer,
  engine: Engine | None = None,
  int8: bool = False,
  **engine_shapes,
) -> JudgeEvaluator | None:
  """Returns the evaluator of config.evaluation.data, or None without data.

  Args:
    config: of training.
    prompt_format: format of the prompts, as in training.
    model: see JudgeEvaluator.
    tokenizer: see JudgeEvaluator.
    engine: see JudgeEvaluator.
    int8: see JudgeEvaluator.
    **engine_shapes: see JudgeEvaluator.

  Raises:
    UserError: see JudgeEvaluator; or the data cannot be read.
  """
  if not config.evaluation.data:
    return None
  if prompt_format.reads == 'critique':
    raise UserError(
      f'config.evaluation.data is {config.evaluation.data}, but critiques have '
      "no scores that could be evaluated; set config.evaluation.data=''"
    )
  examples, _ = example_sources.load(
    config.evaluation.data, 'held_out', config.fail_on_bad_rows
  )
  if prompt_format.reads == 'best':
    examples = labelled_examples.keep_preferences(
      examples, config.evaluation.data
    )
  judge_config = JudgeConfig.from_prompt_format(prompt_format, seed=config.seed)
  return JudgeEvaluator(
    examples, model, tokenizer, judge_config, engine, int8, **engine_shapes
  )


def eval_metrics(judged: Sequence[JudgedExample]) -> EvalMetrics:
  """Returns the metrics over all samples of all examples.

  Raises:
    UserError: an example has no label.
  """
  samples = [(x.example, sample) for x in judged for sample in x.samples]
  correct = [
    correctness.is_correct(s.scores, example) for example, s in samples
  ]
  several = [len(example.responses) > 1 for example, _ in samples]
  pairs = [x for x, is_pair in zip(samples, several, strict=True) if is_pair]
  first_wins = [_first_position_wins(s) for _, s in pairs]
  return EvalMetrics(
    accuracy=_mean(correct),
    pair_accuracy=_mean(
      [x for x, is_pair in zip(correct, several, strict=True) if is_pair]
    ),
    parse_failures=_mean([s.scores is None for _, s in samples]),
    ties=_mean([_best_is_tied(s, example.best) for example, s in pairs]),
    first_position_win_rate=_mean([x for x in first_wins if x is not None]),
    truncated_fraction=_mean([s.truncated for _, s in samples]),
    mean_generation_length=_mean([s.num_tokens for _, s in samples]),
    examples=len({x.example.id for x in judged}) if samples else 0,
  )


def voting_accuracy(judged: Sequence[JudgedExample]) -> float:
  """Returns the fraction of examples whose best response wins the vote.

  Votes are sums of scores over samples; see voting.expected_correct. For an
  example with one response, the mean score must be on its label's side of 1/2.
  A tie counts as 1/2, as if it were broken at random. An example without a
  parsed sample counts as wrong.
  """
  correct = []
  for item in judged:
    example, num_responses = item.example, len(item.example.responses)
    scores = [sample.scores for sample in item.samples]
    if num_responses > 1:
      assert example.best is not None  # held-out examples are labelled
      votes = voting.sum_scores(scores, num_responses)
      correct.append(voting.expected_correct(votes, example.best))
    else:
      assert example.rewards is not None
      means = voting.mean_scores(scores, 1)
      correct.append(_agrees_with_label(means, example.rewards[0]))
  return _mean(correct)


def format_metrics(metrics: EvalMetrics) -> str:
  """Returns the main metrics as one line of text."""
  return (
    f'accuracy {metrics.accuracy:.3f}, pairs {metrics.pair_accuracy:.3f}, '
    f'parse failures {metrics.parse_failures:.3f}, ties {metrics.ties:.3f}, '
    f'{metrics.mean_generation_length:.0f} tokens'
  )


def _agrees_with_label(means: Sequence[float] | None, label: float) -> float:
  if means is None:
    return 0.0
  return 0.5 if means[0] == 0.5 else float((means[0] > 0.5) == label)


def _best_is_tied(sample: Judgement, best: int | None) -> bool:
  if sample.scores is None:
    return False
  winners = voting.winners(sample.scores)
  return best in winners and len(winners) > 1


def _first_position_wins(sample: Judgement) -> bool | None:
  """Returns whether the sole winner stood first; None without one."""
  if sample.scores is None:
    return None
  winners = voting.winners(sample.scores)
  return sample.order[0] == winners[0] if len(winners) == 1 else None


def _mean(values: Sequence[float]) -> float:
  return sum(values) / len(values) if values else 0.0
