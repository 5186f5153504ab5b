"""Several sources in one text."""

import pytest

from grm_jax.data import source_list
from grm_jax.data.source_list import Source
from grm_jax.errors import UserError
from tests.messages import naming


@pytest.mark.parametrize(
  'spec, sources',
  [
    ('', [Source('')]),
    ('rows.jsonl', [Source('rows.jsonl')]),
    ('math:data/*.jsonl', [Source('math:data/*.jsonl')]),
    ('math:a*b/2*.jsonl*0.5', [Source('math:a*b/2*.jsonl', 0.5)]),
    (
      'practice:40 * .25, gs://b/x.jsonl#split*1,tfds:a:train[:9]',
      [
        Source('practice:40', 0.25),
        Source('gs://b/x.jsonl#split', 1.0),
        Source('tfds:a:train[:9]'),
      ],
    ),
  ],
)
def test_sources_and_fractions(spec, sources):
  assert source_list.parse(spec) == sources


@pytest.mark.parametrize(
  'spec, words',
  [
    ('a.jsonl,', ["'a.jsonl,'", 'source 2']),
    ('a.jsonl, ,b.jsonl', ['source 2']),
    ('a.jsonl*0,b.jsonl', ["'a.jsonl*0'", 0]),
    ('a.jsonl,b.jsonl*2', ["'b.jsonl*2'", 2]),
    ('a.jsonl*-0.5', ['-0.5']),
    ('a.jsonl,b.jsonl,a.jsonl*0.5', ["'a.jsonl'"]),
  ],
)
def test_malformed_sources(spec, words):
  with pytest.raises(UserError, match=naming(*words)):
    source_list.parse(spec)
