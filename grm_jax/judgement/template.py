r"""Prompt templates in Jinja2.

A template can use these variables:

  query          conversation: a list of turns with `role` and `text`
  responses      texts of the responses, in the order of the prompt
  num_responses  number of responses
  reference      section with the reference answer, or ''
  principles     principles of the example, given or generated, or ''
  hint           section that names the best response in rejective fine-tuning,
                 else ''; appended to the prompt if the template lacks it

`query` and `responses` are required. The only statements are `for` and `if`.
Neither the indentation before a statement nor the line break after it is part
of the prompt:

  {% for turn in query %}
  [{{ turn.role }}]
  {{ turn.text }}
  {% endfor %}
  {% for response in responses %}
  [Start of Response {{ loop.index }}]
  {{ response }}
  [End of Response {{ loop.index }}]
  {% endfor %}

Values are data. They are never compiled, and `Template.guard` puts a backslash
before anything in them that looks like a delimiter, so that no text can end its
own slot or open another one. The delimiters of a template are

- in loops: all literal lines, up to the first value in the line;
- elsewhere: the literal lines that begin with `#` or `[`.

All literal lines of the sections that are inserted into prompts (reference
answer, hint) are delimiters in every prompt. judgement/guard.py defines what
looks like one.

A template is checked when it is loaded, and again for each number of responses:
texts of known content must appear in the prompt whole and in order, with and
without a reference, principles and a hint. A template that reads responses by
their numbers, such as `responses[1]`, must be correct for some number of them.
"""

import dataclasses
import difflib
import functools
import itertools
import os
import pathlib
import re
import string
import traceback
from collections.abc import Sequence
from typing import Any

import jinja2
from etils import epath
from jinja2 import meta, nodes, sandbox

from grm_jax.errors import UserError
from grm_jax.judgement import guard as guards
from grm_jax.judgement.example import Turn
from grm_jax.judgement.guard import Delimiter

_REQUIRED = ('query', 'responses')
_PROMPT_VARIABLES = (
  *_REQUIRED,
  'hint',
  'num_responses',
  'principles',
  'reference',
)
_SECTION_VARIABLES = ('hint', 'principles', 'reference')
_DIRECTORY = pathlib.Path(__file__).parent / 'templates'
_JINJA = sandbox.SandboxedEnvironment(
  undefined=jinja2.StrictUndefined,
  autoescape=False,
  keep_trailing_newline=True,
  trim_blocks=True,
  lstrip_blocks=True,
)
# What these variables and attributes can write in a delimiter.
_LABELS = dict.fromkeys(('index', 'index0', 'num_responses'), guards.INDEX)
_LABELS['role'] = guards.ROLE
# Sections that are inserted into prompts, and their variables.
SECTIONS = {
  'reference': ('reference',),
  'hint': ('best', 'strength'),
  'hint_single': ('label',),
}


@dataclasses.dataclass(frozen=True)
class Template:
  """A compiled and checked template.

  Attributes:
    name: built-in name or path.
    source: text of the template.
    variables: names of the variables that it can use.
    used_variables: names of the variables that it uses.
    delimiters: the delimiters of the template itself.
    has_fixed_slots: whether it reads responses by number: `responses[0]`.
    compiled: the template as Jinja compiles it.
  """

  name: str
  source: str
  variables: tuple[str, ...]
  used_variables: frozenset[str]
  delimiters: frozenset[Delimiter]
  has_fixed_slots: bool
  compiled: jinja2.Template

  def render(self, **values: object) -> str:
    """Returns the text with these values; pass data through `guard` first.

    Raises:
      UserError: an expression of the template fails.
    """
    try:
      return self.compiled.render(values)
    except Exception as error:  # an expression can raise anything
      frames = traceback.extract_tb(error.__traceback__)
      lines = [x.lineno for x in frames if x.filename == '<template>']
      line = lines[-1] if lines else None
      raise _error(self.name, line, error, self.variables) from error

  def guard(self, text: str, hint: 'Template | None' = None) -> str:
    """Returns `text` with a backslash before what looks like a delimiter.

    Args:
      text: data.
      hint: the hint that is inserted, if it is not one of SECTIONS.
    """
    own = self.delimiters.union(hint.delimiters) if hint else self.delimiters
    return _make_guard(own).escape(text)


@functools.lru_cache(64)
def _make_guard(delimiters: frozenset[Delimiter]) -> guards.Guard:
  """Returns the guard of a template with these delimiters and all sections."""
  sections = (load_section(name).delimiters for name in SECTIONS)
  return guards.Guard(delimiters.union(*sections))


class _AnyNumberOfResponses(list):
  """A list of two responses that accepts every index.

  A template may be written for another number of responses.
  """

  def __getitem__(self, index: Any) -> Any:
    return 'x'


@dataclasses.dataclass(frozen=True)
class StoredTemplate:
  """A template's text, as a model directory stores it.

  Attributes:
    name: name or path from which it was read.
    source: its text.
  """

  name: str
  source: str

  def __str__(self) -> str:
    return self.name


def stored(name: str | StoredTemplate) -> StoredTemplate:
  """Returns a template as a model directory stores it; see `load`."""
  return StoredTemplate(str(name), source(name))


def source(name: str | StoredTemplate) -> str:
  """Returns the text of a template; see `load`."""
  return load(name).source


@functools.cache
def load(
  name: str | StoredTemplate,
  variables: tuple[str, ...] = _PROMPT_VARIABLES,
  key: str = 'config.prompt.template',
) -> Template:
  """Loads a built-in template, or the template in a file.

  Args:
    name: name of a file in templates/ without its suffix, or a path; or the
      text that a model directory stores.
    variables: names of the variables that the template can use.
    key: config key that the name comes from, for messages.

  Raises:
    UserError: there is no such template, or it is invalid; see `parse`.
  """
  if isinstance(name, StoredTemplate):
    return parse(name.source, name.name, variables)
  path: pathlib.Path | epath.Path = _DIRECTORY / f'{name}.txt'
  if not os.path.isfile(path):  # pathlib raises PermissionError
    path = epath.Path(name)
  try:
    # epath's is_file() is true of a pipe and of a device without an end.
    if os.path.exists(path) and not os.path.isfile(path):
      raise OSError('it is not a regular file')
    # Editors on Windows write a byte order mark, which is not a part of it.
    text = path.read_text(encoding='utf-8').removeprefix('\ufeff')
  except (OSError, ValueError) as error:
    names = ', '.join(sorted(x.stem for x in _DIRECTORY.glob('*.txt')))
    raise UserError(
      f'{key} is {name!r}, which cannot be read as a UTF-8 file ({error}); '
      f'give a path or one of {names}'
    ) from None
  return parse(text, name, variables)


def load_section(name: str) -> Template:
  """Loads one of SECTIONS."""
  return load(name, SECTIONS[name])


def load_hint(name: str, section: str, key: str = 'config.hint') -> Template:
  """Loads a template of hints.

  Args:
    name: see `load`.
    section: 'hint' or 'hint_single', whose variables it has.
    key: see `load`.

  Raises:
    UserError: there is no such template, it is invalid, or does not state the
      label.
  """
  template = load(name, SECTIONS[section], key)
  label = SECTIONS[section][0]
  if label not in template.used_variables:
    raise UserError(
      f'{key}={name} does not state the label; use {{{{ {label} }}}} in it'
    )
  return template


def parse(
  text: str, name: str = 'text', variables: tuple[str, ...] = _PROMPT_VARIABLES
) -> Template:
  """Compiles and checks a template.

  Args:
    text: source of the template.
    name: name or path, for messages.
    variables: names of the variables that the template can use.

  Raises:
    UserError: the template has a syntax error or a statement other than `for`
      and `if`, uses a variable or an attribute that does not exist, or writes a
      prompt that lacks the query or the responses.
  """
  _check_braces(text, name, variables)
  try:
    tree = _JINJA.parse(text)
    used = meta.find_undeclared_variables(tree) - _JINJA.globals.keys()
    compiled = _JINJA.from_string(text)
  except jinja2.TemplateSyntaxError as error:
    raise _error(name, error.lineno, error.message, variables) from None
  is_section = 'query' not in variables
  template = Template(
    name,
    text,
    variables,
    frozenset(used),
    _find_delimiters(tree, all_lines=is_section),
    _reads_responses_by_number(tree),
    compiled,
  )
  # Rendering finds attributes and filters that do not exist.
  values = dict.fromkeys(variables, 'x') | {
    'query': [Turn('user', 'x')],
    'responses': _AnyNumberOfResponses('xx'),
    'num_responses': 2,
  }
  template.render(**values)
  _check_nodes(template, tree)
  missing = [x for x in _REQUIRED if x in variables and x not in used]
  if missing:
    problem = f'{" and ".join(missing)} must be used: the judge must see it'
    raise _error(name, None, problem, variables)
  if not is_section:
    _check_slots(template)
  return template


def _check_braces(text: str, name: str, variables: Sequence[str]) -> None:
  """Raises UserError for a slot that lacks a brace, which is literal text."""
  try:
    pieces = list(_JINJA.lex(text))
  except jinja2.TemplateSyntaxError:
    return  # `parse` reports it
  kinds = [kind for _, kind, _ in pieces]
  for i, (line, kind, literal) in enumerate(pieces):
    if kind != 'data' or 'raw_begin' in kinds[max(0, i - 1) : i]:
      continue
    for match in _SINGLE_BRACE.finditer(literal):
      slot = re.sub(r'\W+', '_', match[match.lastindex or 0].lower())
      if difflib.get_close_matches(slot, _SLOTS, cutoff=0.8):
        line += literal.count('\n', 0, match.start())
        problem = f'{match[0]!r} is not a slot; write {{{{ NAME }}}}'
        raise _error(name, line, problem, variables)


# `{ reference }}`, `{Reference}`, `reference }}` or `%(reference)s`, but not
# `\text{reference}`.
_SINGLE_BRACE = re.compile(
  r'(?<![\w\\])\{\s{0,9}([\w.-]{3,40})\s{0,9}\}|'
  r'(?<![\w.{-])([\w.-]{3,40})\s{0,9}\}\}|'
  r'%\(([\w.-]{3,40})\)s'
)
_SLOTS = (*_PROMPT_VARIABLES, 'response', 'turn_text', 'turn_role')


def _reads_responses_by_number(tree: nodes.Template) -> bool:
  return any(
    isinstance(item.node, nodes.Name)
    and item.node.name == 'responses'
    and isinstance(item.arg, nodes.Const)
    for item in tree.find_all(nodes.Getitem)
  )


def _check_slots(template: Template) -> None:
  """Raises UserError if a prompt lacks a part of what it must show."""
  if template.has_fixed_slots:
    # Correct for some number of responses; `render` checks the actual one.
    problems = [missing_text(template, n) for n in range(1, 9)]
    problems = [] if '' in problems else problems[:1]
  else:
    problems = [missing_text(template, n) for n in range(1, 4)]
  for problem in filter(None, problems):
    raise _error(template.name, None, problem, template.variables)


_ROLES = (('user',), ('system', 'user', 'assistant', 'user'))


@functools.lru_cache(256)
def missing_text(template: Template, num_responses: int) -> str:
  """Returns what a prompt with this number of responses lacks, or ''.

  The prompt is written from texts of known content, in all combinations of
  sections that it can have.
  """
  optional = [x for x in _SECTION_VARIABLES if x in template.used_variables]
  for mask in itertools.product((0, 1), repeat=len(optional)):
    present = tuple(itertools.compress(optional, mask))
    for roles in _ROLES:
      problem = _missing_text(template, num_responses, roles, present)
      if problem:
        return f'{problem} (with {", ".join((*roles, *present))})'
  return ''


def _missing_text(
  template: Template,
  num_responses: int,
  roles: Sequence[str],
  sections: Sequence[str],
) -> str:
  """Returns what one such prompt lacks, or ''."""
  texts = {
    'query': [_known_text(f'turn{i}') for i in range(len(roles))],
    # The third text is the first one again, so that no order is sorted.
    'responses': [
      _known_text(f'response{i % 2 if i < 4 else i}')
      for i in range(num_responses)
    ],
    **{name: [_known_text(name)] for name in sections},
  }
  values = dict.fromkeys(_SECTION_VARIABLES, '')
  try:
    prompt = template.render(
      query=list(map(Turn, roles, texts['query'])),
      responses=texts['responses'],
      num_responses=num_responses,
      **values | {name: texts[name][0] for name in sections},
    )
  except UserError:
    if not template.has_fixed_slots:
      raise
    return f'it cannot show {num_responses} responses'
  prompt = ' '.join(prompt.split())
  for name, parts in texts.items():
    position = 0
    for number, part in enumerate(parts, 1):
      # A template can indent a text, or write a list of texts as Python does.
      forms = [' '.join(x.split()) for x in (part, repr(part)[1:-1])]
      ends = [
        begin + len(form)
        for form in forms
        if (begin := prompt.find(form, position)) >= 0
      ]
      if not ends:
        problem = f'{name}: the prompt lacks text {number} of {len(parts)}'
        is_there = any(form in prompt for form in forms)
        return problem + (', in this order' if is_there else '')
      position = ends[0]
  return ''


def _known_text(name: str) -> str:
  # Long, and with all kinds of characters, so that a filter that cuts or
  # changes texts is noticed.
  return f'{name}. {_ALL_KINDS}\n\n{"word " * 2000}.{name}'


_ALL_KINDS = f'{string.ascii_letters} {string.punctuation} 0123456789 <b>é</b>'


def _check_nodes(template: Template, tree: nodes.Template) -> None:
  """Checks the branches that rendering did not reach, and the statements."""
  unknown = template.used_variables.difference(template.variables)
  for node in tree.find_all((nodes.Stmt, nodes.Name)):
    if isinstance(node, nodes.Name):
      if node.name not in unknown:
        continue
      problem = f'{node.name!r} is undefined'
    elif isinstance(node, nodes.Output | nodes.For | nodes.If):
      continue
    else:
      problem = f'{type(node).__name__} is a statement other than for and if'
    raise _error(template.name, node.lineno, problem, template.variables)


def _error(
  name: str, line: int | None, problem: Any, variables: Sequence[str]
) -> UserError:
  place = f'{name}, line {line}' if line else name
  problem = ' '.join(str(problem).split())
  return UserError(
    f'template {place}: {problem}; the variables are {", ".join(variables)}'
  )


def _find_delimiters(
  tree: nodes.Template, all_lines: bool
) -> frozenset[Delimiter]:
  """Returns the delimiters of a template.

  Args:
    tree: its syntax tree.
    all_lines: whether all literal lines are delimiters, as in a loop.
  """
  finder = _DelimiterFinder()
  last_lines = finder.follow(tree.body, {()}, in_loop=all_lines)
  finder.end_lines(last_lines, in_loop=all_lines)
  return frozenset(finder.delimiters)


class _DelimiterFinder:
  """Walks over a template's syntax tree and collects its delimiters.

  Branches can put different texts before the same node. The walk therefore
  carries a set of lines: every text that the current line can consist of so
  far. An empty set means that the current line cannot continue a delimiter,
  because a value (data) was written in it.
  """

  def __init__(self) -> None:
    self.delimiters: set[Delimiter] = set()

  def follow(
    self, node: Any, lines: set[Delimiter], in_loop: bool
  ) -> set[Delimiter]:
    """Returns the possible current lines after a node or a list of nodes.

    Args:
      node: what is written next.
      lines: the possible current lines before it.
      in_loop: whether the node is in the body of a loop.
    """
    match node:
      case [*children]:
        for child in children:
          lines = self.follow(child, lines, in_loop)
      case nodes.Output() | nodes.Concat() | nodes.Add() | nodes.Filter():
        # Only the fields that write text, not the arguments of a filter.
        parts = node.iter_child_nodes(only=('nodes', 'left', 'right', 'node'))
        lines = self.follow([*parts], lines, in_loop)
      case nodes.If():
        branches = (node.body, *(x.body for x in node.elif_), node.else_)
        lines = set[Delimiter]().union(
          *(self.follow(x, lines, in_loop) for x in branches)
        )
      case nodes.CondExpr():
        # Without an `else` the expression can be empty.
        lines = self.follow(node.expr1, lines, in_loop) | self.follow(
          node.expr2 or [], lines, in_loop
        )
      case nodes.For():
        # An iteration begins a new line: the same lines repeat.
        self.end_lines(lines, in_loop)
        for body in (node.body, node.else_):
          last_lines = self.follow(body, {()}, in_loop=True)
          self.end_lines(last_lines, in_loop=True)
        lines = {()}
      case nodes.TemplateData(data=text) | nodes.Const(value=str(text)):
        for i, part in enumerate(text.split('\n')):
          if i:
            self.end_lines(lines, in_loop)
            lines = {()}
          tokens = guards.tokens(part)
          lines = {(*line, *tokens) for line in lines}
      case (
        nodes.Name(name=name)
        | nodes.Getattr(attr=name)
        | nodes.Getitem(arg=nodes.Const(value=name) | nodes.Getattr(attr=name))
      ) if in_loop and name in _LABELS:
        lines = {(*line, _LABELS[name]) for line in lines}
      case _:  # data
        self.end_lines(lines, in_loop)
        lines = set() if in_loop else {()}
    return lines

  def end_lines(self, lines: set[Delimiter], in_loop: bool) -> None:
    """Adds those lines that are delimiters."""
    for line in lines:
      literals = set(line).difference(_LABELS.values())
      if literals and (in_loop or line[0] in '#['):
        self.delimiters.add(line)
