"""Short texts that teach what a critique is made of, one piece at a time.

To work an answer out, to read one response among several, and to hold an
answer against another are the steps of a critique. Texts of one step each are
several times shorter than judgements, and a small model learns from them in
minutes what it does not see in whole judgements for hours. They are the general
instruction data of practice runs.
"""

import itertools
from collections.abc import Iterator

from grm_jax.data.practice import draws, examples, holding, tasks, working
from grm_jax.judging.example import JudgingExample

# To solve is the hardest step: so many are solved for one that is held.
_SOLVED = 3

# (id, what is asked, what is to be written)
Basic = tuple[str, str, str]


def basics(split: str, count: int, *, seed: int = 0) -> list[Basic]:
  """The first `count` texts of an endless stream.

  Args:
    split: of problems, as for judging examples: no problem is in two.
    count: how many.
    seed: another one is other texts.

  Raises:
    ValueError: an unknown split.
  """
  return list(itertools.islice(_stream(split, seed), count))


def _stream(split, seed) -> Iterator[Basic]:
  stream = examples.stream(split, seed=seed, num_responses=(2, 3, 4))
  for number, example in enumerate(stream):
    task = tasks.read(example.tags['family'], example.query[-1].text)
    right = tasks.solve(task)
    yield (
      f'{example.id}/solve',
      example.query[-1].text,
      working.steps(task, right),
    )
    if number % _SOLVED:
      continue
    yield _read(example)
    # What is due is right, or what somebody said: a critique holds responses
    # against its own working, which may have a slip.
    said = [tasks.answer_in(x) for x in example.responses]
    for i, options in enumerate(((right,), said)):
      name = f'{example.id}/hold{i}'
      due = draws.choice(options, 'due', name)
      others = [x for x in said if x != due]
      answer = draws.choice((due, draws.choice(others, name)), 'same', name)
      found = holding.hold(task, answer, due)
      yield name, f'Hold {answer} against {due}', f'Held: {found.words}.'


def _read(example: JudgingExample) -> Basic:
  name = f'{example.id}/read'
  k = draws.integer(len(example.responses), name)
  shown = ''.join(
    f'[{i}] {text}\n[End]\n' for i, text in enumerate(example.responses, 1)
  )
  answer = tasks.answer_in(example.responses[k])
  return name, f'{shown}Read response {k + 1}', f'[{k + 1}] {answer}'
