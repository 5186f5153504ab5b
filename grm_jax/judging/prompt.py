"""From an example to the prompt that a GRM reads, as text and as tokens.

Too long an example is shortened by one rule: its responses are cut to a common
length, the longest first, down to 200 characters each; then the turns of the
conversation in the same way. What was cut away is marked in the text.
"""

import dataclasses
from collections.abc import Callable, Sequence

from grm_jax.judging import template as templates
from grm_jax.judging.example import JudgingExample, Turn
from grm_jax.judging.template import Template

Chat = Callable[[str], Sequence[int]]

TOO_LONG = ('shorten', 'refuse')
# What a template may have outside of its loops.
SLOTS = ('hint', 'num_responses', 'principles', 'reference')
_LEAST = 200
# No tokenizer of ours makes tokens longer than this, so that a text of more
# characters than this per token cannot fit, and need not be tokenized.
_LONGEST_TOKEN = 64


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A rendered example.

  Attributes:
    tokens: of the whole prompt, chat form included.
    left_out: characters of the example that were cut away.
  """

  tokens: tuple[int, ...]
  left_out: int


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
    ValueError: a slot of the template that this example cannot fill, or a
      hint without anything known.
  """
  shown = [example.responses[i] for i in order]
  count = str(len(shown))
  values = {
    'num_responses': count,
    'reference': _reference(template, example),
    'hint': _hint(example, order) if hint else '',
    'principles': template.guard(example.principles.strip()),
  }
  loops = {
    'turn': [{'role': t.role, 'text': t.text} for t in example.query],
    'response': [
      {'number': str(i), 'num_responses': count, 'text': text}
      for i, text in enumerate(shown, 1)
    ],
  }
  text = template.fill(values, loops)
  # A template of someone else may have no place for it: then at the end.
  return text if 'hint' in template.slots() else text + values['hint']


def check(template: Template) -> None:
  """ValueError where `render` could not fill a template, or would hide data."""
  unknown = template.slots() - set(SLOTS)
  if unknown:
    raise ValueError(
      f'template {template.name} has a slot {{{{{min(unknown)}}}}}, which is '
      f'not filled here; there are {", ".join(SLOTS)}'
    )
  missing = {'turn', 'response'} - template.loops()
  if missing:
    raise ValueError(
      f'template {template.name} has no {{{{each {min(missing)}}}}}: a judge '
      'would not see what it judges'
    )


def _reference(template, example):
  if not example.reference:
    return ''
  part = templates.load('reference')
  text = template.guard(part.guard(example.reference.strip()))
  return part.fill({'reference': text})


def _hint(example, order):
  if len(order) == 1:
    if example.rewards is None:
      raise ValueError(f'{example.id}: a hint needs the label of the response')
    label = {'label': f'{example.rewards[0]:g}'}
    return templates.load('hint_single').fill(label)
  if example.best is None:
    raise ValueError(f'{example.id}: a hint needs to know the best response')
  strength = example.tags.get('strength', '')
  values = {
    'best': str(list(order).index(example.best) + 1),
    'strength': f', by {strength} out of 3' if strength else '',
  }
  return templates.load('hint').fill(values)


def tokenize(
  template: Template,
  example: JudgingExample,
  order: Sequence[int],
  chat: Chat,
  *,
  limit: int,
  too_long: str = 'shorten',
  hint: bool = False,
) -> Prompt:
  """The prompt's tokens, at most `limit` of them.

  Args:
    template, example, order, hint: see `render`.
    chat: text to ids in the model's chat form; data must not become control
      ids there, as in model.chat.render_user.
    limit: most tokens.
    too_long: 'shorten' by the rule above, or 'refuse'.

  Raises:
    ValueError: what `render` raises; too long an example, with both numbers.
  """

  def tokens(example):
    text = render(template, example, order, hint=hint)
    if len(text) > limit * _LONGEST_TOKEN:
      return None
    found = tuple(chat(text))
    return found if len(found) <= limit else None

  found = tokens(example)
  if found is None and too_long == 'shorten':
    found, left_out = _shorten(example, tokens)
    if found is not None:
      return Prompt(found, left_out)
  if found is None:
    size = sum(map(len, example.responses)) + _length(example.query)
    raise ValueError(
      f'an example of {size} characters has no prompt of {limit} tokens or '
      f'fewer (config.prompt.too_long={too_long})'
    )
  return Prompt(found, 0)


def _shorten(example, tokens):
  """(tokens or None, characters left out)."""
  gone = 0
  for part in ('responses', 'query'):
    texts = _texts(example, part)
    low, high = _LEAST, max(map(len, texts))
    cut = _with(example, part, texts, low)
    found = tokens(cut)
    if found is None:
      example, gone = cut, gone + _over(texts, low)
      continue
    # The largest common length that fits.
    while high - low > 1:
      middle = (low + high) // 2
      more = tokens(_with(example, part, texts, middle))
      low, high = (middle, high) if more else (low, middle)
      found = more or found
    return found, gone + _over(texts, low)
  return None, gone


def _over(texts, length):
  return sum(max(0, len(text) - length) for text in texts)


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
