"""Requests to the engine, its limits, and its results."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from grm_jax.sampling import token_sampling


@dataclasses.dataclass(frozen=True)
class Request:
  """A prompt and the number of generations to sample for it.

  Attributes:
    id: unique among the requests that the engine processes at one time.
    prompt: token ids, beginning with bos.
    num_samples: number of generations; samples are numbered from 0.
    max_tokens: maximum length of each; None for the maximum of the engine.
    temperature, top_k, top_p, min_p: see token_sampling.SamplingParams.
    seed: random seed.
    stop: strings that end a generation; the string belongs to the generation.
    key: the tokens of a sample depend on (seed, key, sample number) only; ''
      stands for the id.
    tag: returned with every result of this request, for the caller's use.
  """

  id: str
  prompt: Sequence[int]
  num_samples: int = 1
  max_tokens: int | None = None
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  seed: int = 0
  stop: tuple[str, ...] = ()
  key: str = ''
  tag: Any = None


@dataclasses.dataclass(frozen=True)
class Generation:
  """One sample of one request.

  Attributes:
    request_id: id of the request.
    sample: number of the sample, from 0.
    tokens: int32 [n]; ends with the stop token, or with the token that
      completed a stop string.
    finish: 'stop' (a stop token), 'length' or 'string' (a stop string).
    sampling_logps: float32 [n], under the distribution that the tokens were
      sampled from, after temperature and truncation; 0 for greedy sampling.
    model_logps: float32 [n], under the model at temperature 1, untruncated.
    text: the tokens' text up to and with a stop string; None from an engine
      without a detokenizer.
    tag: of the request.
  """

  request_id: str
  sample: int
  tokens: np.ndarray
  finish: str
  sampling_logps: np.ndarray
  model_logps: np.ndarray
  text: str | None
  tag: Any = None


@dataclasses.dataclass(frozen=True)
class RejectedRequest:
  """A request that the engine does not start, and the reason."""

  request_id: str
  reason: str
  tag: Any = None


@dataclasses.dataclass(frozen=True)
class EngineLimits:
  """Limits that every request must keep.

  Attributes:
    max_prompt_tokens: maximum length of a prompt.
    max_new_tokens: maximum length of a generation.
    vocab_size: token ids are below it.
    has_detokenizer: whether the engine can find stop strings.
  """

  max_prompt_tokens: int
  max_new_tokens: int
  vocab_size: int
  has_detokenizer: bool


def rejection_reason(request: Request, limits: EngineLimits) -> str | None:
  """Returns why the engine cannot serve a request, or None if it can."""
  length, max_tokens = len(request.prompt), request.max_tokens
  if length < 1:
    return 'the prompt has no tokens; begin it with bos'
  if length > limits.max_prompt_tokens:
    return (
      f'the prompt has {length} tokens, the longest prompt bucket holds '
      f'{limits.max_prompt_tokens}; add a longer bucket or shorten the prompt'
    )
  if max_tokens is not None and not 1 <= max_tokens <= limits.max_new_tokens:
    return (
      f'max_tokens is {max_tokens}; set it to 1 to {limits.max_new_tokens}, '
      'the max_new_tokens of the engine'
    )
  unknown = [x for x in request.prompt if not 0 <= x < limits.vocab_size]
  if unknown:
    return (
      f'the prompt has token id {unknown[0]}; ids are 0 to '
      f'{limits.vocab_size - 1}'
    )
  if request.num_samples < 1:
    return f'num_samples is {request.num_samples}; set it to at least 1'
  if request.stop and not limits.has_detokenizer:
    return 'the request has stop strings, but the engine has no detokenizer'
  if not all(request.stop):
    return 'a stop string is empty; remove it'
  return token_sampling.invalid_reason(
    request.temperature, request.top_k, request.top_p, request.min_p
  )


def row_key(request: Request, sample: int) -> np.ndarray:
  """Returns the random key of a sample, uint32 [2].

  It is a hash of the seed, the sample number and the request's key, so a
  sample does not depend on its batch, its slot or the number of hosts.
  """
  name = f'{request.seed} {sample} {request.key or request.id}'
  # A key may hold lone surrogates, which strict UTF-8 rejects.
  data = name.encode(errors='surrogatepass')
  digest = hashlib.blake2b(data, digest_size=8).digest()
  return np.frombuffer(digest, '<u4').astype(np.uint32)
