"""Pairwise scalar judges: is the first response better than the second?

As in PairRM (arXiv 2306.02561), the model reads the query and both responses
together. The query and the first response are the prompt, and all second
responses follow it, so n responses need n prompts and not n * (n - 1). By
default each pair is read in both orders; the paper's ablation reads one.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from grm_jax.errors import UserError
from grm_jax.judgement import prompt_builder, response_order, template
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.judgement import ExampleError, JudgedExample
from grm_jax.judgement.prompt_builder import PromptTokens
from grm_jax.judgement.template import StoredTemplate
from grm_jax.judges import faults, row_limits
from grm_jax.judges.baselines.scalar_rm import (
  ScorerInput,
  in_batches,
  score_inputs,
  single_judgement,
)
from grm_jax.sampling.scalar_scorer import ScalarScorer
from grm_jax.tokenizer import chat_format
from grm_jax.tokenizer.tokenizer import Tokenizer

TEMPLATE = 'pair'  # the template of models that store none


def pair_prompt(
  example: JudgingExample,
  first: int,
  tokenizer: Tokenizer,
  limit: int,
  template_name: str | StoredTemplate = TEMPLATE,
  too_long: str = 'shorten',
) -> PromptTokens:
  """Returns the query and the response with index `first` as a prompt.

  Raises:
    UserError: the prompt does not fit in `limit` tokens.
  """
  chat = functools.partial(chat_format.render_user, tokenizer)
  pair_template = template.load(template_name)
  return prompt_builder.tokenize(
    pair_template, example, (first,), chat, limit=limit, too_long=too_long
  )


def pair_text(
  response: str,
  tokenizer: Tokenizer,
  template_name: str | StoredTemplate = TEMPLATE,
) -> list[int]:
  """Returns the second response in the form that follows the prompt."""
  text = template.load(template_name).guard(response)
  return chat_format.model_turn(tokenizer, text)


def second_responses(
  order: str, num_responses: int, seed: int, example_id: str
) -> list[list[int]]:
  """Returns the responses that follow each response in the pairs to read.

  Args:
    order: 'balanced' reads each pair in both orders, 'random' in one random
      order, 'fixed' in the stored order.
    num_responses: n.
    seed: seed of random orders.
    example_id: id of the example.

  Returns:
    n lists; list i has the second responses of pairs that begin with i.
  """
  indices = range(num_responses)
  if order == 'balanced':
    return [[j for j in indices if j != i] for i in indices]
  (ranking,) = response_order.orders(order, num_responses, 1, seed, example_id)
  return [sorted(ranking[ranking.index(i) + 1 :]) for i in indices]


class PairJudge:
  """Scores a response by its mean probability to beat another response.

  By default the model reads each pair in both orders, which cancels a position
  bias. The interface is that of scalar_rm.ScalarJudge.
  """

  def __init__(
    self,
    scorer: ScalarScorer,
    tokenizer: Tokenizer,
    template_name: str | StoredTemplate = TEMPLATE,
    too_long: str = 'shorten',
    order: str = 'balanced',
    seed: int = 0,
  ):
    """Shortens or refuses long examples, see judgement/prompt_builder.py.

    Args:
      scorer: the pairwise model.
      tokenizer: its tokenizer.
      template_name: template of its prompts.
      too_long: 'shorten' or 'refuse'.
      order: see `second_responses`.
      seed: seed of random orders.
    """
    self.scorer, self.tokenizer = scorer, tokenizer
    self.template_name, self.too_long = template_name, too_long
    self.order, self.seed = order, seed

  def judge(
    self,
    examples: Iterable[JudgingExample | ExampleError],
    k: int = 1,
    *,
    progress: str = '',
    total: int = 0,
  ) -> Iterator[JudgedExample | ExampleError]:
    """Yields one judgement of each example, in order, whatever k is."""
    del k
    yield from in_batches(
      self._judge_batch, examples, self.scorer.prompts, progress, total
    )

  def _judge_batch(self, examples):
    inputs = [self._input(x) for x in examples]
    scores = score_inputs(self.scorer, inputs)
    for example, logits, x in zip(examples, scores, inputs, strict=True):
      if isinstance(logits, ExampleError):
        yield logits
      else:
        probabilities = win_probabilities(logits, self._seconds(example))
        yield single_judgement(example, probabilities, x.shortened)

  def _seconds(self, example: JudgingExample) -> list[list[int]]:
    return second_responses(
      self.order, len(example.responses), self.seed, example.id
    )

  def _input(
    self, example: JudgingExample | ExampleError
  ) -> ScorerInput | ExampleError:
    """Returns a prompt per first response, with the second responses."""
    example = row_limits.limited(example, row_limits.MAX_PAIRED_RESPONSES)
    if isinstance(example, ExampleError):
      return example
    if len(example.responses) < 2:
      return ExampleError(
        example.id, 'a pairwise judge needs two responses or more; it has one'
      )
    try:
      return self._fit(example)
    except Exception as error:
      return faults.example_error(example.id, error)

  def _fit(self, example: JudgingExample) -> ScorerInput:
    """Returns the items of an example, shortened if necessary."""
    texts = [self._second(x) for x in example.responses]
    prompts = [
      pair_prompt(
        example,
        i,
        self.tokenizer,
        self.scorer.prompt_buckets[-1],
        self.template_name,
        self.too_long,
      )
      for i in range(len(texts))
    ]
    pairs = zip(prompts, self._seconds(example), strict=True)
    return ScorerInput(
      example.id,
      [
        (prompt.tokens, [texts[j].tokens for j in seconds])
        for prompt, seconds in pairs
        if seconds
      ],
      any(x.shortened for x in (*prompts, *texts)),
    )

  def _second(self, response: str) -> PromptTokens:
    """Returns a response as the second of a pair, shortened if necessary."""
    text = prompt_builder.fit_text(
      response,
      lambda x: pair_text(x, self.tokenizer, self.template_name),
      self.scorer.max_new_tokens,
      self.too_long,
    )
    if text is None:
      raise UserError(
        f'a response of {len(response)} characters is longer than '
        f'config.sampling.max_new_tokens ({self.scorer.max_new_tokens})'
      )
    return text


def win_probabilities(
  logits: Sequence[np.ndarray], seconds: Sequence[Sequence[int]]
) -> list[float]:
  """Returns each response's mean probability to beat another response.

  Args:
    logits: an array for each non-empty list in `seconds`: the logits that the
      first response is better than each of the second responses.
    seconds: see `second_responses`.

  Returns:
    n numbers in [0, 1] with mean 1/2.
  """
  n = len(seconds)
  wins = np.full((n, n), np.nan)  # wins[i, j]: i first in the prompt, beats j
  firsts = [i for i in range(n) if seconds[i]]
  for i, row in zip(firsts, logits, strict=True):
    values = np.asarray(row, np.float64)
    # The logistic function; tanh does not overflow.
    wins[i, seconds[i]] = 0.5 * (1 + np.tanh(0.5 * values))
  # A pair that was read in one order has the same probability in the other.
  swapped = 1 - wins.T
  both_orders = 0.5 * (
    np.where(np.isnan(wins), swapped, wins)
    + np.where(np.isnan(swapped), wins, swapped)
  )
  return np.nanmean(both_orders, axis=1).tolist()
