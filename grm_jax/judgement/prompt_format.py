"""Which prompt an example gets, and how what is written about it is read.

What sampling, fine-tuning and scoring must agree on: a model is fine-tuned on
the very prompts that it is asked with.
"""

import dataclasses

from grm_jax.errors import UserError
from grm_jax.judgement import prompt_builder, score_parser, template
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.template import Template

READS = ('scores', 'best')


@dataclasses.dataclass(frozen=True)
class PromptFormat:
  """Templates by name, see judgement/template.py, and rules.

  Attributes:
    template: of all examples, or where `single` is given of those with two
      responses or more.
    single: of examples of one response, which it asks to score 0 or 1, as in
      training (arXiv 2504.02495, appendix); '' asks for 1 to 10 by `template`.
    too_long: 'shorten' or 'refuse', see judgement/prompt_builder.py.
    reads: 'scores', or 'best': the generation names the best response only
      (LLM-as-a-Judge), which then has score 1 and the others 0.
    key: config key of these settings, for messages.
  """

  template: str
  single: str = ''
  too_long: str = 'shorten'
  reads: str = 'scores'
  key: str = dataclasses.field(default='config.prompt', compare=False)

  def __post_init__(self):
    for key, value, known in (
      (f'{self.key}.too_long', self.too_long, prompt_builder.TOO_LONG),
      ('config.reads', self.reads, READS),
    ):
      if value not in known:
        raise UserError(f'{key} is {value!r}; it can be {", ".join(known)}')

  def check(self) -> None:
    """UserError where a template cannot be loaded; see judgement/template.py."""
    self.of(2), self.of(1)

  def of(self, num_responses: int) -> Template:
    """The template of an example with so many responses."""
    if num_responses == 1 and self.single:
      return template.load(self.single, key=f'{self.key}.single')
    return template.load(self.template, key=f'{self.key}.template')

  def tokenize(
    self,
    example: JudgingExample,
    order: tuple[int, ...],
    chat: prompt_builder.Chat,
    *,
    limit: int,
    hint: bool = False,
  ) -> tuple[int, ...]:
    """The tokens of the example's prompt; see judgement/prompt_builder.py."""
    return prompt_builder.tokenize(
      self.of(len(order)),
      example,
      order,
      chat,
      limit=limit,
      too_long=self.too_long,
      hint=hint,
      key=self.key,
    )

  def render(self, example: JudgingExample, order: tuple[int, ...]) -> str:
    """The example's prompt as text, without the model's chat form."""
    return prompt_builder.render(self.of(len(order)), example, order)

  def read(self, text: str, num_responses: int) -> tuple[int, ...] | None:
    """Scores by place of what was written; None is a parse failure."""
    if self.reads == 'best':
      best = score_parser.parse_scores(text, 1, 1, num_responses)
      places = range(1, num_responses + 1)
      return best and tuple(int(i == best[0]) for i in places)
    if num_responses == 1 and self.single:
      return score_parser.parse_scores(text, 1, 0, 1)
    return score_parser.parse_scores(text, num_responses)
