"""Examples that say what is right: what rejection and rewards need."""

from collections.abc import Sequence

from absl import logging

from grm_jax.data import example_sources
from grm_jax.errors import UserError
from grm_jax.judgement import correctness
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.prompt_format import PromptFormat


def load(spec: str, strict: bool, forms: PromptFormat) -> list[JudgingExample]:
  """The training examples of a source that say what is right, each id once.

  Args:
    spec: see data/example_sources.py.
    strict: stop at the first row that is bad.
    forms: how they will be asked.

  Raises:
    UserError: no example is left; the templates do not suit the examples.
  """
  found, _ = example_sources.load(spec, 'train', strict)
  examples = {example.id: example for example in keep_labelled(found, spec)}
  _check(spec, forms, list(examples.values()))
  return list(examples.values())


def keep_labelled(
  found: Sequence[JudgingExample], where: str
) -> list[JudgingExample]:
  """Those that say what is right; the log counts the others.

  Args:
    found: examples.
    where: they are from, for messages.

  Raises:
    UserError: none does.
  """
  examples = [example for example in found if correctness.has_label(example)]
  if not examples:
    raise UserError(
      f'{where}: no example says what is right; needed is the best response, '
      'or of a single one the label 0 or 1 in rewards'
    )
  if len(examples) < len(found):
    logging.warning(
      '%s: %d of %d examples do not say what is right and are left out',
      *(where, len(found) - len(examples), len(found)),
    )
  return examples


def _check(spec, forms, examples) -> None:
  if not forms.single and any(len(x.responses) == 1 for x in examples):
    raise UserError(
      f'{spec} has examples of one response, whose label is 0 or 1, and '
      f'{forms.key}.single, which asks for that, is empty'
    )
  by_given = 'principles' in forms.of(2).used
  if by_given and not all(x.principles for x in examples):
    raise UserError(
      f'{forms.key}.template={forms.template} judges by given principles, and '
      f'not all examples of {spec} have them; a judge that is trained here '
      'learns to write them: give a template that asks for them'
    )
