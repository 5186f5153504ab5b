"""Stop strings: where they are found, and what the engine makes of them."""

import numpy as np
import pytest

from grm_jax.sampling.request import Request
from grm_jax.sampling.stop_strings import cut_text, first_stop
from tests.sampling.test_engine import PROMPTS, SIZE, WEIGHTS, by_name, engine


def spelled(tokens):
  """Tokens 0 to 249 as letters; some of them are pairs of letters."""
  return ''.join(chr(97 + t % 26) + ('!' if t >= 200 else '') for t in tokens)


@pytest.mark.parametrize(
  'tokens, checked, strings, expected',
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
def test_first_stop(tokens, checked, strings, expected):
  assert first_stop(tokens, checked, strings, spelled) == expected


def test_the_text_ends_with_the_string_that_ends_first():
  assert cut_text('one two three', ['three', 'wo']) == 'one two'
  assert cut_text('one', ['two']) == 'one'
  assert cut_text('aab', ['aab', 'ab', 'aa']) == 'aa'


@pytest.mark.parametrize('chunk', [1, 4, SIZE])
def test_the_engine_cuts_at_stop_strings(chunk):
  options = {
    'detokenize': spelled,
    'generations_per_prompt': 2,
    'stop_ids': (3, 5, 8),
  }
  free = [Request(str(i), p, 8) for i, p in enumerate(PROMPTS)]
  strings = ('z!', 'qu', 'e')
  bound = [Request(r.id, r.prompt, 8, stop=strings) for r in free]
  whole = by_name(engine(**options).run(WEIGHTS, free))
  found = by_name(
    engine(decode_steps_per_call=chunk, **options).run(WEIGHTS, bound)
  )
  assert set(found) == set(whole)
  for name, g in found.items():
    n = first_stop(whole[name].tokens.tolist(), 0, strings, spelled)
    expected = whole[name].tokens[:n]
    np.testing.assert_array_equal(g.tokens, expected)
    assert len(g.model_logps) == len(g.sampling_logps) == len(expected)
    assert g.finish == (whole[name].finish if n is None else 'string')
    assert g.text == cut_text(spelled(expected), strings)
  assert {g.finish for g in found.values()} >= {'stop', 'string'}


def test_text_comes_with_every_generation():
  (g,) = engine(detokenize=spelled).run(WEIGHTS, [Request('a', PROMPTS[0])])
  assert g.text == spelled(g.tokens.tolist())
  (g,) = engine().run(WEIGHTS, [Request('a', PROMPTS[0])])
  assert g.text is None
