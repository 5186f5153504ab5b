"""LLM-as-a-Judge by token probabilities: how sure it is, not only of what.

The judge writes a critique and the number of the best response, as the
template `best` asks. A response's score is the probability that the model
gives to its number there, among the numbers of all responses:

  text up to the verdict + '1}', '2}', ... -> log-probabilities -> softmax

All texts of an order follow one prompt, which is computed once. The weights
are those of decoding, so that no model is held twice. That the verdict is
closed makes 1 and 10 different verdicts. The baseline is that of arXiv
2504.02495, section 5, which says no more; the rest is our decision.
"""

import bisect
import collections
import dataclasses
import functools
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from grm_jax.errors import UserError
from grm_jax.judgement import (
  prompt_builder,
  response_order,
  score_parser,
  template,
)
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.judgement import ExampleError, JudgedExample
from grm_jax.judges.generative import Judge, JudgeConfig
from grm_jax.model import logprobs
from grm_jax.model.batch import Batch
from grm_jax.model.transformer import Transformer
from grm_jax.sampling import decode
from grm_jax.sampling.decode import DecodeWeights
from grm_jax.tokenizer import chat_format
from grm_jax.tokenizer.tokenizer import Tokenizer

# Most tokens of a verdict such as '12]]'.
_VERDICT = 8

# What may open a verdict: more than does, since scores.py decides. There a
# box counts before any list, and brackets inside of it are mostly markup; with
# commas in their place no list is left.
_NO_LISTS = str.maketrans(dict.fromkeys('[]［］【】', ','))
_BOX = re.compile(r'[\\＼]\w{5}\s*[{｛]')
# A list in brackets may need the word before it.
_LIST = re.compile(r'[\[［【]|(?<![^\W\d_])[^\W\d_]')
_BRACKETS = re.compile(r'[\[［【](?:[\s*"\'`$(]*[\[［【])*')


@dataclasses.dataclass(frozen=True)
class Opening:
  """Where a verdict was written.

  Attributes:
    text: all before the verdict's number; it ends in a brace or bracket.
    closing: what ends the verdict after its number: '}', ']' or ']]'.
  """

  text: str
  closing: str


def find_opening(text: str, n: int) -> Opening | None:
  """Where the verdict stands that scores.parse_scores(text, 1, 1, n) reads.

  What stands between the opening and the number, such as LaTeX's \\text, is
  left out. The time is that of parsing times the logarithm of the length.

  Args:
    text: a generation.
    n: verdicts are 1 to n.

  Returns:
    The opening, or None if the text has no verdict.
  """
  boxes = text.translate(_NO_LISTS)
  places = [(m.start(), m.end()) for m in _BOX.finditer(boxes)]
  last = _last_read(boxes, [start for start, _ in places], n)
  if last is not None:
    return Opening(text[: places[last][1]], '}')
  starts = [m.start() for m in _LIST.finditer(text)]
  last = _last_read(text, starts, n)
  if last is None:
    # A label's number begins anew in brackets, but not where they are commas.
    last = _last_read(text, [start for start, _ in places], n)
    return None if last is None else Opening(text[: places[last][1]], '}')
  opened = _BRACKETS.search(text, starts[last])
  count = sum(x in '[［【' for x in opened[0])
  return Opening(text[: opened.end()], ']' * count)


def _last_read(text: str, starts: Sequence[int], n: int) -> int | None:
  """Number of the last start from which the text still has a verdict."""

  def silent(start):
    return score_parser.parse_scores(text[start:], 1, 1, n) is None

  count = bisect.bisect_left(starts, True, key=silent)
  return count - 1 if count else None


@dataclasses.dataclass(frozen=True)
class _RenderedText:
  """Tokens that follow a prompt; the verdict's begin at `start`.

  `sample` is (number of the example, number of its sample).
  """

  tokens: list[int]
  start: int
  sample: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class _VerdictItem:
  """A prompt and texts that follow it."""

  prompt: Sequence[int]
  texts: list[_RenderedText]


class VerdictScorer:
  """A model's probabilities of the verdicts in judgements; call `rate`.

  Attributes:
    prompts: P, prompts computed at once.
    texts: most texts that follow a prompt at once.
    size: most tokens of a text before its verdict; of a longer one the last
      are read.
    buckets: lengths that prompts are padded to.
  """

  def __init__(
    self,
    model: Transformer,
    weights: DecodeWeights,
    tokenizer: Tokenizer,
    settings: JudgeConfig,
    *,
    prompts: int,
    texts: int,
    size: int,
    buckets: Sequence[int],
  ):
    """Compiles nothing yet.

    Args:
      model, weights: the engine's that wrote the judgements.
      tokenizer, settings: the judge's.
      prompts, texts, size, buckets: see above; size and buckets are the
        engine's.

    Raises:
      UserError: the mesh cannot split the prompts.
    """
    ways = model.layout.split('prompts')
    if prompts % ways:
      raise UserError(
        f'verdicts of {prompts} prompts at once; the mesh splits prompts '
        f'{ways} ways, of which it must be a multiple'
      )
    self.prompts, self.texts, self.size = prompts, texts, size
    self.buckets = tuple(sorted(set(buckets)))
    self._weights, self._tokenizer = weights, tokenizer
    self._too_long = settings.too_long
    self._template = template.load(settings.template)
    self._chat = functools.partial(chat_format.render_user, tokenizer)
    self._function = jax.jit(
      functools.partial(total_logps, model),
      out_shardings=model.layout.sharding(()),
    )

  def rate(self, some: Sequence[JudgedExample]) -> list[JudgedExample]:
    """The examples with probabilities as the scores of their samples.

    They add up to 1 in each sample; one without a verdict has None.
    """
    items = [x for i, judged in enumerate(some) for x in self._items(i, judged)]
    totals = collections.defaultdict(list)
    for item, found in zip(items, self._totals(items), strict=True):
      for text, total in zip(item.texts, found, strict=True):
        totals[text.sample].append(total)
    return [
      dataclasses.replace(
        judged,
        samples=tuple(
          _with_scores(sample, totals.get((i, j)))
          for j, sample in enumerate(judged.samples)
        ),
      )
      for i, judged in enumerate(some)
    ]

  def _items(
    self, number: int, judged: JudgedExample
  ) -> Iterator[_VerdictItem]:
    """The example's prompts, each with as many texts as there is room for."""
    by_order = {}
    for place, sample in enumerate(judged.samples):
      texts = self._continued((number, place), sample.text, len(sample.order))
      by_order.setdefault(sample.order, []).extend(texts)
    for order, texts in by_order.items():
      if not texts:
        continue
      tokens = prompt_builder.tokenize(
        self._template,
        judged.example,
        order,
        self._chat,
        limit=self.buckets[-1],
        too_long=self._too_long,
      )
      for first in range(0, len(texts), self.texts):
        yield _VerdictItem(tokens, texts[first : first + self.texts])

  def _continued(self, sample, text: str, n: int) -> list[_RenderedText]:
    """The text with each verdict, 1 to n; none if it has no verdict."""
    opening = find_opening(text, n)
    if opening is None:
      return []
    # Apart from the verdicts: whatever these are, the text's tokens stay.
    before = self._tokenizer.encode(opening.text)[-self.size :]
    ends = [
      self._tokenizer.encode(f'{i}{opening.closing}') for i in range(1, n + 1)
    ]
    return [_RenderedText(before + end, len(before), sample) for end in ends]

  def _totals(self, items: Sequence[_VerdictItem]) -> list[np.ndarray]:
    """float32 [number of texts] of each item, P of a shape at a time.

    An item's shape depends on itself alone, and so does what it is rounded to:
    the same whatever is judged beside it.
    """
    by_shape = {}
    for i, item in enumerate(items):
      by_shape.setdefault(self._shape(item), []).append(i)
    out = [None] * len(items)
    for shape, numbers in by_shape.items():
      for first in range(0, len(numbers), self.prompts):
        some = numbers[first : first + self.prompts]
        padded = self._pad([items[i] for i in some], shape)
        totals = self._function(self._weights, *padded)
        totals = np.asarray(totals.addressable_data(0))
        for i, own in zip(some, totals, strict=False):
          out[i] = own[: len(items[i].texts)]
    return out

  def _shape(self, item: _VerdictItem) -> tuple[int, int, int]:
    """(S, R, T): a bucket, a power of two, quarters of `size`."""
    bucket = next(b for b in self.buckets if len(item.prompt) <= b)
    count = 1 << (len(item.texts) - 1).bit_length()
    longest = max(len(text.tokens) for text in item.texts)
    quarter = -(-self.size // 4)
    return bucket, count, quarter * -(-longest // quarter)

  def _pad(self, items, shape) -> tuple[Batch, np.ndarray]:
    """Their batch and starts; missing prompts and texts are short dummies."""
    p, (s, r, t) = self.prompts, shape
    prompts, lengths = np.zeros((p, s), np.int32), np.ones(p, np.int32)
    texts = np.zeros((p, r, t), np.int32)
    text_lengths = np.zeros((p, r), np.int32)
    starts = np.ones((p, r), np.int32)
    for i, item in enumerate(items):
      prompts[i, : len(item.prompt)] = item.prompt
      lengths[i] = len(item.prompt)
      for j, text in enumerate(item.texts):
        texts[i, j, : len(text.tokens)] = text.tokens
        text_lengths[i, j], starts[i, j] = len(text.tokens), text.start
    return Batch(prompts, lengths, texts, text_lengths), starts


def _with_scores(sample, totals):
  """The sample with the softmax of its verdicts' log-probabilities."""
  if totals is None:
    return dataclasses.replace(sample, scores=None)
  totals = np.asarray(totals, np.float64)
  weights = np.exp(totals - totals.max())
  shown = (weights / weights.sum()).tolist()
  return dataclasses.replace(
    sample, scores=response_order.restore(shown, sample.order)
  )


def total_logps(
  model: Transformer, weights: DecodeWeights, batch: Batch, starts: jax.Array
) -> jax.Array:
  """Log-probability of each generation's end, from `starts` on.

  Only these tokens are added up: in the sum of a whole critique in float32
  the difference between two verdicts would be rounded away.

  Args:
    model: the network.
    weights: of decoding.
    batch: prompts with generations.
    starts: int32 [P, R], at least 1; up to 8 tokens stand from there on.

  Returns:
    float32 [P, R], 0 for an empty generation.
  """
  places = starts[..., None] + jnp.arange(_VERDICT)[None, None]
  hidden = decode.own_hidden(model, weights, batch)
  p, r, t, d = hidden.shape
  before = jnp.take_along_axis(
    hidden, jnp.minimum(places - 1, t - 1)[..., None], axis=2
  )
  targets = jnp.take_along_axis(
    batch.generations, jnp.minimum(places, t - 1), axis=2
  )
  logps, _ = logprobs.token_logps(
    model,
    weights.embedder['table'],
    before.reshape(p, -1, d),
    targets.reshape(p, -1),
  )
  real = places < batch.generation_lengths[..., None]
  return jnp.sum(jnp.where(real, logps.reshape(p, r, -1), 0.0), axis=-1)


class TokenProbabilityJudge:
  """Probabilities of verdicts as scores; see generative.Judge.

  Attributes:
    inner: writes the critiques and the verdicts.
    verdicts: rates them.
  """

  def __init__(self, judge: Judge, verdicts: VerdictScorer):
    """The settings of `judge` are those that `verdicts` was made with.

    Raises:
      UserError: the judge writes by principles, which its texts then begin
        with.
      ValueError: the judge is not asked for the best response.
    """
    s = judge.settings
    if s.reads != 'best':
      raise ValueError(
        f'token probabilities are those of a verdict: reads is {s.reads!r}, '
        "but must be 'best'"
      )
    if 'principles' in template.load(s.template).used:
      raise UserError(
        f'config.prompt.template={s.template} judges by principles, which '
        'token probabilities cannot; give a template without them'
      )
    self.inner, self.verdicts = judge, verdicts

  def judge(
    self,
    examples: Iterable[JudgingExample | ExampleError],
    k: int,
    *,
    progress: str = '',
    total: int = 0,
  ) -> Iterator[JudgedExample | ExampleError]:
    """Judgements of examples, in their order; see generative.Judge."""
    items = self.inner.judge(examples, k, progress=progress, total=total)
    while some := list(itertools.islice(items, self.verdicts.prompts)):
      good = [item for item in some if isinstance(item, JudgedExample)]
      rated = iter(self.verdicts.rate(good))
      for item in some:
        yield next(rated) if isinstance(item, JudgedExample) else item
