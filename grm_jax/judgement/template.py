r"""Prompt templates in Jinja2. They can use these variables:

  query          conversation: a list of turns with `role` and `text`
  responses      texts of the responses, in the order shown
  num_responses  number of responses
  reference      section with the reference answer, or ''
  principles     principles of the example, given or generated, or ''
  hint           section that names the best response in rejective fine-tuning,
                 else ''; appended to the prompt if the template lacks it

`query` and `responses` are required. Statements are `for` and `if`; a prompt
has neither the indentation before one nor the line break after it:

  {% for turn in query %}
  [{{ turn.role }}]
  {{ turn.text }}
  {% endfor %}
  {% for response in responses %}
  [Start of Response {{ loop.index }}]
  {{ response }}
  [End of Response {{ loop.index }}]
  {% endfor %}

Values are data: they are never compiled, and what looks in them like a
delimiter of the template gets a backslash in front, so that no text can end
its own place or open another. Delimiters are the literal lines in loops, up to
the data in them, and elsewhere the literal lines that begin with `#` or `[`.
Spacing and capitals do not matter. `[End of Response 2]` is escaped anywhere,
headings and short delimiters such as `[user]` where a line begins.
"""

import dataclasses
import functools
import pathlib
import re
import traceback

import jinja2
from etils import epath
from jinja2 import meta, nodes, sandbox

from grm_jax.errors import UserError
from grm_jax.judgement.example import Turn

_REQUIRED = ('query', 'responses')
_PROMPT = (*_REQUIRED, 'hint', 'num_responses', 'principles', 'reference')
_DIRECTORY = pathlib.Path(__file__).parent / 'templates'
_JINJA = sandbox.SandboxedEnvironment(
  undefined=jinja2.StrictUndefined,
  autoescape=False,
  keep_trailing_newline=True,
  trim_blocks=True,
  lstrip_blocks=True,
)
# What an expression in a delimiter can write, by its last name.
_LABELS = dict.fromkeys(('index', 'index0', 'num_responses'), r'[\w.-]{1,20}')
_LABELS['role'] = r'(?:system|user|assistant|model)'


@dataclasses.dataclass(frozen=True)
class Template:
  """A template that was checked.

  Attributes:
    name: built-in name or path.
    source: its text.
    known: variables that it can use.
    used_variables: variables that it uses.
    delimiters: finds what looks like its delimiters in data.
    compiled: Jinja's own form.
  """

  name: str
  source: str
  known: tuple[str, ...]
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
      raise _error(self.name, [None, *lines][-1], error, self.known) from error

  def guard(self, text: str) -> str:
    """Returns `text` with a backslash before what looks like a delimiter."""
    return self.delimiters.sub(r'\\\g<0>', text)


class _Responses(list):
  """Stands for any number of responses: it has every index."""

  def __getitem__(self, index):
    return 'x'


@functools.cache
def load(
  name: str,
  known: tuple[str, ...] = _PROMPT,
  key: str = 'config.prompt.template',
) -> Template:
  """Loads the template of this name in templates/, or of this path.

  Args:
    name: built-in name or path.
    known: variables that it can use.
    key: config key that the name comes from, for messages.

  Raises:
    UserError: there is none, or it is wrong; see `parse`.
  """
  path = _DIRECTORY / f'{name}.txt'
  if not path.is_file():
    path = epath.Path(name)
  try:
    text = path.read_text(encoding='utf-8')
  except (OSError, UnicodeDecodeError) as error:
    names = ', '.join(sorted(p.stem for p in _DIRECTORY.glob('*.txt')))
    raise UserError(
      f'{key}: {name!r} is neither a readable UTF-8 file '
      f'({error}) nor one of {names}'
    ) from None
  return parse(text, name, known)


def parse(
  text: str, name: str = 'text', known: tuple[str, ...] = _PROMPT
) -> Template:
  """Compiles and checks a template that can use the variables `known`.

  Raises:
    UserError: a syntax error, a statement other than `for` and `if`, a variable
      or attribute that does not exist, or no use of query or responses.
  """
  try:
    tree = _JINJA.parse(text)
    used = meta.find_undeclared_variables(tree) - _JINJA.globals.keys()
    compiled = _JINJA.from_string(text)
  except jinja2.TemplateSyntaxError as error:
    raise _error(name, error.lineno, error.message, known) from None
  found = set()
  _keep(_follow(tree.body, {()}, found, False), found, False)
  delimiters = re.compile('|'.join(sorted(found)) or '(?!)', re.IGNORECASE)
  made = Template(name, text, known, frozenset(used), delimiters, compiled)
  values = {'query': [Turn('user', 'x')], 'responses': _Responses('xx')}
  made.render(**dict.fromkeys(known, 'x') | values | {'num_responses': 2})
  for node in tree.find_all((nodes.Stmt, nodes.Name)):
    if isinstance(node, nodes.Name):
      if node.name in used.difference(known):  # in a branch that was not tried
        raise _error(name, node.lineno, f'{node.name!r} is undefined', known)
    elif not isinstance(node, nodes.Output | nodes.For | nodes.If):
      fault = f'a statement other than for and if, {type(node).__name__}'
      raise _error(name, node.lineno, fault, known)
  if missing := [x for x in _REQUIRED if x in known and x not in used]:
    fault = f'it does not use {" and ".join(missing)}, which a judge must see'
    raise _error(name, None, fault, known)
  return made


def _error(name, line, fault, known) -> UserError:
  place = f'{name}, line {line}' if line else name
  fault = ' '.join(str(fault).split())
  return UserError(
    f'template {place}: {fault}; the variables are {", ".join(known)}'
  )


def _follow(node, lines, found, in_loop):
  """Adds patterns of the lines that a node or a list of nodes ends to `found`.

  `lines` are the words of what can be the last line before it, as patterns.
  Returns the same after it. Data in a line end the delimiter.
  """
  follow = functools.partial(_follow, found=found, in_loop=in_loop)
  match node:
    case [*several]:
      for child in several:
        lines = follow(child, lines)
    case nodes.Output() | nodes.Concat() | nodes.Add() | nodes.Filter():
      parts = node.iter_child_nodes(only=('nodes', 'left', 'right', 'node'))
      lines = follow([*parts], lines)
    case nodes.If():
      branches = (node.body, *(x.body for x in node.elif_), node.else_)
      lines = set().union(*(follow(x, lines) for x in branches))
    case nodes.CondExpr():
      lines = follow(node.expr1, lines) | follow(node.expr2 or [], lines)
    case nodes.For():
      _keep(lines, found, in_loop)
      for body in (node.body, node.else_):
        _keep(_follow(body, {()}, found, True), found, True)
      lines = {()}
    case nodes.TemplateData(data=text) | nodes.Const(value=str(text)):
      for i, part in enumerate(text.split('\n')):
        if i:
          _keep(lines, found, in_loop)
          lines = {()}
        words = [re.escape(x) for x in re.findall(r'\w+|[^\w\s]', part)]
        lines = {(*line, *words) for line in lines}
    case (
      nodes.Name(name=name)
      | nodes.Getattr(attr=name)
      | nodes.Getitem(arg=nodes.Const(value=name) | nodes.Getattr(attr=name))
    ) if in_loop and name in _LABELS:
      lines = {(*line, _LABELS[name]) for line in lines}
    case _:
      _keep(lines, found, in_loop)
      lines = set() if in_loop else {()}
  return lines


def _keep(lines, found, in_loop) -> None:
  """Adds patterns of those lines that are delimiters, however spaced."""
  for words in lines:
    own = set(words).difference(_LABELS.values())
    if not own or not (in_loop or words[0] in (r'\#', r'\[')):
      continue
    pattern = r'[^\S\n]*'.join(words)
    # Other line breaks than \n are breaks to a reader as well. Long delimiters
    # are escaped wherever they stand; `[user]` inside a line may be code.
    begin = r'(?:(?<=[\n\r\v\f\x1c-\x1e\x85\u2028\u2029])|\A)[^\S\n]*'
    long = words[0] == r'\[' and len(words) > 3
    found.add(pattern if long else begin + pattern)
