"""From an example to the prompt that a GRM reads, as text and as tokens.

Too long an example is shortened by one rule: its responses are cut to a common
length, the longest first, down to 200 characters each; then the turns of the
conversation in the same way. What was cut away is marked in the text.
"""

import dataclasses
from collections.abc import Callable, Sequence

from grm_jax.errors import UserError
from grm_jax.judgement import template as templates
from grm_jax.judgement.example import JudgingExample, Turn
from grm_jax.judgement.template import Template

ChatTokenizer = Callable[[str], Sequence[int]]

TOO_LONG = ('shorten', 'refuse')
_LEAST = 200
# No tokenizer of ours makes tokens longer than this, so that a text of more
# characters than this per token cannot fit, and need not be tokenized.
_LONGEST_TOKEN = 64


def render(
  template: Template,
  example: JudgingExample,
  order: Sequence[int],
  *,
  hint: bool = False,
) -> str:
  """The prompt's text.

  Args:
    template: of what the model is asked for.
    example: what is judged.
    order: order[place] is the response that is shown there.
    hint: whether to tell which response is best (rejective fine-tuning).

  Raises:
    UserError: the template cannot show this example, or a hint without
      anything known.
  """
  guard = template.guard
  known = _hint(example, order) if hint else ''
  text = template.render(
    query=[Turn(turn.role, guard(turn.text)) for turn in example.query],
    responses=[guard(example.responses[i]) for i in order],
    num_responses=len(order),
    reference=_reference(template, example),
    principles=guard(example.principles.strip()),
    hint=known,
  )
  # A template of a user may have no place for the hint: then it ends the text.
  return text if 'hint' in template.used_variables else text + known


def _reference(template, example):
  if not example.reference:
    return ''
  part = templates.load('reference', ('reference',))
  text = template.guard(part.guard(example.reference.strip()))
  return part.render(reference=text)


def _hint(example, order):
  if len(order) == 1:
    if example.rewards is None:
      raise UserError(f'{example.id}: a hint needs the label of the response')
    part = templates.load('hint_single', ('label',))
    return part.render(label=f'{example.rewards[0]:g}')
  if example.best is None:
    raise UserError(f'{example.id}: a hint needs to know the best response')
  strength = example.tags.get('strength', '')
  return templates.load('hint', ('best', 'strength')).render(
    best=list(order).index(example.best) + 1,
    strength=f', by {strength} out of 3' if strength else '',
  )


def tokenize(
  template: Template,
  example: JudgingExample,
  order: Sequence[int],
  chat: ChatTokenizer,
  *,
  limit: int,
  too_long: str = 'shorten',
  hint: bool = False,
  key: str = 'config.prompt',
) -> tuple[int, ...]:
  """The prompt's tokens, chat form included, at most `limit` of them.

  Args:
    template, example, order, hint: see `render`.
    chat: text to ids in the model's chat form; data must not become control
      ids there, as in model.chat.render_user.
    limit: most tokens.
    too_long: 'shorten' by the rule above, or 'refuse'.
    key: config key that `too_long` is under, for messages.

  Raises:
    UserError: what `render` raises; too long an example, with both numbers.
  """

  def tokens(example):
    text = render(template, example, order, hint=hint)
    if len(text) > limit * _LONGEST_TOKEN:
      return None
    found = tuple(chat(text))
    return found if len(found) <= limit else None

  found = tokens(example)
  if found is None and too_long == 'shorten':
    found = _shorten(example, tokens)
  if found is None:
    size = sum(map(len, example.responses)) + _length(example.query)
    raise UserError(
      f'an example of {size} characters has no prompt of {limit} tokens or '
      f'fewer ({key}.too_long={too_long})'
    )
  return found


def _shorten(example, tokens):
  """tokens(the example with its longest texts cut), None if too long still."""
  for part in ('responses', 'query'):
    texts = _texts(example, part)
    low, high = _LEAST, max(map(len, texts))
    cut = _with(example, part, texts, low)
    found = tokens(cut)
    if found is None:
      example = cut
      continue
    # The largest common length that fits.
    while high - low > 1:
      middle = (low + high) // 2
      more = tokens(_with(example, part, texts, middle))
      low, high = (middle, high) if more else (low, middle)
      found = more or found
    return found
  return None


def _texts(example, part):
  if part == 'responses':
    return example.responses
  return tuple(turn.text for turn in example.query)


def _with(example, part, texts, length):
  """The example with these texts cut to a length."""
  cut = [_cut(text, length) for text in texts]
  if part == 'query':
    cut = [
      Turn(turn.role, text)
      for turn, text in zip(example.query, cut, strict=True)
    ]
  return dataclasses.replace(example, **{part: tuple(cut)})


def _cut(text, length):
  """Keeps the beginning and the end: what is asked and what is answered."""
  if len(text) <= length:
    return text
  head = length - length // 4
  tail = length // 4
  gone = len(text) - head - tail
  return (
    f'{text[:head]}\n[... {gone} characters left out ...]\n'
    f'{text[len(text) - tail :]}'
  )


def _length(turns):
  return sum(len(turn.text) for turn in turns)
