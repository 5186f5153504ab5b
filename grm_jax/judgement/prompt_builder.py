"""Builds the prompt that a GRM reads, as text and as tokens.

An example that is too long for the prompt is shortened. First its responses are
truncated to one common length, so that only the longest ones lose text, down to
200 characters each; if that is not enough, the turns of the conversation are
truncated in the same way. A mark in the text replaces what is removed. In a
text that has such a mark of its own, a backslash comes before it. Judges that
read responses one at a time truncate each of them to the length that fits.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

from grm_jax.errors import UserError
from grm_jax.judgement import guard as guards
from grm_jax.judgement import template as templates
from grm_jax.judgement.example import JudgingExample, Turn
from grm_jax.judgement.template import Template

# Text to token ids, in the model's chat format.
ChatTokenizer = Callable[[str], Sequence[int]]

TOO_LONG = ('shorten', 'refuse')
_MIN_LENGTH = 200  # characters
# No supported tokenizer has longer tokens. A text with more characters per
# token cannot fit and need not be tokenized.
_MAX_CHARS_PER_TOKEN = 64
# Replaces what is removed of a text.
_REMOVED = '[... {} characters left out ...]'
_MARK_GUARD = guards.Guard(
  [
    ('[', *(guards.INDEX,) * n, *guards.tokens('characters left out'), ']')
    for n in range(3)  # 1,234 is two numbers
  ]
)


@dataclasses.dataclass(frozen=True)
class PromptTokens:
  """A prompt in the model's chat format.

  Attributes:
    tokens: its token ids.
    shortened: whether text of the example is left out to make it fit.
  """

  tokens: tuple[int, ...]
  shortened: bool


@dataclasses.dataclass(frozen=True)
class Hint:
  """Names of templates that state the label in a prompt; see template.load.

  Attributes:
    template: hint of several responses.
    single: hint of a single response.
  """

  template: str = 'hint'
  single: str = 'hint_single'


def render(
  template: Template,
  example: JudgingExample,
  order: Sequence[int],
  *,
  hint: Hint | None = None,
) -> str:
  """Returns the prompt's text.

  Args:
    template: the template to fill.
    example: the example to judge.
    order: order[position] is the index of the response at that position.
    hint: states the label (rejective fine-tuning); None for no hint.

  Raises:
    UserError: the template cannot be filled with this example, or the hint
      needs a label that the example lacks.
  """
  return _fill(template, _without_marks(example), order, hint=hint)


def _without_marks(example: JudgingExample) -> JudgingExample:
  """Returns the example with a backslash before marks in its own texts."""
  escape = _MARK_GUARD.escape
  return dataclasses.replace(
    example,
    query=tuple(Turn(turn.role, escape(turn.text)) for turn in example.query),
    responses=tuple(map(escape, example.responses)),
    reference=escape(example.reference),
    principles=escape(example.principles),
  )


def _fill(
  template: Template,
  example: JudgingExample,
  order: Sequence[int],
  *,
  hint: Hint | None,
) -> str:
  """Returns the prompt's text; see `render`."""
  if problem := templates.missing_text(template, len(order)):
    raise UserError(
      f'template {template.name}: {problem}; use a template that shows '
      f'{len(order)} responses'
    )
  section = _load_hint(hint, len(order)) if hint else None
  guard = functools.partial(template.guard, hint=section)
  hint_text = section.render(**_label(guard, example, order)) if section else ''
  text = template.render(
    query=[Turn(turn.role, guard(turn.text)) for turn in example.query],
    responses=[guard(example.responses[i]) for i in order],
    num_responses=len(order),
    reference=_reference(guard, example),
    principles=guard(example.principles.strip()),
    hint=hint_text,
  )
  # A user's template may have no slot for the hint.
  return text if 'hint' in template.used_variables else text + hint_text


def _reference(guard: Callable[[str], str], example: JudgingExample) -> str:
  """Returns the section with the reference answer, '' without one."""
  if not example.reference:
    return ''
  text = guard(example.reference.strip())
  return templates.load_section('reference').render(reference=text)


def _load_hint(hint: Hint, num_responses: int) -> Template:
  if num_responses == 1:
    return templates.load_hint(hint.single, 'hint_single')
  return templates.load_hint(hint.template, 'hint')


def _label(
  guard: Callable[[str], str], example: JudgingExample, order: Sequence[int]
) -> dict[str, object]:
  """Returns the variables of a hint."""
  if len(order) == 1:
    if example.rewards is None:
      raise UserError(
        f'{example.id}: a hint needs the label of the response; set `rewards`'
      )
    return {'label': f'{example.rewards[0]:g}'}
  if example.best is None:
    raise UserError(f'{example.id}: a hint needs a best response; set `best`')
  strength = guard(example.tags.get('strength', ''))
  return {
    'best': list(order).index(example.best) + 1,
    'strength': f', by {strength} out of 3' if strength else '',
  }


def tokenize(
  template: Template,
  example: JudgingExample,
  order: Sequence[int],
  chat: ChatTokenizer,
  *,
  limit: int,
  too_long: str = 'shorten',
  hint: Hint | None = None,
  key: str = 'config.prompt',
) -> PromptTokens:
  """Returns the prompt's tokens in the model's chat format.

  Args:
    template: see `render`.
    example: see `render`.
    order: see `render`.
    chat: converts the text to token ids. It must not convert data to control
      tokens, see tokenizer.chat_format.render_user.
    limit: maximum number of tokens.
    too_long: 'shorten' by the rule above, or 'refuse'.
    hint: see `render`.
    key: config key that `too_long` is under, for messages.

  Raises:
    UserError: see `render`; or the example is too long.
  """
  example = _without_marks(example)
  prompt = fit(
    example,
    lambda candidate: chat(_fill(template, candidate, order, hint=hint)),
    limit,
    ('responses', 'query') if too_long == 'shorten' else (),
  )
  if prompt is None:
    raise _too_long(template, example, order, chat, limit, key, too_long)
  return prompt


def fit(
  example: JudgingExample,
  tokenize_example: Callable[[JudgingExample], Sequence[int]],
  limit: int,
  parts: Sequence[str],
) -> PromptTokens | None:
  """Returns the tokens of an example, shortened by the rule above if needed.

  Args:
    example: the example.
    tokenize_example: returns the tokens that a model reads of an example.
    limit: maximum number of tokens.
    parts: what to shorten, one after the other: 'responses', 'query'.

  Returns:
    None if the example does not fit.
  """

  def tokenize_if_fits(candidate: JudgingExample) -> tuple[int, ...] | None:
    if _num_characters(candidate) > limit * _MAX_CHARS_PER_TOKEN:
      return None
    tokens = tuple(tokenize_example(candidate))
    return tokens if len(tokens) <= limit else None

  whole = tokenize_if_fits(example)
  if whole is not None:
    return PromptTokens(whole, shortened=False)
  tokens = _shorten(example, tokenize_if_fits, parts)
  return None if tokens is None else PromptTokens(tokens, shortened=True)


def fit_text(
  text: str,
  tokenize_text: Callable[[str], Sequence[int]],
  limit: int,
  too_long: str = 'shorten',
) -> PromptTokens | None:
  """Returns the tokens of one response; see `fit`."""
  return fit(
    JudgingExample('', (Turn('user', '-'),), (text,)),
    lambda candidate: tokenize_text(candidate.responses[0]),
    limit,
    ('responses',) if too_long == 'shorten' else (),
  )


def _num_characters(example: JudgingExample) -> int:
  return sum(
    len(text)
    for part in ('responses', 'query')
    for text in _texts(example, part)
  )


def _too_long(
  template: Template,
  example: JudgingExample,
  order: Sequence[int],
  chat: ChatTokenizer,
  limit: int,
  key: str,
  too_long: str,
) -> UserError:
  """Returns the error that states whether the template or the example is."""
  empty = dataclasses.replace(
    example,
    query=tuple(Turn(turn.role, '-') for turn in example.query),
    responses=('-',) * len(example.responses),
    reference='',
    principles='',
  )
  num_tokens = len(chat(render(template, empty, order)))
  if num_tokens > limit:
    return UserError(
      f'template {template.name} has {num_tokens} tokens without the texts of '
      f'an example, but a prompt can have {limit}; increase the prompt length, '
      f'or set a shorter {key}.template'
    )
  return UserError(
    f'an example of {_num_characters(example)} characters does not fit a '
    f'prompt of {limit} tokens ({key}.too_long={too_long}), of which the '
    f'template takes {num_tokens}; increase the prompt length'
  )


def _shorten(
  example: JudgingExample,
  tokenize_if_fits: Callable[[JudgingExample], tuple[int, ...] | None],
  parts: Sequence[str],
) -> tuple[int, ...] | None:
  """Returns the tokens of the least shortened example that fits, or None."""
  for part in parts:
    low, high = _MIN_LENGTH, max(map(len, _texts(example, part)))
    shortest = _truncated(example, part, low)
    tokens = tokenize_if_fits(shortest)
    if tokens is None:  # continue with the shortest responses
      example = shortest
      continue
    # Bisection for the largest common length that fits.
    while high - low > 1:
      middle = (low + high) // 2
      longer = tokenize_if_fits(_truncated(example, part, middle))
      low, high = (middle, high) if longer else (low, middle)
      tokens = longer or tokens
    return tokens
  return None


def _texts(example: JudgingExample, part: str) -> tuple[str, ...]:
  if part == 'responses':
    return example.responses
  return tuple(turn.text for turn in example.query)


def _truncated(
  example: JudgingExample, part: str, length: int
) -> JudgingExample:
  """Returns the example with the texts of one part truncated to a length."""
  texts = tuple(_truncate(text, length) for text in _texts(example, part))
  if part == 'responses':
    return dataclasses.replace(example, responses=texts)
  turns = zip(example.query, texts, strict=True)
  return dataclasses.replace(
    example, query=tuple(Turn(turn.role, text) for turn, text in turns)
  )


def _truncate(text: str, length: int) -> str:
  """Keeps the beginning and the end: the question and the final answer."""
  if len(text) <= length:
    return text
  tail_length = length // 4
  head_length = length - tail_length
  if text[-tail_length - 1] == '\\':
    # It may escape a mark, which would be one without it.
    tail_length, head_length = tail_length + 1, head_length - 1
  num_removed = len(text) - length
  return (
    f'{text[:head_length]}\n{_REMOVED.format(num_removed)}\n'
    f'{text[len(text) - tail_length :]}'
  )
