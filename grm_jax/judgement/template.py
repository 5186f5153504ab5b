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
before anything in them that looks like a delimiter of the template, so that no
text can end its own slot or open another one. The delimiters are

- in loops: all literal lines, up to the first value in the line;
- elsewhere: the literal lines that begin with `#` or `[`.

Spacing and case do not matter. `[End of Response 2]` is escaped anywhere;
headings and short delimiters such as `[user]` only at the beginning of a line.
"""

import dataclasses
import functools
import pathlib
import re
import traceback
from collections.abc import Sequence
from typing import Any

import jinja2
from etils import epath
from jinja2 import meta, nodes, sandbox

from grm_jax.errors import UserError
from grm_jax.judgement.example import Turn

_REQUIRED = ('query', 'responses')
_PROMPT_VARIABLES = (
  *_REQUIRED,
  'hint',
  'num_responses',
  'principles',
  'reference',
)
_DIRECTORY = pathlib.Path(__file__).parent / 'templates'
_JINJA = sandbox.SandboxedEnvironment(
  undefined=jinja2.StrictUndefined,
  autoescape=False,
  keep_trailing_newline=True,
  trim_blocks=True,
  lstrip_blocks=True,
)
# Patterns of what these variables and attributes can write in a delimiter.
_LABELS = dict.fromkeys(('index', 'index0', 'num_responses'), r'[\w.-]{1,20}')
_LABELS['role'] = r'(?:system|user|assistant|model)'


@dataclasses.dataclass(frozen=True)
class Template:
  """A compiled and checked template.

  Attributes:
    name: built-in name or path.
    source: text of the template.
    variables: names of the variables that it can use.
    used_variables: names of the variables that it uses.
    delimiters: matches text that looks like a delimiter of the template.
    compiled: the template as Jinja compiles it.
  """

  name: str
  source: str
  variables: tuple[str, ...]
  used_variables: frozenset[str]
  delimiters: re.Pattern[str]
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

  def guard(self, text: str) -> str:
    """Returns `text` with a backslash before what looks like a delimiter."""
    return self.delimiters.sub(r'\\\g<0>', text)


class _AnyNumberOfResponses(list):
  """A list of two responses that accepts every index.

  A template may be written for another number of responses.
  """

  def __getitem__(self, index: Any) -> Any:
    return 'x'


@functools.cache
def load(
  name: str,
  variables: tuple[str, ...] = _PROMPT_VARIABLES,
  key: str = 'config.prompt.template',
) -> Template:
  """Loads a built-in template, or the template in a file.

  Args:
    name: name of a file in templates/ without its suffix, or a path.
    variables: names of the variables that the template can use.
    key: config key that the name comes from, for messages.

  Raises:
    UserError: there is no such template, or it is invalid; see `parse`.
  """
  path: pathlib.Path | epath.Path = _DIRECTORY / f'{name}.txt'
  if not path.is_file():
    path = epath.Path(name)
  try:
    text = path.read_text(encoding='utf-8')
  except (OSError, UnicodeDecodeError) as error:
    names = ', '.join(sorted(x.stem for x in _DIRECTORY.glob('*.txt')))
    raise UserError(
      f'{key} is {name!r}, which cannot be read as a UTF-8 file ({error}); '
      f'give a path or one of {names}'
    ) from None
  return parse(text, name, variables)


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
      and `if`, uses a variable or an attribute that does not exist, or does not
      use `query` or `responses`.
  """
  try:
    tree = _JINJA.parse(text)
    used = meta.find_undeclared_variables(tree) - _JINJA.globals.keys()
    compiled = _JINJA.from_string(text)
  except jinja2.TemplateSyntaxError as error:
    raise _error(name, error.lineno, error.message, variables) from None
  delimiters = re.compile(
    '|'.join(_delimiter_patterns(tree)) or '(?!)', re.IGNORECASE
  )
  template = Template(
    name, text, variables, frozenset(used), delimiters, compiled
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
  return template


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


def _delimiter_patterns(tree: nodes.Template) -> list[str]:
  """Returns regular expressions of the template's delimiters, sorted."""
  finder = _DelimiterFinder()
  last_lines = finder.follow(tree.body, {()}, in_loop=False)
  finder.end_lines(last_lines, in_loop=False)
  return sorted(finder.patterns)


# The words of a literal line, as patterns.
_Line = tuple[str, ...]


class _DelimiterFinder:
  """Walks over a template's syntax tree and collects its delimiters.

  Branches can put different texts before the same node. The walk therefore
  carries a set of lines: every text that the current line can consist of so
  far. An empty set means that the current line cannot continue a delimiter,
  because a value (data) was written in it.
  """

  def __init__(self) -> None:
    self.patterns: set[str] = set()

  def follow(self, node: Any, lines: set[_Line], in_loop: bool) -> set[_Line]:
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
        lines = set[_Line]().union(
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
          patterns = [re.escape(x) for x in re.findall(r'\w+|[^\w\s]', part)]
          lines = {(*line, *patterns) for line in lines}
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

  def end_lines(self, lines: set[_Line], in_loop: bool) -> None:
    """Adds the patterns of those lines that are delimiters."""
    for line in lines:
      literals = set(line).difference(_LABELS.values())
      if not literals or not (in_loop or line[0] in (r'\#', r'\[')):
        continue
      pattern = r'[^\S\n]*'.join(line)
      # Readers see other characters than \n as line breaks too.
      begin = r'(?:(?<=[\n\r\v\f\x1c-\x1e\x85\u2028\u2029])|\A)[^\S\n]*'
      # Long delimiters are escaped anywhere. A short one such as `[user]` can
      # be code inside a line.
      is_long = line[0] == r'\[' and len(line) > 3
      self.patterns.add(pattern if is_long else begin + pattern)
