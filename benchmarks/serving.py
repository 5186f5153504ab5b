r"""Load test of the reward service against direct use of its judge.

  python -m benchmarks.serving --seconds=120 --clients=64 --json=serving.json
  python -m benchmarks.serving --disconnect=0.2

A judge with random weights (configs/serve.py:tiny with any overrides) first
judges a fixed set of requests without a server. Then --clients concurrent
clients send the same requests repeatedly to a server process over loopback.
Every response is compared with the judgements of the direct run. --disconnect
is the fraction of requests whose client closes the connection before the
response.

Prints the throughput of both and their ratio; correct, wrong, lost and rejected
responses; latencies; and the memory of the server over time. The direct run is
repeated at the end, and the ratio uses the mean of the two, which reduces the
effect of background load.
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

from benchmarks import harness

_CONFIG = 'configs/serve.py:tiny'
_WORDS = ('sun', 'moon', 'tide', 'river', 'stone', 'seven', 'eight', 'red')
_NUM_REQUESTS = 48
_MEMORY_INTERVAL_S = 1.0


def make_requests(count: int) -> list[dict[str, Any]]:
  """Makes queries of varying length with two to four responses."""
  rng = random.Random(0)

  def text(min_words, max_words):
    num_words = rng.randint(min_words, max_words)
    return ' '.join(rng.choices(_WORDS, k=num_words))

  return [
    {
      'id': str(i),
      'query': text(3, 120),
      'responses': [text(2, 40) for _ in range(rng.randint(2, 4))],
      'k': rng.randint(1, 8),
      'seed': rng.randrange(1000),
    }
    for i in range(count)
  ]


@dataclasses.dataclass
class ClientStats:
  """Statistics of all clients; updates need the lock.

  Attributes:
    lock: protects the other fields.
    correct: responses with the judgements of the direct run.
    wrong: responses with other judgements.
    lost: requests whose connection failed.
    disconnected: requests that the client gave up.
    rejected: responses with an error status.
    tokens: generated tokens in responses.
    mismatches: first difference of each wrong response.
    seconds: latencies.
  """

  lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)
  correct: int = 0
  wrong: int = 0
  lost: int = 0
  disconnected: int = 0
  rejected: int = 0
  tokens: int = 0
  mismatches: list[str] = dataclasses.field(default_factory=list)
  seconds: list[float] = dataclasses.field(default_factory=list)


def measure_direct(
  requests: Sequence[dict], overrides: Sequence[str]
) -> dict[str, Any]:
  """Runs the judge without a server in a separate process.

  Returns:
    {'answers': judgement texts by request id, 'tokens_per_second': float}.
  """
  code = 'from benchmarks.serving import judge_directly; judge_directly()'
  process = subprocess.run(
    [sys.executable, '-c', code, *overrides],
    input=json.dumps(list(requests)),
    capture_output=True,
    text=True,
    check=False,
  )
  if process.returncode:
    raise RuntimeError(process.stderr[-2000:])
  return json.loads(process.stdout.splitlines()[-1])


def judge_directly() -> None:
  """Judges the requests of stdin twice; prints answers and the second rate.

  The first pass compiles.
  """
  from grm_jax.judgement import example as examples
  from grm_jax.judgement.judgement_request import JudgementRequest
  from grm_jax.judges import factory as judge_factory

  config = harness.load_config(_CONFIG, sys.argv[1:])
  judge = judge_factory.from_config(
    config, judge_factory.make_judge_config(config)
  )
  rows = json.load(sys.stdin)
  requests = [
    JudgementRequest(
      examples.from_row({x: row[x] for x in ('id', 'query', 'responses')}, i),
      row['k'],
      seed=row['seed'],
    )
    for i, row in enumerate(rows)
  ]
  for _ in range(2):
    judged = {}
    start, start_tokens = time.monotonic(), judge.engine.stats.tokens
    judge.stream(
      iter(requests),
      lambda number, item, judged=judged: judged.setdefault(number, item),
      lambda *unused: None,
      tuple,
    )
    seconds = time.monotonic() - start
    tokens = judge.engine.stats.tokens - start_tokens
  answers = {
    rows[i]['id']: [x.text for x in judged[i].samples] for i in range(len(rows))
  }
  print(json.dumps({'answers': answers, 'tokens_per_second': tokens / seconds}))


@contextlib.contextmanager
def run_server(
  overrides: Sequence[str],
) -> Iterator[tuple[subprocess.Popen, int]]:
  """Starts a server; yields (process, port) once it is ready."""
  command = [sys.executable, '-m', 'grm_jax.main']
  command += [f'--config={_CONFIG}', '--config.port=0', *overrides]
  process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
  try:
    for line in process.stdout:
      if match := re.search(r'serving on http://[^:]+:(\d+)', line):
        break
    else:
      raise RuntimeError('the server exited before it was ready')
    yield process, int(match[1])
    process.send_signal(signal.SIGTERM)
    print(f'the server exited with status {process.wait()}')
  finally:
    process.kill()


def client(
  port: int,
  requests: Sequence[dict],
  answers: dict,
  end_time: float,
  disconnect: float,
  seed: int,
  stats: ClientStats,
) -> None:
  """Sends random requests one after another until end_time."""
  rng = random.Random(seed)
  while time.monotonic() < end_time:
    request = rng.choice(requests)
    start = time.monotonic()
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=600)
    try:
      payload = json.dumps(request)
      connection.request(
        'POST', '/v1/score', payload, {'Content-Type': 'application/json'}
      )
      if rng.random() < disconnect:
        time.sleep(rng.random())
        with stats.lock:
          stats.disconnected += 1
        continue
      response = connection.getresponse()
      body = json.load(response)
    except (OSError, http.client.HTTPException, ValueError):
      with stats.lock:
        stats.lost += 1
      continue
    finally:
      connection.close()
    _record(stats, request, response.status, body, answers, start)


def _record(
  stats: ClientStats,
  request: dict,
  status: int,
  body: dict,
  answers: dict,
  start: float,
) -> None:
  with stats.lock:
    if status != 200:
      stats.rejected += 1
      return
    texts = [x['text'] for x in body['samples']]
    expected = answers[request['id']]
    correct = texts == expected
    if not correct:
      stats.mismatches.append(_first_mismatch(request['id'], texts, expected))
    stats.correct += correct
    stats.wrong += not correct
    stats.tokens += sum(x['tokens'] for x in body['samples'])
    stats.seconds.append(time.monotonic() - start)


def _first_mismatch(
  request_id: str, texts: list[str], expected: list[str]
) -> str:
  """Describes the first difference to the direct run."""
  if len(texts) != len(expected):
    return f'{request_id}: {len(texts)} samples, {len(expected)} in direct run'
  number = next(i for i, x in enumerate(texts) if x != expected[i])
  pair = texts[number], expected[number]
  offset = len(os.path.commonprefix(pair))
  served, direct = (repr(x[offset : offset + 20]) for x in pair)
  return (
    f'{request_id}, sample {number}, character {offset}: {served}, '
    f'in direct run {direct}'
  )


def load(
  process: subprocess.Popen,
  port: int,
  requests: Sequence[dict],
  answers: dict,
  options: argparse.Namespace,
) -> tuple[ClientStats, list[float], float]:
  """Runs all clients for options.seconds.

  Returns:
    The statistics, the memory of the server over time in MB, and the elapsed
    seconds.
  """
  stats, memory = ClientStats(), []
  start = time.monotonic()
  end_time = start + options.seconds
  threads = [
    threading.Thread(
      target=client,
      args=(port, requests, answers, end_time, options.disconnect, i, stats),
    )
    for i in range(options.clients)
  ]
  for thread in threads:
    thread.start()
  while any(thread.is_alive() for thread in threads):
    memory.append(_resident_mb(process.pid))
    time.sleep(_MEMORY_INTERVAL_S)
  return stats, memory, time.monotonic() - start


def _resident_mb(pid: int) -> float:
  with open(f'/proc/{pid}/status') as file:
    return int(re.search(r'VmRSS:\s+(\d+)', file.read())[1]) / 1024


def table(result: dict[str, Any]) -> str:
  """Formats the result as a Markdown table."""
  lines = ['| | |', '| --- | --- |']
  return '\n'.join(lines + [f'| {k} | {v} |' for k, v in result.items()])


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--seconds', type=float, default=120)
  parser.add_argument('--clients', type=int, default=64)
  parser.add_argument(
    '--disconnect',
    type=float,
    default=0.0,
    help='fraction of requests whose client disconnects',
  )
  parser.add_argument('--json', help='also write the result to this JSON file')
  options, overrides = parser.parse_known_args()
  requests = make_requests(_NUM_REQUESTS)
  direct = measure_direct(requests, overrides)
  with run_server(overrides) as (process, port):
    stats, memory, seconds = load(
      process, port, requests, direct['answers'], options
    )
  rates = [
    direct['tokens_per_second'],
    measure_direct(requests, overrides)['tokens_per_second'],
  ]
  quarter = max(1, len(memory) // 4)
  result = {
    'clients': options.clients,
    'seconds': round(seconds, 1),
    'correct responses': stats.correct,
    'wrong responses': stats.wrong,
    'lost responses': stats.lost,
    'rejected': stats.rejected,
    'disconnected': stats.disconnected,
    'tokens/s, service': round(stats.tokens / seconds, 1),
    'tokens/s, judge only, before and after': [round(x, 1) for x in rates],
    'ratio': round(stats.tokens / seconds / np.mean(rates), 3),
    'latency, median and 95 %, s': [
      round(float(np.quantile(stats.seconds, q)), 2) for q in (0.5, 0.95)
    ],
    'memory, second and last quarter, MB': [
      round(float(np.mean(x)))
      for x in (memory[quarter : 2 * quarter], memory[-quarter:])
    ],
  }
  print(table(result))
  for line in stats.mismatches:
    print(line)
  if options.json:
    with open(options.json, 'w') as file:
      json.dump(result, file, indent=1)


if __name__ == '__main__':
  main()
