"""Judges for tests, whose engine scores by a known rule instead of a model."""

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
  fault,
)
from grm_jax.tokenizer import tiny as tiny_tokenizer
from grm_jax.tokenizer import tokenizer


@functools.cache
def words():
  with tempfile.TemporaryDirectory() as made:
    path = f'{made}/tokenizer.model'
    tiny_tokenizer.train(path)
    return tokenizer.load(path)


class RuleEngine:
  """Scores a response by the digit it ends with; `silent` samples do not."""

  principles = 'Specific Criteria: truth 100%. Scores: \\boxed{1, 1}'

  def __init__(self, limit=3000, silent=()):
    self.limits = EngineLimits(limit, 100, 1024, True)
    self.silent, self.requests = silent, []

  def run(self, requests, **unused):
    held = []  # generations come in another order than they were asked for
    for request in requests:
      if request is None:
        yield from held[-1:]
        del held[-1:]
        continue
      self.requests.append(request)
      reason = fault(request, self.limits)
      if reason:
        yield RejectedRequest(request.id, reason)
        continue
      held += [self.generation(request, i) for i in range(request.num_samples)]
      if len(held) > 5:
        yield held.pop(-2)
    yield from reversed(held)

  def generation(self, request, sample):
    text = words().decode(request.prompt)
    if request.id.endswith(':principles'):
      return self._said(request, sample, self.principles)
    found = re.findall(r'(\d)\n\[End of Response \d+\]', text)
    text = f'Scores: \\boxed{{{", ".join(found)}}}'
    if (request.id, sample) in self.silent:
      text = 'I would rather not say.'
    return self._said(request, sample, text)

  def _said(self, request, sample, text):
    ids = np.array(words().encode(text), np.int32)
    zeros = np.zeros(len(ids), np.float32)
    return Generation(request.id, sample, ids, 'stop', zeros, zeros, text)


class RuleMeta:
  """Likes judgements by the sum of their order's first place."""

  def rate(self, judged):
    samples = [
      dataclasses.replace(s, meta=float(s.order[0] + i / 10))
      for i, s in enumerate(judged.samples)
    ]
    return dataclasses.replace(judged, samples=tuple(samples))


def example(name, *responses, **fields):
  return JudgingExample(name, (Turn('user', 'q'),), responses, **fields)


def judge(engine=None, meta=None, **settings):
  return Judge(engine or RuleEngine(), words(), JudgeConfig(**settings), meta)
