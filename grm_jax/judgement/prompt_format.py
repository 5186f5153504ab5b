"""The prompt of an example and the parser of its generations, as one setting.

Sampling, fine-tuning and scoring share a PromptFormat, because a model must be
fine-tuned on exactly the prompts that it reads later.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from grm_jax.errors import UserError
from grm_jax.judgement import (
  model_card_parser,
  prompt_builder,
  response_order,
  score_parser,
  template,
)
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.template import StoredTemplate, Template

READS = ('scores', 'best', 'critique')
EXTRACTIONS = ('strict', 'model_card')
TRUNCATED = ('fail', 'read')
MAX_SCORE = 1000  # score


@dataclasses.dataclass(frozen=True)
class PromptFormat:
  """Templates by name (see judgement/template.py) and how they are used.

  Attributes:
    template: template for all examples; with `single`, only for examples with
      two or more responses.
    single: template for examples with one response. It requests a score of 0
      or 1, as in training (arXiv 2504.02495, appendix). With '' such examples
      use `template` and its scores.
    too_long: 'shorten' or 'refuse', see judgement/prompt_builder.py.
    score_range: lowest and highest score.
    single_score_range: the same in answers to `single`.
    extraction: 'strict' (score_parser.py), or 'model_card'
      (model_card_parser.py).
    truncated: what a generation that reached the maximum length is: 'fail', a
      parse failure; or 'read', parsed like any other.
    reads: 'scores'; 'best': the generation names only the best response
      (LLM-as-a-judge), which gets score 1 and the others 0; or 'critique': it
      is a text about one response, without scores.
    key: config key of these settings, for messages.
  """

  template: str | StoredTemplate
  single: str | StoredTemplate = ''
  too_long: str = 'shorten'
  reads: str = 'scores'
  score_range: tuple[int, int] = (1, 10)
  single_score_range: tuple[int, int] = (0, 1)
  extraction: str = 'strict'
  truncated: str = 'fail'
  key: str = dataclasses.field(default='config.prompt', compare=False)

  def __post_init__(self):
    for key, value, choices in (
      (f'{self.key}.too_long', self.too_long, prompt_builder.TOO_LONG),
      (f'{self.key}.reads', self.reads, READS),
      (f'{self.key}.extraction', self.extraction, EXTRACTIONS),
      (f'{self.key}.truncated', self.truncated, TRUNCATED),
    ):
      if value not in choices:
        raise UserError(
          f'{key} is {value!r}; it must be one of {", ".join(choices)}'
        )

    for name, value in (
      ('score_range', self.score_range),
      ('single_score_range', self.single_score_range),
    ):
      if not is_score_range(value):
        raise UserError(
          f'{self.key}.{name} is {value!r}; set it to the lowest and the '
          f'highest score, such as (1, 10), from 0 to {MAX_SCORE}'
        )

  def check(self) -> None:
    """Raises UserError if a template cannot be loaded or is invalid."""
    self.template_for(2)
    single = self.template_for(1)
    problem = self.single and template.missing_text(single, 1)
    if problem:
      raise UserError(
        f'{self.key}.single={self.single}: {problem}; give a template that '
        'shows one response'
      )

  def template_for(self, num_responses: int) -> Template:
    """Returns the template for an example with this number of responses."""
    if num_responses == 1 and self.single:
      return template.load(self.single, key=f'{self.key}.single')
    return template.load(self.template, key=f'{self.key}.template')

  def tokenize(
    self,
    example: JudgingExample,
    order: Sequence[int],
    chat: prompt_builder.ChatTokenizer,
    *,
    limit: int,
    hint: prompt_builder.Hint | None = None,
  ) -> prompt_builder.PromptTokens:
    """Returns the prompt's tokens; see `prompt_builder.tokenize`."""
    return prompt_builder.tokenize(
      self.template_for(len(order)),
      example,
      order,
      chat,
      limit=limit,
      too_long=self.too_long,
      hint=hint,
      key=self.key,
    )

  def render(self, example: JudgingExample, order: Sequence[int]) -> str:
    """Returns the prompt as text, without the model's chat format."""
    return prompt_builder.render(self.template_for(len(order)), example, order)

  def parse_scores(
    self, text: str, order: Sequence[int], truncated: bool = False
  ) -> tuple[float, ...] | None:
    """Returns the scores in a generation, in the example's own order.

    Args:
      text: the generation.
      order: order[position] is the index of the response at that position of
        the prompt.
      truncated: whether the generation reached the maximum length.

    Returns:
      [C] scores, or None if the text does not parse. Strict scores are ints.
      A critique has none: ().
    """
    if truncated and self.truncated == 'fail':
      return None
    if self.reads == 'critique':
      return ()
    scores = self._scores_by_position(text, len(order), self.extraction)
    return None if scores is None else response_order.restore(scores, order)

  def extractions_differ(self, text: str, order: Sequence[int]) -> bool:
    """Returns whether strict and model-card extraction find other scores."""
    if self.reads != 'scores':
      return False
    strict, model_card = (
      self._scores_by_position(text, len(order), x) for x in EXTRACTIONS
    )
    return strict != model_card

  def _scores_by_position(
    self, text: str, num_responses: int, extraction: str
  ) -> tuple[float, ...] | None:
    if self.reads == 'best':
      best = score_parser.parse_scores(text, 1, 1, num_responses)
      positions = range(1, num_responses + 1)
      return best and tuple(int(i == best[0]) for i in positions)
    is_single = num_responses == 1 and self.single
    score_range = self.single_score_range if is_single else self.score_range
    if extraction == 'model_card':
      return model_card_parser.parse_scores(text, num_responses, *score_range)
    return score_parser.parse_scores(text, num_responses, *score_range)


def is_score_range(value: Any) -> bool:
  """Returns whether a value is a lowest and a highest score."""
  is_pair = isinstance(value, tuple) and len(value) == 2
  # type(x): True is an instance of int.
  is_ints = is_pair and all(type(x) is int for x in value)
  return is_ints and 0 <= value[0] < value[1] <= MAX_SCORE
