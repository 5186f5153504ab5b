r"""The service under load, beside its judge alone.

  python -m benchmarks.serving --seconds=120 --clients=64 --json=serving.json
  python -m benchmarks.serving --leave=0.2  # clients that go away

A judge with random weights (configs/serve.py:tiny, or --flags for main) judges
a fixed set of requests in this process. Then a service of its own process gets
the same requests, over and over, from so many clients at once on loopback, each
with one connection. Every answer is compared with the one that was given alone.
A share of requests (`--leave`) is given up by closing the connection halfway.

Prints tokens a second of both and their ratio; answers, refusals, wrong and
lost ones; latencies; and the server's memory over time. The judge alone runs
again at the end: on a machine that others use, the ratio is to the mean of the
two.
"""

import argparse
import contextlib
import dataclasses
import http.client
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

_CONFIG = 'configs/serve.py:tiny'
_WORDS = ('sun', 'moon', 'tide', 'river', 'stone', 'seven', 'eight', 'red')
_SOME = 48  # requests, over and over
_EVERY = 1.0  # seconds between two readings of memory


def requests(count: int) -> list[dict[str, Any]]:
  """Queries of uneven length with two to four responses."""
  draw = random.Random(0)

  def text(least, most):
    return ' '.join(draw.choices(_WORDS, k=draw.randint(least, most)))

  return [
    {
      'id': str(i),
      'query': text(3, 120),
      'responses': [text(2, 40) for _ in range(draw.randint(2, 4))],
      'k': draw.randint(1, 8),
      'seed': draw.randrange(1000),
    }
    for i in range(count)
  ]


@dataclasses.dataclass
class Seen:
  """What clients saw; each adds to it under the lock."""

  lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)
  right: int = 0
  wrong: int = 0
  lost: int = 0
  left: int = 0
  refused: int = 0
  tokens: int = 0
  parted: list[str] = dataclasses.field(default_factory=list)
  seconds: list[float] = dataclasses.field(default_factory=list)


def alone(asked: Sequence[dict], overrides: Sequence[str]) -> dict[str, Any]:
  """Answers by id and tokens/s of the judge without a service."""
  code = 'from benchmarks.serving import judge_alone; judge_alone()'
  done = subprocess.run(
    [sys.executable, '-c', code, *overrides],
    input=json.dumps(list(asked)),
    capture_output=True,
    text=True,
    check=False,
  )
  if done.returncode:
    raise RuntimeError(done.stderr[-2000:])
  return json.loads(done.stdout.splitlines()[-1])


def judge_alone() -> None:
  """Reads requests, judges them twice, prints answers and the second rate."""
  from grm_jax.judgement import example as examples
  from grm_jax.judgement.judgement_request import JudgementRequest
  from grm_jax.judges import factory as judge_factory

  config = _config(sys.argv[1:])
  judge = judge_factory.from_config(
    config, judge_factory.make_judge_config(config)
  )
  rows = json.load(sys.stdin)
  asked = [
    JudgementRequest(
      examples.from_row({x: row[x] for x in ('id', 'query', 'responses')}, i),
      row['k'],
      seed=row['seed'],
    )
    for i, row in enumerate(rows)
  ]
  for _ in range(2):
    found = {}
    begin, before = time.monotonic(), judge.engine.stats.tokens
    judge.stream(
      iter(asked),
      lambda number, item, found=found: found.setdefault(number, item),
      lambda *unused: None,
      tuple,
    )
    seconds = time.monotonic() - begin
    tokens = judge.engine.stats.tokens - before
  answers = {
    rows[i]['id']: [x.text for x in found[i].samples] for i in range(len(rows))
  }
  print(json.dumps({'answers': answers, 'tokens_per_second': tokens / seconds}))


def _config(given: Sequence[str]) -> ConfigDict:
  """configs/serve.py:tiny with these overrides."""
  values = flags.FlagValues()
  argv = ['serve', f'--config={_CONFIG}', *given]
  config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=argv)
  values(argv)
  return values.config


@contextlib.contextmanager
def served(overrides: Sequence[str]) -> Iterator[tuple[subprocess.Popen, int]]:
  """(process, port) of a server that is ready."""
  command = [sys.executable, '-m', 'grm_jax.main']
  command += [f'--config={_CONFIG}', '--config.port=0', *overrides]
  process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
  try:
    for line in process.stdout:
      if found := re.search(r'serving on http://[^:]+:(\d+)', line):
        break
    else:
      raise RuntimeError('the server has ended without serving')
    yield process, int(found[1])
    process.send_signal(signal.SIGTERM)
    print(f'the server ended with status {process.wait()}')
  finally:
    process.kill()


def client(
  port: int,
  asked: Sequence[dict],
  answers: dict,
  until: float,
  leave: float,
  seed: int,
  seen: Seen,
) -> None:
  """One after the other until then."""
  draw = random.Random(seed)
  while time.monotonic() < until:
    request = draw.choice(asked)
    begin = time.monotonic()
    line = http.client.HTTPConnection('127.0.0.1', port, timeout=600)
    try:
      body = json.dumps(request)
      line.request(
        'POST', '/v1/score', body, {'Content-Type': 'application/json'}
      )
      if draw.random() < leave:
        time.sleep(draw.random())
        with seen.lock:
          seen.left += 1
        continue
      answer = line.getresponse()
      found = json.load(answer)
    except (OSError, http.client.HTTPException, ValueError):
      with seen.lock:
        seen.lost += 1
      continue
    finally:
      line.close()
    _note(seen, request, answer.status, found, answers, begin)


def _note(seen, request, status, found, answers, begin):
  with seen.lock:
    if status != 200:
      seen.refused += 1
      return
    texts, alone = [x['text'] for x in found['samples']], answers[request['id']]
    right = texts == alone
    if not right:
      seen.parted.append(_parting(request['id'], texts, alone))
    seen.right += right
    seen.wrong += not right
    seen.tokens += sum(x['tokens'] for x in found['samples'])
    seen.seconds.append(time.monotonic() - begin)


def _parting(name, texts, alone):
  """Where the first of these texts leaves what was written alone."""
  if len(texts) != len(alone):
    return f'{name}: {len(texts)} samples, {len(alone)} alone'
  number = next(i for i, x in enumerate(texts) if x != alone[i])
  pair = texts[number], alone[number]
  same = len(os.path.commonprefix(pair))
  here, there = (repr(x[same : same + 20]) for x in pair)
  return f'{name}, sample {number}, character {same}: {here}, alone {there}'


def load(
  process: subprocess.Popen,
  port: int,
  asked: Sequence[dict],
  answers: dict,
  seconds: float,
  clients: int,
  leave: float,
) -> tuple[Seen, list[float], float]:
  """(what was seen, memory over time in MB, seconds it took)."""
  seen, memory = Seen(), []
  begin = time.monotonic()
  threads = [
    threading.Thread(
      target=client,
      args=(port, asked, answers, begin + seconds, leave, i, seen),
    )
    for i in range(clients)
  ]
  for thread in threads:
    thread.start()
  while any(thread.is_alive() for thread in threads):
    memory.append(_resident(process.pid))
    time.sleep(_EVERY)
  return seen, memory, time.monotonic() - begin


def _resident(pid: int) -> float:
  with open(f'/proc/{pid}/status') as file:
    return int(re.search(r'VmRSS:\s+(\d+)', file.read())[1]) / 1024


def table(result: dict[str, Any]) -> str:
  """In Markdown."""
  lines = ['| | |', '| --- | --- |']
  return '\n'.join(lines + [f'| {k} | {v} |' for k, v in result.items()])


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--seconds', type=float, default=120)
  parser.add_argument('--clients', type=int, default=64)
  parser.add_argument('--leave', type=float, default=0.0)
  parser.add_argument('--json', default='')
  arguments, overrides = parser.parse_known_args()
  asked = requests(_SOME)
  first = alone(asked, overrides)
  with served(overrides) as (process, port):
    seen, memory, seconds = load(
      process,
      port,
      asked,
      first['answers'],
      arguments.seconds,
      arguments.clients,
      arguments.leave,
    )
  rates = [first['tokens_per_second']]
  rates.append(alone(asked, overrides)['tokens_per_second'])
  quarter = max(1, len(memory) // 4)
  result = {
    'clients': arguments.clients,
    'seconds': round(seconds, 1),
    'right answers': seen.right,
    'wrong answers': seen.wrong,
    'lost answers': seen.lost,
    'refused': seen.refused,
    'gave up by closing': seen.left,
    'tokens/s, service': round(seen.tokens / seconds, 1),
    'tokens/s, judge alone, before and after': [round(x, 1) for x in rates],
    'ratio': round(seen.tokens / seconds / np.mean(rates), 3),
    'latency, median and 95 %, s': [
      round(float(np.quantile(seen.seconds, q)), 2) for q in (0.5, 0.95)
    ],
    'memory, second and last quarter, MB': [
      round(float(np.mean(x)))
      for x in (memory[quarter : 2 * quarter], memory[-quarter:])
    ],
  }
  print(table(result))
  for line in seen.parted:
    print(line)
  if arguments.json:
    with open(arguments.json, 'w') as file:
      json.dump(result, file, indent=1)


if __name__ == '__main__':
  main()
