"""Scores responses by the probability that a judge's verdict names them.

The judge has written a critique and the number of the best response. The score
of a response is the probability of its number there, among all numbers:

  text up to the verdict + '1}', '2}', ... -> log-probabilities -> softmax

All texts of one order follow one prompt, which is computed once. The weights
are those of decoding, so the model is in memory once. The closing bracket
makes 1 and 10 different verdicts.
"""

import collections
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from grm_jax.judgement import prompt_builder, response_order, template
from grm_jax.judgement.judgement import ExampleError, JudgedExample, Judgement
from grm_jax.judges import faults
from grm_jax.judges.baselines.verdict_opening import find_opening
from grm_jax.judges.generative import JudgeConfig
from grm_jax.model import logprobs
from grm_jax.model.batch import Batch
from grm_jax.model.transformer import Transformer
from grm_jax.sampling import decode
from grm_jax.sampling.compiled_functions import check_divisible
from grm_jax.sampling.decode_state import DecodeWeights
from grm_jax.sampling.padding import pad_items
from grm_jax.tokenizer import chat_format
from grm_jax.tokenizer.tokenizer import Tokenizer

# Maximum number of tokens of a verdict such as '12]]'.
_MAX_VERDICT_TOKENS = 8


@dataclasses.dataclass(frozen=True)
class _VerdictText:
  """A text with one verdict, as tokens that follow a prompt.

  Attributes:
    tokens: token ids.
    start: index of the verdict's first token.
    sample: (index of the example, index of its sample).
  """

  tokens: list[int]
  start: int
  sample: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class _PromptWithVerdicts:
  """A prompt and the texts that follow it."""

  prompt: Sequence[int]
  texts: list[_VerdictText]


class VerdictScorer:
  """Computes the probabilities of verdicts in judgements; see `rate`.

  Attributes:
    prompts: P, prompts computed at once.
    texts_per_prompt: maximum number of texts that follow a prompt at once.
    max_new_tokens: maximum number of tokens of a text before its verdict. The
      beginning of a longer text is left out.
    prompt_buckets: lengths that prompts are padded to, ascending.
  """

  def __init__(
    self,
    model: Transformer,
    weights: DecodeWeights,
    tokenizer: Tokenizer,
    judge_config: JudgeConfig,
    *,
    prompts: int,
    texts_per_prompt: int,
    max_new_tokens: int,
    prompt_buckets: Sequence[int],
  ):
    """Compiles nothing yet.

    Args:
      model: the network that wrote the judgements.
      weights: its weights for decoding.
      tokenizer: its tokenizer.
      judge_config: settings of the judge.
      prompts: see above.
      texts_per_prompt: see above.
      max_new_tokens: that of the engine.
      prompt_buckets: those of the engine.

    Raises:
      UserError: the mesh does not divide the number of prompts.
    """
    check_divisible(model, 'the number of prompts of a verdict batch', prompts)
    self.prompts, self.texts_per_prompt = prompts, texts_per_prompt
    self.max_new_tokens = max_new_tokens
    self.prompt_buckets = tuple(sorted(set(prompt_buckets)))
    self._weights, self._tokenizer = weights, tokenizer
    self._too_long = judge_config.too_long
    self._template = template.load(judge_config.template)
    self._chat = functools.partial(chat_format.render_user, tokenizer)
    self._verdict_logps = jax.jit(
      functools.partial(verdict_logps, model),
      out_shardings=model.layout.sharding(()),
    )

  def rate(
    self, examples: Sequence[JudgedExample]
  ) -> list[JudgedExample | ExampleError]:
    """Returns the examples with probabilities as the scores of samples.

    The scores of a sample add up to 1; they are None without a verdict. An
    example whose texts or probabilities fail becomes an ExampleError.
    """
    items: list[_PromptWithVerdicts] = []
    failures: dict[int, ExampleError] = {}
    for i, judged in enumerate(examples):
      try:
        items += list(self._items(i, judged))
      except Exception as error:
        failures[i] = faults.example_error(judged.example.id, error)
    logps: dict[tuple[int, int], list[float]] = collections.defaultdict(list)
    for item, item_logps in zip(items, self._score(items), strict=True):
      for text, logp in zip(item.texts, item_logps, strict=True):
        logps[text.sample].append(logp)
    return [
      failures.get(i) or self._with_scores(i, judged, logps)
      for i, judged in enumerate(examples)
    ]

  def _with_scores(
    self,
    index: int,
    judged: JudgedExample,
    logps: Mapping[tuple[int, int], Sequence[float]],
  ) -> JudgedExample | ExampleError:
    """Returns an example with the probabilities as scores."""
    try:
      samples = tuple(
        _with_probabilities(sample, logps.get((index, j)))
        for j, sample in enumerate(judged.samples)
      )
    except FloatingPointError as error:
      return faults.example_error(judged.example.id, error)
    return dataclasses.replace(judged, samples=samples)

  def _items(
    self, example_index: int, judged: JudgedExample
  ) -> Iterator[_PromptWithVerdicts]:
    """Yields the example's prompts with as many texts as fit each."""
    by_order: dict[tuple[int, ...], list[_VerdictText]] = {}
    for j, sample in enumerate(judged.samples):
      texts = self._verdict_texts(sample, (example_index, j))
      by_order.setdefault(sample.order, []).extend(texts)
    for order, texts in by_order.items():
      if not texts:
        continue
      prompt = prompt_builder.tokenize(
        self._template,
        judged.example,
        order,
        self._chat,
        limit=self.prompt_buckets[-1],
        too_long=self._too_long,
      )
      for first in range(0, len(texts), self.texts_per_prompt):
        yield _PromptWithVerdicts(
          prompt.tokens, texts[first : first + self.texts_per_prompt]
        )

  def _verdict_texts(
    self, sample: Judgement, index: tuple[int, int]
  ) -> list[_VerdictText]:
    """Returns the sample's text with each verdict, 1 to n, if it has one."""
    n = len(sample.order)
    opening = find_opening(sample.text, n)
    if opening is None:
      return []
    # Encoded separately, so that the tokens of the text are the same before
    # every verdict.
    text = self._tokenizer.encode(opening.text)[-self.max_new_tokens :]
    verdicts = [
      self._tokenizer.encode(f'{i}{opening.closing}') for i in range(1, n + 1)
    ]
    return [_VerdictText(text + x, len(text), index) for x in verdicts]

  def _score(self, items: Sequence[_PromptWithVerdicts]) -> list[np.ndarray]:
    """Returns float32 [number of texts] of each item.

    P items of one shape are computed at once. An item's shape depends on the
    item alone, so its rounding errors do not depend on the other items.
    """
    by_shape: dict[tuple[int, int, int], list[int]] = {}
    for i, item in enumerate(items):
      by_shape.setdefault(self._shape(item), []).append(i)
    logps: list[np.ndarray] = [np.zeros(0)] * len(items)
    for shape, indices in by_shape.items():
      for first in range(0, len(indices), self.prompts):
        chunk = indices[first : first + self.prompts]
        padded = self._pad([items[i] for i in chunk], shape)
        output = self._verdict_logps(self._weights, *padded)
        output = np.asarray(output.addressable_data(0))  # [P, R]
        for i, row in zip(chunk, output, strict=False):
          logps[i] = row[: len(items[i].texts)]
    return logps

  def _shape(self, item: _PromptWithVerdicts) -> tuple[int, int, int]:
    """Returns (S, R, T): a bucket, a power of two, quarters of the maximum."""
    s = next(x for x in self.prompt_buckets if len(item.prompt) <= x)
    r = 1 << (len(item.texts) - 1).bit_length()
    longest = max(len(text.tokens) for text in item.texts)
    quarter = -(-self.max_new_tokens // 4)
    return s, r, quarter * -(-longest // quarter)

  def _pad(
    self, items: Sequence[_PromptWithVerdicts], shape: tuple[int, int, int]
  ) -> tuple[Batch, np.ndarray]:
    """Returns the batch and the starts [P, R]; short dummies fill it up."""
    p, (s, r, t) = self.prompts, shape
    pairs = [(x.prompt, [text.tokens for text in x.texts]) for x in items]
    starts = np.ones((p, r), np.int32)
    for i, item in enumerate(items):
      starts[i, : len(item.texts)] = [text.start for text in item.texts]
    return pad_items(pairs, (p, s, r, t)), starts


def _with_probabilities(
  sample: Judgement, logps: Sequence[float] | None
) -> Judgement:
  """Returns the sample with the softmax of its verdicts as scores.

  Raises:
    FloatingPointError: the model computed NaN or an infinity.
  """
  if logps is None:
    return dataclasses.replace(sample, scores=None)
  values = np.asarray(logps, np.float64)
  if not np.isfinite(values).all():
    raise FloatingPointError('a probability of a verdict is not finite')
  weights = np.exp(values - values.max())
  by_position = (weights / weights.sum()).tolist()
  return dataclasses.replace(
    sample, scores=response_order.restore(by_position, sample.order)
  )


def verdict_logps(
  model: Transformer, weights: DecodeWeights, batch: Batch, starts: jax.Array
) -> jax.Array:
  """Returns the log-probability of the last tokens of each generation.

  It sums the verdict's tokens only: in a float32 sum over a whole critique the
  difference between two verdicts would be lost by rounding.

  Args:
    model: the network.
    weights: weights for decoding.
    batch: prompts with generations [P, R, T].
    starts: int32 [P, R], index of the verdict's first token, at least 1. A
      generation has at most 8 tokens from there on.

  Returns:
    float32 [P, R], 0 for an empty generation.
  """
  assert batch.generations is not None and batch.generation_lengths is not None
  # Positions of the verdict's tokens, [P, R, 8]; the last may be padding.
  positions = starts[..., None] + jnp.arange(_MAX_VERDICT_TOKENS)[None, None]
  hidden = decode.generation_hidden(model, weights, batch)
  p, r, t, d = hidden.shape
  # The hidden state of a token predicts the next one: [P, R, 8, D].
  predictors = jnp.take_along_axis(
    hidden, jnp.minimum(positions - 1, t - 1)[..., None], axis=2
  )
  targets = jnp.take_along_axis(
    batch.generations, jnp.minimum(positions, t - 1), axis=2
  )
  logps, _ = logprobs.token_logps(
    model,
    weights.embedder['table'],
    predictors.reshape(p, -1, d),
    targets.reshape(p, -1),
  )
  is_verdict = positions < batch.generation_lengths[..., None]
  return jnp.sum(jnp.where(is_verdict, logps.reshape(p, r, -1), 0.0), axis=-1)
