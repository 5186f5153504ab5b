"""Commands, code, names and paths in README.md and docs/ are valid.

Every command is parsed. Commands that convert and score run here with small
files; stages that train run in tests/stages/.
"""

import json
import re
import shlex
import subprocess
import textwrap

import pytest

from docs import settings
from grm_jax.judgement.correctness import load_reward
from grm_jax.judgement.example import JudgingExample, Turn
from grm_jax.judgement.judgement import Judgement
from tests import gemma2_files, test_main
from tests.stages import spct_run
from tests.stages.stage_runs import write_adapter

# config_flags loads a config's file so.
pytestmark = pytest.mark.filterwarnings('ignore:the load_module')

PAGES = [
  test_main.ROOT / 'README.md',
  test_main.ROOT / 'CONTRIBUTING.md',
  *sorted((test_main.ROOT / 'docs').glob('*.md')),
]
TEXT = '\n'.join(path.read_text() for path in PAGES)
SIZES = """compute.dtype=float32 compute.attention=xla
sampling.max_new_tokens=16 sampling.decode_steps_per_call=8
sampling.concurrent_prompts=2
sampling.generations_per_prompt=2 sampling.prompt_buckets=(2048,) k=2"""


def commands():
  """Arguments of every command that runs a stage, without placeholders."""
  joined = TEXT.replace('\\\n', ' ')
  lines = re.findall(r'python -m grm_jax\.main (--config=[^`\n]*)', joined)
  unique = dict.fromkeys(re.sub(r'\s+', ' ', line) for line in lines)
  return [
    [x for x in shlex.split(line) if x != 'OVERRIDES' and '$' not in x]
    for line in unique
    if 'STAGE' not in line
  ]


COMMANDS = commands()


def stage_of(command):
  return re.search(r'configs/(\w+)\.py', command[0]).group(1)


def test_every_stage_has_a_command():
  stages = {x.stem for x in (test_main.ROOT / 'configs').glob('*.py')}
  assert {stage_of(x) for x in COMMANDS} == stages


@pytest.mark.parametrize('command', COMMANDS, ids=' '.join)
def test_settings_of_commands_exist(command):
  flags = [x for x in command if not x.startswith('--workdir=')]
  config = spct_run.parse(*flags)
  assert config.stage == stage_of(command)
  for key, value in (x[len('--config.') :].split('=', 1) for x in flags[1:]):
    found = config
    for part in key.split('.'):
      found = found[part]
    assert str(found) == value


def test_commands_that_convert_and_score_run(environment, tmp_path):
  """Commands that convert and score run in their order, on small files."""
  for name, scalar in (
    ('gemma-2-2b-it', False),
    ('DeepSeek-GRM-27B', False),
    ('DeepSeek-GRM-27B-MetaRM', True),
  ):
    gemma2_files.write_with_tokenizer(tmp_path / name, scalar=scalar)
  rows = [{'query': '17 + 26?', 'responses': ['43', '33']}]
  (tmp_path / 'rows.jsonl').write_text(json.dumps(rows[0]) + '\n')
  card = (
    '{% for turn in query %}\n{{ turn.role }} {{ turn.text }}\n{% endfor %}\n'
    '{% for response in responses %}\n'
    '{{ loop.index }} {{ response }}\n'
    '{% endfor %}\n'
  )
  for name in ('card.txt', 'meta_card.txt'):
    (tmp_path / name).write_text(card)
  made = [x for x in COMMANDS if stage_of(x) in ('convert', 'score')]
  assert len(made) == 9
  for command in made:
    own = [inside(tmp_path, x) for x in command]
    tuned = tmp_path / 'runs/rft/model'
    if f'--config.source={tuned}' in own and not tuned.exists():
      write_adapter(tuned, tmp_path / 'checkpoints/gemma-2-2b-it')
    if stage_of(command) == 'score':
      own += [f'--config.{x}' for x in SIZES.split()]
    test_main.run(*own, env=environment)
  for name in ('score', 'released'):
    path = tmp_path / 'runs' / name / 'scores.jsonl'
    (row,) = map(json.loads, path.read_text().splitlines())
    assert len(row['samples']) == 2
    assert (row['samples'][0]['meta'] is None) == (name == 'score')


def inside(folder, argument):
  """An argument whose path, if it has one, is in this folder."""
  key, value = argument.split('=', 1)
  files = ('checkpoint', 'meta_checkpoint', 'source', 'target', 'input')
  names = {f'--config.{x}' for x in (*files, 'prompt.template', 'prompt.meta')}
  if key == '--config.base' and value.startswith('checkpoints/'):
    names.add(key)
  return f'{key}={folder / value}' if key in {*names, '--workdir'} else argument


def test_pod_commands_pass_a_dry_run():
  page = (test_main.ROOT / 'docs' / 'pods.md').read_text()
  block = page.split('## Run on a slice\n\n')[1].split('\n\n')[0]
  out = subprocess.run(
    ['bash', '-euc', block],
    cwd=test_main.ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  lines = [x for x in out.stderr.splitlines() if 'configs/grpo.py' in x]
  assert lines and 'gcloud' in out.stderr


def test_the_api_of_the_readme():
  """The Python example of the README runs with random weights."""
  code = PAGES[0].read_text().split('from Python:')[1].split('and from')[0]
  judge = re.search(r'load_judge\((.*)\)', code).group(1)
  assert judge == "'checkpoints/grm', meta_checkpoint=None"
  import grm_jax

  made = grm_jax.load_judge(
    'random',
    meta_checkpoint=None,
    max_new_tokens=16,
    decode_steps_per_call=8,
    prompt_buckets=(1024,),
  )
  scored = eval(re.search(r'judge\.score\(.*\)', code).group(), {'judge': made})
  assert len(scored) == 1 and len(scored[0]['samples']) == 8


@pytest.mark.parametrize(
  'scores, num_tokens, expected',
  [((9, 2), 512, 1.0), ((9, 2), 768, 0.75), ((2, 9), 9000, -1.5)],
)
def test_the_custom_reward_of_the_method(
  scores, num_tokens, expected, tmp_path, monkeypatch
):
  """The code block of docs/method.md loads as its command names it."""
  page = (test_main.ROOT / 'docs' / 'method.md').read_text()
  section = page.split('## A custom reward\n')[1]
  (spec,) = re.findall(r'--config\.reward=(rewards\.py:\w+)', section)
  code = re.search(r'^    # rewards\.py\n(?:    .*\n|\n)*', section, re.M)
  (tmp_path / 'rewards.py').write_text(textwrap.dedent(code.group()))
  monkeypatch.chdir(tmp_path)
  example = JudgingExample('e', (Turn('user', 'q'),), ('a', 'b'), best=0)
  judgement = Judgement((0, 1), 'text', num_tokens, 'stop', scores)
  assert load_reward(spec)(example, judgement) == expected


@pytest.mark.parametrize(
  'path', sorted(set(re.findall(r'`((?:\w+/)+[\w.]+\.\w+)`', TEXT)))
)
def test_paths_in_documents_exist(path):
  roots = (test_main.ROOT, test_main.ROOT / 'grm_jax')
  assert any((root / path).exists() for root in roots) or path.startswith(
    'runs/'
  )


def test_make_targets_in_documents_exist():
  targets = (test_main.ROOT / 'Makefile').read_text()
  for name in re.findall(r'(?:`|    )make ([a-z0-9-]+)', TEXT):
    assert f'\n{name}:' in targets


def test_the_list_of_settings_is_current():
  """docs/settings.md is what `python -m docs.settings` writes."""
  assert settings.TARGET.read_text() == settings.page()


@pytest.mark.parametrize(
  'page, link',
  [
    (page, link)
    for page in PAGES
    for link in re.findall(r'\]\(([^)#]+)\)', page.read_text())
    if not link.startswith('http')
  ],
)
def test_links_between_documents_resolve(page, link):
  assert (page.parent / link).exists()
