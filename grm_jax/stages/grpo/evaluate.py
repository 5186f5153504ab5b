"""Evaluation of the policy as a judge on held-out examples."""

import dataclasses
from collections.abc import Callable

from grm_jax.judges import evaluation_during_training
from grm_jax.judges.evaluation_during_training import JudgeEvaluator
from grm_jax.training import run as training_run
from grm_jax.training.metric_writer import MetricWriter


def evaluate(
  evaluator: JudgeEvaluator,
  params: dict,
  k: int,
  should_stop: Callable[[], bool],
) -> dict[str, float] | None:
  """Judges all held-out examples greedily, and by votes of k samples.

  Args:
    evaluator: the held-out examples.
    params: parameters of the policy.
    k: samples of a vote; 0 for no votes.
    should_stop: polled after each example; True ends the evaluation.

  Returns:
    The fields of EvalMetrics for greedy judgements, and voting_K, the accuracy
    of the votes. None if the evaluation was stopped.
  """
  greedy = evaluator.judged(params, 0, should_stop)
  if greedy is None:
    return None
  metrics = dataclasses.asdict(evaluation_during_training.eval_metrics(greedy))
  if k:
    sampled = evaluator.judged(params, k, should_stop)
    if sampled is None:
      return None
    accuracy = evaluation_during_training.voting_accuracy(sampled)
    metrics[f'voting_{k}'] = accuracy
  return metrics


def write_metrics(
  writer: MetricWriter, step: int, metrics: dict[str, float], k: int
) -> None:
  """Writes the result of `evaluate` as eval/NAME, and prints a line."""
  writer.write(step, {f'eval/{name}': x for name, x in metrics.items()})
  votes = f'; Voting@{k} accuracy {metrics[f"voting_{k}"]:.3f}' if k else ''
  training_run.print_on_host0(
    f'step {step}: evaluation, greedy: accuracy {metrics["accuracy"]:.3f}, '
    f'parse failures {metrics["parse_failures"]:.3f}, '
    f'{metrics["mean_generation_length"]:.0f} tokens{votes}'
  )
