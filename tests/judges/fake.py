"""Judges for tests; their engine scores by a known rule, without a model."""

import dataclasses
import functools
import re
import tempfile

import numpy as np

from grm_jax.judgement.example import JudgingExample, Turn
from grm_jax.judges.generative import Judge, JudgeConfig
from grm_jax.sampling.request import (
  EngineLimits,
  Generation,
  RejectedRequest,
  rejection_reason,
)
from grm_jax.tokenizer import tiny, tokenizer


@functools.cache
def load_tokenizer():
  with tempfile.TemporaryDirectory() as folder:
    path = f'{folder}/tokenizer.model'
    tiny.train(path)
    return tokenizer.load(path)


class RuleEngine:
  """Scores a response by its last digit; `silent` samples give no scores.

  Attributes:
    requests: all requests so far.
    silent: (request id, sample number) of samples that do not parse.
  """

  principles = 'Specific Criteria: truth 100%. Scores: \\boxed{1, 1}'

  def __init__(self, limit=3000, silent=()):
    self.limits = EngineLimits(limit, 100, 1024, True)
    self.silent, self.requests = silent, []

  def run(self, weights, requests, **unused):
    del weights, unused
    # Generations end in another order than that of their requests.
    running = []
    for request in requests:
      if request is None:
        yield from running[-1:]
        del running[-1:]
        continue
      self.requests.append(request)
      reason = rejection_reason(request, self.limits)
      if reason:
        yield RejectedRequest(request.id, reason, request.tag)
        continue
      running += [
        self.generation(request, i) for i in range(request.num_samples)
      ]
      if len(running) > 5:
        yield running.pop(-2)
    yield from reversed(running)

  def generation(self, request, sample):
    prompt = load_tokenizer().decode(request.prompt)
    if request.tag.order is None:
      return self._generation(request, sample, self.principles)
    digits = re.findall(r'(\d)\n\[End of Response \d+\]', prompt)
    text = f'Scores: \\boxed{{{", ".join(digits)}}}'
    if (request.id, sample) in self.silent:
      text = 'I would rather not say.'
    return self._generation(request, sample, text)

  def _generation(self, request, sample, text):
    ids = np.array(load_tokenizer().encode(text), np.int32)
    zeros = np.zeros(len(ids), np.float32)
    return Generation(
      request.id, sample, ids, 'stop', zeros, zeros, text, request.tag
    )


class RuleMeta:
  """A meta RM that scores by the first index of the order."""

  def rate(self, judged):
    samples = [
      dataclasses.replace(s, meta=float(s.order[0] + i / 10))
      for i, s in enumerate(judged.samples)
    ]
    return dataclasses.replace(judged, samples=tuple(samples))


def example(name, *responses, query='q', **fields):
  return JudgingExample(name, (Turn('user', query),), responses, **fields)


def judge(engine=None, meta=None, **settings):
  engine, config = engine or RuleEngine(), JudgeConfig(**settings)
  return Judge(engine, 'weights', load_tokenizer(), config, meta)
