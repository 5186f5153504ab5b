"""Progress of a run, and the rule that ends a run that no longer parses."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class RunState:
  """Progress of a run; stored in the metadata of its checkpoints.

  Attributes:
    step: number of updates done.
    eval_pending: the evaluation due at this step has not been done, because
      the run was preempted. The resumed run does it first.
    consecutive_failures: number of evaluations in a row with too many parse
      failures; see ParseFailureStop.
  """

  step: int = 0
  eval_pending: bool = False
  consecutive_failures: int = 0

  @classmethod
  def from_metadata(
    cls, metadata: Mapping[str, Any], evaluate_initial: bool = False
  ) -> 'RunState':
    """Returns the state in a checkpoint's metadata; {} is a new run.

    Args:
      metadata: from `read_metadata`.
      evaluate_initial: whether a new run begins with an evaluation.
    """
    if 'step' not in metadata:
      return cls(eval_pending=evaluate_initial)
    names = [field.name for field in dataclasses.fields(cls)]
    return cls(**{name: metadata[name] for name in names if name in metadata})


@dataclasses.dataclass(frozen=True)
class ParseFailureStop:
  """Rule that ends a run whose generations no longer parse.

  Attributes:
    max_rate: highest acceptable fraction of parse failures in an evaluation.
    patience: the run ends after this many evaluations in a row above
      max_rate; 0 never ends it.
  """

  max_rate: float
  patience: int

  def update(self, run_state: RunState, rate: float) -> tuple[RunState, str]:
    """Counts an evaluation.

    Args:
      run_state: state before the evaluation.
      rate: fraction of generations that failed to parse.

    Returns:
      The new state, and the reason to end the run or ''. With a reason the
      count restarts at 0, so that a resumed run has the full patience again.
    """
    count = run_state.consecutive_failures + 1 if rate > self.max_rate else 0
    if not self.patience or count < self.patience:
      return dataclasses.replace(run_state, consecutive_failures=count), ''
    reason = (
      f'{rate:.0%} of held-out generations do not parse, above '
      f'config.evaluation.max_parse_failure_rate={self.max_rate:g} in {count} '
      'evaluations in a row; increase config.loss.kl_coef or decrease '
      'config.optimizer.learning_rate'
    )
    return dataclasses.replace(run_state, consecutive_failures=0), reason
