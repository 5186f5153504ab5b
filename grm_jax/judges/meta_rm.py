"""The meta reward model, which scores judgements.

Its scores decide which judgements vote (arXiv 2504.02495, section 4).
"""

import dataclasses
import functools
from collections.abc import Sequence

from grm_jax.judgement import prompt_builder, template
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.judgement import ExampleError, JudgedExample
from grm_jax.judgement.template import StoredTemplate
from grm_jax.judges import faults
from grm_jax.sampling.padding import PromptWithTexts
from grm_jax.sampling.scalar_scorer import ScalarScorer
from grm_jax.tokenizer import chat_format
from grm_jax.tokenizer.tokenizer import Tokenizer

META = 'meta'  # the template of meta RMs that store none


def meta_prompt(
  example: JudgingExample,
  order: Sequence[int],
  tokenizer: Tokenizer,
  limit: int,
  template_name: str | StoredTemplate,
) -> tuple[int, ...]:
  """Returns the meta RM's prompt for judgements with one order.

  Args:
    example: the judged example.
    order: order of its responses in the judge's prompt.
    tokenizer: tokenizer of the meta RM.
    limit: maximum number of tokens.
    template_name: template of the prompt.

  Raises:
    UserError: the prompt does not fit, even shortened.
  """
  chat = functools.partial(chat_format.render_user, tokenizer)
  meta_template = template.load(template_name)
  prompt = prompt_builder.tokenize(
    meta_template, example, order, chat, limit=limit
  )
  return prompt.tokens


class MetaJudge:
  """Scores judgements by the meta RM.

  Its prompt is the conversation and the responses in the order of the judge's
  prompt. The judgements with that order are the texts that follow.
  """

  def __init__(
    self,
    scorer: ScalarScorer,
    tokenizer: Tokenizer,
    template_name: str | StoredTemplate = META,
    full_template: bool = False,
  ):
    self.scorer, self.tokenizer = scorer, tokenizer
    self.template_name, self.full_template = template_name, full_template

  def rate(self, judged: JudgedExample) -> JudgedExample | ExampleError:
    """Returns the example with `meta` in every sample, or why it cannot.

    The meta RM reads the first `max_new_tokens` tokens of a longer judgement.
    """
    by_order: dict[tuple[int, ...], list[int]] = {}
    for index, sample in enumerate(judged.samples):
      by_order.setdefault(sample.order, []).append(index)
    try:
      items = [
        self._item(judged, order, indices)
        for order, indices in by_order.items()
      ]
    except Exception as error:
      failure = faults.example_error(judged.example.id, error)
      return ExampleError(failure.id, f'meta RM: {failure.reason}')
    samples = list(judged.samples)
    scores = self.scorer.score(items)
    for indices, values in zip(by_order.values(), scores, strict=True):
      for index, value in zip(indices, values, strict=True):
        samples[index] = dataclasses.replace(samples[index], meta=float(value))
    return dataclasses.replace(judged, samples=tuple(samples))

  def _item(self, judged, order, indices) -> PromptWithTexts:
    """Returns the prompt of an order and the judgements that follow it."""
    prompt_limit = self.scorer.prompt_buckets[-1]
    text_limit = self.scorer.max_new_tokens
    prompt = meta_prompt(
      judged.example, order, self.tokenizer, prompt_limit, self.template_name
    )
    texts = [judged.samples[i].text for i in indices]
    return prompt, [
      chat_format.model_turn(self.tokenizer, x, self.full_template, text_limit)
      for x in texts
    ]
