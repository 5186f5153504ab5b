"""Short texts that train the single steps of a critique, one at a time.

The steps are: solve a problem next to other problems or above responses that
may be wrong, add two digits, decide which of two numbers is larger and whether
two pieces are equal, and compare responses with an expected answer. Texts with
one step are shorter than judgements and denser in signal; a small model learns
from them in minutes what it does not learn from whole judgements in hours. They
are the general instruction data of practice runs.
"""

import itertools
from collections.abc import Iterator, Sequence

from grm_jax.data.synthetic import (
  answer_check,
  examples,
  problems,
  stateless_random,
  task_format,
  worked_steps,
)
from grm_jax.data.synthetic.problems import Problem
from grm_jax.data.synthetic.task_format import Task
from grm_jax.judgement.example import JudgingExample

_STEPS_PER_TEXT = 6  # pairs to compare, sums, or numbers to filter
_PROBLEMS_PER_TEXT = 3
_NUM_RESPONSES = tuple(n for n in examples.NUM_RESPONSES if n > 1)

# All sums and differences of two digits that are a digit, with the result.
_SUMS = tuple(
  (f'{a} {sign} {b}', str(result))
  for a, b in itertools.product(range(10), repeat=2)
  for sign, result in (('+', a + b), ('-', a - b))
  if 0 <= result <= 9
)
# (digit, filter criterion, whether the digit stays)
_FILTERS = tuple(
  (str(a), f'{side} {b}', (a > b) == (side == 'above'))
  for side in ('above', 'below')
  for a, b in itertools.permutations(range(10), 2)
)

SkillText = tuple[str, str, str]  # (id, prompt, generation)


def skill_texts(split: str, count: int, *, seed: int = 0) -> list[SkillText]:
  """Returns the first `count` texts of an endless stream.

  Args:
    split: one of problems.SPLITS; no problem is in two splits.
    count: number of texts.
    seed: other seeds yield other texts.

  Raises:
    ValueError: the split is unknown.
  """
  return list(itertools.islice(_stream(split, seed), count))


def _stream(split: str, seed: int) -> Iterator[SkillText]:
  stream = examples.stream(split, seed=seed, num_responses=_NUM_RESPONSES)
  named_problems = problems.round_robin(split, seed)
  for number, example in enumerate(stream):
    task = task_format.parse(example.tags['family'], example.query[-1].text)
    # Solving is the hardest step: half of the texts train it.
    if number % 3:
      yield _solve_above_responses(example, task)
      yield _check_responses(example, task)
    else:
      yield _solve(list(itertools.islice(named_problems, _PROBLEMS_PER_TEXT)))
      yield (_compare, _add, _filter)[number // 3 % 3](example, task)


def _solve(named_problems: Sequence[tuple[str, Problem]]) -> SkillText:
  """Solves several problems; tags state which is which."""
  n = len(named_problems)
  questions, solutions = [], []
  for number, (_, problem) in enumerate(named_problems, 1):
    tag = answer_check.response_tag(number, n)
    answer = task_format.solve(problem.task)
    questions.append(f'{tag} {problem.question}')
    solutions.append(f'{tag} {worked_steps.steps(problem.task, answer)}')
  first_id = named_problems[0][0]
  return f'{first_id}/solve', '\n'.join(questions), '\n'.join(solutions)


def _solve_above_responses(example: JudgingExample, task: Task) -> SkillText:
  """Solves a problem above responses, which the model must not copy."""
  prompt = f'{example.query[-1].text}\n{_tagged_responses(example)}Solve'
  steps = worked_steps.steps(task, task_format.solve(task))
  return f'{example.id}/solve beside', prompt, steps


def _tagged_responses(example: JudgingExample) -> str:
  """Returns the responses in the form that judging prompts show."""
  n = len(example.responses)
  tagged = []
  for number, response in enumerate(example.responses, 1):
    tag = answer_check.response_tag(number, n)
    tagged.append(f'{tag} {task_format.answer_in(response)}\n[End]\n')
  return ''.join(tagged)


def _compare(example: JudgingExample, task: Task) -> SkillText:
  """Compares pieces of answers; at least half of the pairs are equal."""
  id = f'{example.id}/compare'
  pieces = sorted(
    {
      piece
      for text in example.responses
      for piece in task_format.split_answer(task, text)
    }
  )
  pairs = []
  for i in range(_STEPS_PER_TEXT):
    first = stateless_random.choice(pieces, 'first', i, id)
    other = stateless_random.choice(pieces, 'other', i, id)
    same = stateless_random.bernoulli(0.5, 'same', i, id)
    pairs.append((first, first if same else other))
  prompt = 'Compare ' + ', '.join(f'{a} {b}' for a, b in pairs)
  return id, prompt, f'Pairs: {answer_check.compare(pairs)}.'


def _add(example: JudgingExample, task: Task) -> SkillText:
  """Adds and subtracts digits, the steps of chain_sum."""
  id = f'{example.id}/sums'
  sums = [stateless_random.choice(_SUMS, i, id) for i in range(_STEPS_PER_TEXT)]
  prompt = 'Sums ' + ', '.join(terms for terms, _ in sums)
  return id, prompt, ', '.join(f'{x} = {y}' for x, y in sums) + '.'


def _filter(example: JudgingExample, task: Task) -> SkillText:
  """Decides which digits stay, the steps of number_filtering."""
  id = f'{example.id}/sift'
  filters = [
    stateless_random.choice(_FILTERS, i, id) for i in range(_STEPS_PER_TEXT)
  ]
  prompt = 'Sift ' + ', '.join(f'{item} {side}' for item, side, _ in filters)
  steps = ', '.join(worked_steps.filter_step(*step) for step in filters)
  return id, prompt, f'{steps}.'


def _check_responses(example: JudgingExample, task: Task) -> SkillText:
  """Checks all responses against the right answer or one of the responses."""
  id = f'{example.id}/hold'
  answers = [task_format.answer_in(x) for x in example.responses]
  # A critique checks responses against its own work, which may be wrong.
  expected = stateless_random.choice(
    (task_format.solve(task), stateless_random.choice(answers, id)), 'due', id
  )
  checks = [answer_check.check_answer(task, x, expected) for x in answers]
  prompt = f'{_tagged_responses(example)}Hold against {expected}'
  return id, prompt, '\n'.join(answer_check.check_lines(checks))
