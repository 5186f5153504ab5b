"""The meta RM's inputs, and the judgements that get its scores."""

import numpy as np
import pytest

from grm_jax.judgement.example import JudgingExample, Turn
from grm_jax.judgement.judgement import ExampleError, JudgedExample, Judgement
from grm_jax.judges.meta_rm import MetaJudge
from grm_jax.tokenizer.chat_format import model_turn
from tests.judges.fake import load_tokenizer
from tests.messages import names

EXAMPLE = JudgingExample(
  'e', (Turn('user', 'Which number is larger?'),), ('two', 'ten'), best=1
)


class LengthScorer:
  """Stands for ScalarScorer: a text's score is its number of tokens.

  Attributes:
    items: the (prompt, texts) of all calls, decoded.
  """

  max_new_tokens = 24

  def __init__(self, prompt_limit=600):
    self.prompt_buckets, self.items = (64, prompt_limit), []

  def score(self, items):
    decode = load_tokenizer().decode
    self.items += [(decode(p), [decode(x) for x in xs]) for p, xs in items]
    return [np.array([len(x) for x in xs], np.float32) for _, xs in items]


def judged(*samples):
  """Returns EXAMPLE with judgements of these (order, text)."""
  return JudgedExample(
    EXAMPLE, tuple(Judgement(order, x, 1, 'stop', None) for order, x in samples)
  )


def test_each_order_is_one_prompt_and_scores_return_to_their_samples():
  scorer = LengthScorer()
  texts = ['A', 'B is better.', 'C has it, I think', 'D']
  orders = [(0, 1), (1, 0), (0, 1), (1, 0)]
  rated = MetaJudge(scorer, load_tokenizer()).rate(
    judged(*zip(orders, texts, strict=True))
  )
  lengths = [len(load_tokenizer().encode(x)) + 1 for x in texts]
  assert [x.meta for x in rated.samples] == lengths
  assert len(set(lengths)) > 2
  assert [x.text for x in rated.samples] == texts
  (forward, one), (backward, two) = scorer.items
  assert [len(one), len(two)] == [2, 2]
  assert 'A' in one[0] and 'C has it' in one[1] and 'D' in two[1]
  # The prompt shows the responses in the order that the judge saw.
  assert forward.index('two') < forward.index('ten')
  assert backward.index('ten') < backward.index('two')


def test_the_template_is_that_of_the_meta_rm():
  prompts = []
  for name in ('meta', 'practice_meta'):
    scorer = LengthScorer()
    MetaJudge(scorer, load_tokenizer(), name).rate(judged(((0, 1), 'A')))
    prompts.append(scorer.items[0][0])
  assert "a judge's assessment" in prompts[0]
  assert prompts[0] != prompts[1]


@pytest.mark.parametrize('limit', [1, 3, 24])
def test_a_long_judgement_is_cut_and_still_ends_its_turn(limit):
  tokenizer = load_tokenizer()
  text = 'This judgement is far too long. ' * 20
  tokens = model_turn(tokenizer, text, limit=limit)
  assert len(tokens) == limit
  assert tokens[-1] == tokenizer.end_of_turn_id
  assert tokens[:-1] == list(tokenizer.encode(text))[: limit - 1]


def test_the_value_of_a_full_template_follows_the_last_newline():
  tokenizer = load_tokenizer()
  tokens = model_turn(tokenizer, ' a b\n', full_template=True, limit=24)
  end = [tokenizer.end_of_turn_id, *tokenizer.encode('\n')]
  assert tokens == [*tokenizer.encode('a b'), *end]
  assert model_turn(tokenizer, 'a b ' * 20, True, 9)[7:] == end


def test_an_example_that_does_not_fit_is_an_error_of_this_example():
  meta = MetaJudge(LengthScorer(prompt_limit=8), load_tokenizer())
  error = meta.rate(judged(((0, 1), 'A')))
  assert isinstance(error, ExampleError) and error.id == 'e'
  assert names(error.reason, 'meta RM', 8)
