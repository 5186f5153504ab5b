"""Examples that say what is right: what rejection and rewards need."""

from absl import logging

from grm_jax.data import sources
from grm_jax.judging.example import JudgingExample
from grm_jax.judging.forms import Forms


def load(
  spec: str, strict: bool, forms: Forms, prompt: str
) -> list[JudgingExample]:
  """The training examples of a source that say what is right, each id once.

  Args:
    spec: see data/sources.py.
    strict: stop at the first row that is bad.
    forms: how they will be asked.
    prompt: where the settings of `forms` are, for messages: config.prompt.

  Raises:
    ValueError: no example is left; the templates do not suit the examples.
  """
  found, _ = sources.load(spec, 'train', strict)
  examples = {example.id: example for example in found if is_told(example)}
  if not examples:
    raise ValueError(
      f'{spec}: no example says what is right; needed is the best response, or '
      'of a single one the label 0 or 1 in rewards'
    )
  if len(examples) < len(found):
    logging.warning(
      '%s: %d of %d examples do not say what is right and are left out',
      *(spec, len(found) - len(examples), len(found)),
    )
  _check(spec, forms, list(examples.values()), prompt)
  return list(examples.values())


def is_told(example: JudgingExample) -> bool:
  """Whether it is known what is right, and so whether a judgement is."""
  if len(example.responses) > 1:
    return example.best is not None
  return example.rewards is not None and example.rewards[0] in (0, 1)


def _check(spec, forms, examples, prompt) -> None:
  if not forms.single and any(len(x.responses) == 1 for x in examples):
    raise ValueError(
      f'{spec} has examples of one response, whose label is 0 or 1, and '
      f'{prompt}.single, which asks for that, is empty'
    )
  by_given = 'principles' in forms.of(2).slots()
  if by_given and not all(x.principles for x in examples):
    raise ValueError(
      f'{prompt}.template={forms.template} judges by given principles, and not '
      f'all examples of {spec} have them; a judge that is trained here learns '
      'to write them: give a template that asks for them'
    )
