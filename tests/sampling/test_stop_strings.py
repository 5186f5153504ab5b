"""Stop strings: finding them, and the engine's handling of them."""

import numpy as np
import pytest

from grm_jax.sampling.request import Request
from grm_jax.sampling.stop_strings import cut_text, first_stop
from tests.sampling.test_engine import (
  MAX_NEW_TOKENS,
  PROMPTS,
  WEIGHTS,
  by_name,
  engine,
)


def detokenize(tokens):
  """Tokens 0 to 249 as letters; tokens from 200 on are two characters."""
  return ''.join(chr(97 + t % 26) + ('!' if t >= 200 else '') for t in tokens)


@pytest.mark.parametrize(
  'tokens, num_checked, stop, expected',
  [
    ([0, 1, 2, 3], 0, ['bc'], 3),
    ([0, 1, 2, 3], 2, ['bc'], 3),
    ([0, 1, 2, 3], 0, ['cd', 'ab'], 2),
    ([0, 1, 2, 3], 0, ['x'], None),
    ([0, 1, 2, 3], 4, ['a'], None),
    ([0, 200, 3], 0, ['!'], 2),
    ([], 0, ['a'], None),
  ],
  ids=str,
)
def test_first_stop(tokens, num_checked, stop, expected):
  assert first_stop(tokens, num_checked, stop, detokenize) == expected


def test_cut_text_ends_with_the_first_stop_string():
  assert cut_text('one two three', ['three', 'wo']) == 'one two'
  assert cut_text('one', ['two']) == 'one'
  assert cut_text('aab', ['aab', 'ab', 'aa']) == 'aa'


@pytest.mark.parametrize('num_steps', [1, 4, MAX_NEW_TOKENS])
def test_the_engine_cuts_at_stop_strings(num_steps):
  options = {
    'detokenize': detokenize,
    'generations_per_prompt': 2,
    'stop_ids': (3, 5, 8),
  }
  unstopped = [Request(str(i), p, 8) for i, p in enumerate(PROMPTS)]
  stop = ('z!', 'qu', 'e')
  stopped = [Request(r.id, r.prompt, 8, stop=stop) for r in unstopped]
  expected = by_name(engine(**options).run(WEIGHTS, unstopped))
  generations = by_name(
    engine(decode_steps_per_call=num_steps, **options).run(WEIGHTS, stopped)
  )
  assert set(generations) == set(expected)
  for name, g in generations.items():
    whole = expected[name]
    n = first_stop(whole.tokens.tolist(), 0, stop, detokenize)
    tokens = whole.tokens[:n]
    np.testing.assert_array_equal(g.tokens, tokens)
    assert len(g.model_logps) == len(g.sampling_logps) == len(tokens)
    assert g.finish == (whole.finish if n is None else 'string')
    assert g.text == cut_text(detokenize(tokens), stop)
  assert {g.finish for g in generations.values()} >= {'stop', 'string'}


def test_generations_have_texts():
  (g,) = engine(detokenize=detokenize).run(WEIGHTS, [Request('a', PROMPTS[0])])
  assert g.text == detokenize(g.tokens.tolist())
  (g,) = engine().run(WEIGHTS, [Request('a', PROMPTS[0])])
  assert g.text is None
