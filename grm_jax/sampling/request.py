"""What is asked of the engine and what comes back."""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from grm_jax.sampling import token_sampling


@dataclasses.dataclass(frozen=True)
class Request:
  """A prompt and how many generations of it are wanted.

  Attributes:
    id: its name, of no other request that is at work at the same time.
    prompt: token ids, beginning with bos.
    num_samples: generations wanted, numbered from 0.
    max_tokens: most tokens of each; None for as many as the engine holds.
    temperature, top_k, top_p, min_p: see choose.Settings.
    seed: of the draws.
    stop: texts that end a generation; the last is the generation's end.
    key: with the seed and a sample's number, all that the tokens of a sample
      depend on; '' for the id.
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


@dataclasses.dataclass(frozen=True)
class Generation:
  """One sample of one request.

  Attributes:
    request: the request's id.
    sample: which sample of it, from 0.
    tokens: int32 [n]; ends with the stop token, or with the token that
      completed a stop string.
    finish: 'stop' (a stop token), 'length' or 'string' (a stop string).
    sampling_logps: float32 [n], under the distribution really drawn from, after
      temperature and truncation; 0 for greedy draws.
    model_logps: float32 [n], under the model at temperature 1, untruncated.
    text: the tokens' text up to and with a stop string; None from an engine
      without a detokenizer.
  """

  request: str
  sample: int
  tokens: np.ndarray
  finish: str
  sampling_logps: np.ndarray
  model_logps: np.ndarray
  text: str | None


@dataclasses.dataclass(frozen=True)
class RejectedRequest:
  """A request that was not begun, and why."""

  request: str
  reason: str


@dataclasses.dataclass(frozen=True)
class EngineLimits:
  """What a request must fit.

  Attributes:
    prompt: most tokens of a prompt.
    new: most new tokens.
    vocabulary: ids are below it.
    text: whether stop strings can be found.
  """

  prompt: int
  new: int
  vocabulary: int
  text: bool


def fault(request: Request, limits: EngineLimits) -> str | None:
  """Why a request cannot be served, if it cannot."""
  length, new = len(request.prompt), request.max_tokens
  if length < 1:
    return 'its prompt has no tokens; it must begin with bos'
  if length > limits.prompt:
    return (
      f'its prompt has {length} tokens, the prompt cache holds '
      f'{limits.prompt}; add a longer bucket or shorten the prompt'
    )
  if new is not None and not 1 <= new <= limits.new:
    return (
      f'max_tokens is {new}, the cache of new tokens holds 1 to {limits.new}'
    )
  wrong = [i for i in request.prompt if not 0 <= i < limits.vocabulary]
  if wrong:
    return f'its prompt has id {wrong[0]}; ids are 0 to {limits.vocabulary - 1}'
  if request.num_samples < 1:
    return f'num_samples is {request.num_samples}; it must be at least 1'
  if request.stop and not limits.text:
    return 'it has stop strings, but the engine was given no detokenizer'
  if not all(request.stop):
    return 'one of its stop strings is empty'
  return token_sampling.fault(
    request.temperature, request.top_k, request.top_p, request.min_p
  )


def row_key(request: Request, sample: int) -> np.ndarray:
  """uint32 [2]: the randomness of a sample, from nothing but its names."""
  name = f'{request.seed} {sample} {request.key or request.id}'
  # An id may hold what UTF-8 cannot.
  data = name.encode(errors='surrogatepass')
  digest = hashlib.blake2b(data, digest_size=8).digest()
  return np.frombuffer(digest, '<u4').astype(np.uint32)
