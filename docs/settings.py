"""Writes docs/settings.md, the list of all config leaves with their comments.

python -m docs.settings           writes the file
python -m docs.settings --check   exits with 1 if the file is not current
"""

import ast
import io
import pathlib
import runpy
import sys
import tokenize
from collections.abc import Iterator

from ml_collections import ConfigDict

ROOT = pathlib.Path(__file__).parents[1]
TARGET = ROOT / 'docs' / 'settings.md'
# Groups that are the config of another stage -> its file. They have the same
# leaves, so that the page does not repeat them.
NESTED = {
  'rft': {'train': 'sft.py'},
  'spct': {
    'base': 'sft.py',
    'sft': 'sft.py',
    'rft': 'rft.py',
    'grpo': 'grpo.py',
    'meta_rm': 'reward_model.py',
  },
}
HEADER = """# Settings

Generated from the comments in `configs/` by `python -m docs.settings`. Override
a setting with `--config.KEY=VALUE`. The column "default" has the value of the
config without a suffix such as `:tiny`.
"""


def comments(source: str) -> dict[str, str]:
  """Returns the comment of each leaf of the config in a file, by its key.

  A leaf's comment stands behind its value or in lines of their own above it. A
  comment above a group, or behind its opening line, belongs to the group.

  Args:
    source: text of a config file.
  """
  trailing, above = _comment_lines(source)
  lines = source.splitlines()
  comment_of: dict[str, str] = {}
  for key, first, last in _keywords(ast.parse(source)):
    text, number = [], first - 1
    while number in above and lines[number - 1].strip(' #'):
      text.insert(0, above[number])
      number -= 1
    text += [trailing[n] for n in (first, last) if n in trailing][:1]
    if text and key not in comment_of:
      comment_of[key] = ' '.join(text)
  return comment_of


def _comment_lines(source: str) -> tuple[dict[int, str], dict[int, str]]:
  """Comments by line: behind code, and in lines of their own."""
  trailing, above = {}, {}
  for token in tokenize.generate_tokens(io.StringIO(source).readline):
    if token.type == tokenize.COMMENT:
      own_line = not token.line[: token.start[1]].strip()
      text = token.string.lstrip('# ').rstrip()
      (above if own_line else trailing)[token.start[0]] = text
  return trailing, above


def _keywords(
  tree: ast.AST, prefix: str = ''
) -> Iterator[tuple[str, int, int]]:
  """(key, first line, last line) of keywords in nested `dict(...)` calls."""
  for node in ast.iter_child_nodes(tree):
    if isinstance(node, ast.Call) and _is_dict(node):
      for keyword in node.keywords:
        if keyword.arg is None:
          continue
        key = f'{prefix}{keyword.arg}'
        value = keyword.value
        group = isinstance(value, ast.Call) and _is_dict(value)
        last = keyword.lineno if group else value.end_lineno or keyword.lineno
        yield key, keyword.lineno, last
        if group:
          yield from _keywords(ast.Expr(value), f'{key}.')
    else:
      yield from _keywords(node, prefix)


def _is_dict(node: ast.Call) -> bool:
  return isinstance(node.func, ast.Name) and node.func.id == 'dict'


def leaves(
  config: ConfigDict, prefix: str = ''
) -> Iterator[tuple[str, object]]:
  """Yields (key, default) of all leaves; the axis rules are one leaf."""
  for key, value in config.items():
    name = f'{prefix}{key}'
    if isinstance(value, ConfigDict) and key != 'logical_axis_rules':
      yield from leaves(value, f'{name}.')
    elif isinstance(value, ConfigDict):
      yield name, 'see grm_jax/sharding/rules.py'
    else:
      yield name, value


def page() -> str:
  """Returns the text of docs/settings.md."""
  sections = [HEADER]
  for path in sorted((ROOT / 'configs').glob('*.py')):
    known = comments(path.read_text())
    config = runpy.run_path(str(path))['get_config']()
    nested = NESTED.get(path.stem, {})
    rows = ['| key | default | meaning |', '| --- | --- | --- |']
    for key, value in leaves(config):
      if key.split('.')[0] in nested:
        continue
      text = _meaning(key, known).replace('|', '\\|')
      default = f'`{value!r}`'.replace('|', '\\|')
      rows.append(f'| `{key}` | {default} | {text} |')
    rows += [
      f'| `{group}.*` | | see configs/{name} |'
      for group, name in nested.items()
    ]
    sections.append('\n'.join([f'## configs/{path.name}', '', *rows]) + '\n')
  return '\n'.join(sections)


def _meaning(key: str, known: dict[str, str]) -> str:
  """The comment of a leaf, or of the nearest group that has one."""
  parts = key.split('.')
  for end in range(len(parts), 0, -1):
    if text := known.get('.'.join(parts[:end])):
      return text
  return ''


def main(arguments: list[str]) -> int:
  """Writes or checks the file; returns the exit code."""
  text = page()
  if '--check' in arguments:
    current = TARGET.exists() and TARGET.read_text() == text
    if not current:
      print(f'{TARGET} is not current; run python -m docs.settings')
    return 0 if current else 1
  TARGET.write_text(text)
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
