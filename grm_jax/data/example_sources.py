"""Sources of judging examples: the spec strings that `config.data` accepts.

  practice, practice:COUNT  synthetic problems (data/synthetic/), 4000 of them
                            by default
  FILE.jsonl, FILE.json, FILE.parquet
                            rows of your own (judgement/example.py)
  jsonl:PATH                the same, in a file with any other suffix
  tfds:NAME:SPLIT           such rows in a TFDS dataset (tfds_source.py)
  seqio:[MODULE/]NAME:SPLIT such rows of a seqio Task (seqio_source.py)
  gsm8k:PATH                checked model solutions of GSM8K problems
  gsm8k_pairs:PATH          the same in pairs
  math:PATH                 MATH problems with checked model solutions
  pandalm:PATH              human test set of PandaLM
  ultrafeedback:PATH  offsetbias:PATH  skywork:PATH  helpsteer2:PATH

PATH of a published dataset is a .json, .jsonl or .parquet file, local or
gs://, whose name may contain `*`; or a folder that holds one such file or the
file under its published name; or tfds:NAME:SPLIT, or hf:OWNER/NAME/PATH on the
Hugging Face Hub (hub_source.py). Published datasets are split
by query into train, validation and held_out: 80, 10 and 10 percent.

A file or dataset of your own is not split: it is returned as a whole for every
split, because there is usually one file per split. `FILE.jsonl#split` splits it
by query.

`load` accepts several sources, `SOURCE, SOURCE*FRACTION, ...` (source_list.py).
FRACTION selects queries by a hash of their first turn, so that all examples of
a query are used or none, and a smaller fraction is a part of a larger one. Each
example has its source in tags['suite'], unless its row states another one. A
repetition is used once; if two sources have different examples with one id, the
later one gets the name of its source before its id.
"""

import collections
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from absl import logging
from etils import epath

from grm_jax import settings
from grm_jax.data import dataset_files, source_list
from grm_jax.data.dataset_files import SkippedRow
from grm_jax.data.datasets import checked_math, pandalm, preferences
from grm_jax.errors import UserError
from grm_jax.io import row_reader
from grm_jax.judgement import correctness
from grm_jax.judgement.example import JudgingExample
from grm_jax.judgement.judgement import ExampleError
from grm_jax.judgement.preference_rows import SourceRow

SPLITS = ('train', 'validation', 'held_out')

# Result of converting one row of a source.
_RowResult = JudgingExample | SkippedRow | ExampleError
_ADAPTERS: Mapping[
  str, Callable[[SourceRow], Iterable[JudgingExample | SkippedRow]]
] = {
  'gsm8k': checked_math.gsm8k,
  'gsm8k_pairs': checked_math.gsm8k_pairs,
  'math': checked_math.math,
  'pandalm': pandalm.adapt,
  'ultrafeedback': preferences.ultrafeedback,
  'offsetbias': preferences.offsetbias,
  'skywork': preferences.skywork,
  'helpsteer2': preferences.helpsteer2,
}
# The file to read from a folder with several files.
_PUBLISHED_FILE_NAMES = {
  'gsm8k': 'example_model_solutions.jsonl',
  'gsm8k_pairs': 'example_model_solutions.jsonl',
  'pandalm': 'testset-v1.json',
}
_SPLIT_SUFFIX = '#split'
_DEFAULT_PRACTICE_COUNT = 4000
_MAX_LOGGED_ERRORS = 5


@dataclasses.dataclass(frozen=True)
class LoadedSource:
  """Content of one source.

  Attributes:
    examples: by id.
    errors: of its bad rows.
    num_skipped: number of skipped examples by reason.
  """

  examples: Mapping[str, JudgingExample]
  errors: Sequence[ExampleError]
  num_skipped: Mapping[str, int]


def read(
  spec: str, split: str = 'train'
) -> Iterator[JudgingExample | ExampleError]:
  """Yields the examples of one source, and an ExampleError for each bad row.

  A bad row does not belong to a split: it is reported for every split.

  Args:
    spec: see the module docstring.
    split: one of SPLITS.

  Raises:
    UserError: the spec or the split is unknown, or the file cannot be read
      (raised during the iteration).
  """
  results = _open(spec, split)
  return (x for x in results if not isinstance(x, SkippedRow))


def load(
  spec: str, split: str = 'train', fail_on_bad_rows: bool = False
) -> tuple[list[JudgingExample], list[ExampleError]]:
  """Returns all examples of one or several sources, and their bad rows.

  Logs the first errors and the number of skipped rows per reason, and prints
  the counts of several sources. Ids are unique: an exact repetition is skipped,
  and a different example of the same source with the same id is an error.

  Args:
    spec: see the module docstring.
    split: one of SPLITS.
    fail_on_bad_rows: raise the first error instead of returning it.

  Raises:
    UserError: as `read`; a row is bad and `fail_on_bad_rows` is set; or no
      example of a source remains.
  """
  sources = source_list.parse(spec)
  loaded = [_load_one(x.spec, split, fail_on_bad_rows) for x in sources]
  errors = [error for x in loaded for error in x.errors]
  if len(sources) == 1:
    return _select_fraction(sources[0], loaded[0]), errors
  examples: dict[str, JudgingExample] = {}
  table: list[tuple[str, ...]] = [
    ('source', 'examples', 'used', 'labelled', 'skipped', 'bad rows')
  ]
  for name, source, part in zip(_names(sources), sources, loaded, strict=True):
    used = _add(_select_fraction(source, part), name, examples)
    num_labelled = sum(map(correctness.has_label, used))
    counts = (len(part.examples), len(used), num_labelled)
    num_skipped = sum(part.num_skipped.values())
    table.append((name, *map(str, (*counts, num_skipped, len(part.errors)))))
  print(f'sources, {split}:', *map(_format_row, table), sep='\n', flush=True)
  return list(examples.values()), errors


def _load_one(spec: str, split: str, fail_on_bad_rows: bool) -> LoadedSource:
  examples: dict[str, JudgingExample] = {}
  errors: list[ExampleError] = []
  num_skipped: collections.Counter[str] = collections.Counter()
  for result in _open(spec, split):
    result = _check_unique(result, examples, spec)
    if isinstance(result, SkippedRow):
      num_skipped[result.reason] += 1
    elif isinstance(result, JudgingExample):
      examples[result.id] = result
    elif fail_on_bad_rows:
      raise UserError(result.reason)
    else:
      errors.append(result)
  _log_summary(f'{spec}, {split}', len(examples), errors, num_skipped)
  return LoadedSource(examples, errors, num_skipped)


def _select_fraction(
  source: source_list.Source, loaded: LoadedSource
) -> list[JudgingExample]:
  """Returns the examples of the fraction of the queries that is used.

  Raises:
    UserError: there is none.
  """
  # Not the bytes that decide the split: every split has the same fraction.
  limit = source.fraction * 2**64
  used = [
    x
    for x in loaded.examples.values()
    if int.from_bytes(_query_digest(x)[8:16], 'big') < limit
  ]
  if not used:
    raise UserError(
      f'{source.spec}*{source.fraction:g} has none of its '
      f'{len(loaded.examples)} examples; use a larger fraction'
    )
  return used


def _add(
  loaded: Iterable[JudgingExample],
  name: str,
  examples: dict[str, JudgingExample],
) -> list[JudgingExample]:
  """Adds the examples of a source to `examples`; returns the new ones."""
  added = []
  for example in loaded:
    example = dataclasses.replace(example, tags={'suite': name, **example.tags})
    if earlier := examples.get(example.id):
      if example == dataclasses.replace(earlier, tags=example.tags):
        continue
      example = dataclasses.replace(
        example, id=f'{name}/{example.id}', has_integer_id=False
      )
    if example.id in examples:
      raise UserError(
        f'source {name}: another source has a different row with the id '
        f'{example.id!r}; make ids unique'
      )
    examples[example.id] = example
    added.append(example)
  return added


def _names(sources: Sequence[source_list.Source]) -> list[str]:
  """Returns a name per source; the number of a source makes it unique."""
  names: list[str] = []
  for source in sources:
    location = source.spec.partition(_SPLIT_SUFFIX)[0]
    path = _own_path(location)
    name = epath.Path(path).stem if path else location.partition(':')[0]
    names.append(name if name not in names else f'{name} {len(names) + 1}')
  return names


def _format_row(cells: Sequence[str]) -> str:
  name, *counts = cells
  return f'  {name:<24}' + ''.join(f'{x:>10}' for x in counts)


def parse_count(spec: str, default: int) -> int:
  """Returns COUNT of a spec NAME:COUNT, `default` if the spec has none.

  Raises:
    UserError: COUNT is not an integer from 1 to settings.MAX_EXAMPLES.
  """
  name, _, count = spec.partition(':')
  is_valid = count.isdecimal() and count.isascii() and len(count) < 20
  if count and not (is_valid and 0 < int(count) <= settings.MAX_EXAMPLES):
    raise UserError(
      f'{spec[:80]!r}: COUNT is {count[:20]!r}; write {name}:COUNT with an '
      f'integer from 1 to {settings.MAX_EXAMPLES}'
    )
  return int(count or default)


def split_of(example: JudgingExample) -> str:
  """Returns the split of an example, by SHA-256 of its first user turn.

  A query is in the same split in every order, subset or mixture of rows, and
  in every source that contains it. The first turn decides, so a conversation
  is in the split of its continuations; case and white space do not matter.
  """
  tenth = int.from_bytes(_query_digest(example)[:8], 'big') % 10
  return SPLITS[max(0, tenth - 7)]  # 0-7 train, 8 validation, 9 held_out


def _query_digest(example: JudgingExample) -> bytes:
  text = next(turn.text for turn in example.query if turn.role == 'user')
  normalized = ' '.join(text.lower().split())
  # JSON can hold lone surrogates, which strict UTF-8 cannot encode.
  return hashlib.sha256(normalized.encode('utf-8', 'surrogatepass')).digest()


def _open(spec: str, split: str) -> Iterator[_RowResult]:
  """Yields what each row becomes; examples of other splits are skipped."""
  if split not in SPLITS:
    raise ValueError(
      f'split is {split!r}; it must be one of {", ".join(SPLITS)}'
    )
  location, split_suffix, rest = spec.partition(_SPLIT_SUFFIX)
  prefix, _, path = location.partition(':')
  if prefix == 'practice' and not split_suffix:
    return _practice(spec, split)
  if prefix in _ADAPTERS and path and not rest:
    results = dataset_files.adapt_rows(
      path, _ADAPTERS[prefix], _PUBLISHED_FILE_NAMES.get(prefix, '')
    )
    return _filter_split(map(_skip_ambiguous, results), split)
  if (own_path := _own_path(location)) and not rest:
    examples = dataset_files.with_row_location(
      own_path, dataset_files.read_examples(own_path)
    )
    return _filter_split(examples, split) if split_suffix else iter(examples)
  prefixes = ', '.join(f'{name}:PATH' for name in ('jsonl', *_ADAPTERS))
  raise UserError(
    f'{spec!r} is not a source of examples; set config.data to FILE.jsonl, '
    'FILE.json, FILE.parquet, practice, tfds:NAME:SPLIT, seqio:NAME:SPLIT or '
    f'one of {prefixes}, or to several, separated by commas'
  )


def _practice(spec: str, split: str) -> Iterator[JudgingExample]:
  count = parse_count(spec, _DEFAULT_PRACTICE_COUNT)
  # Imported on demand: the import takes seconds and few runs need it.
  from grm_jax.data.synthetic import examples

  return iter(examples.examples(split, count))


def _own_path(location: str) -> str:
  """Returns the path or dataset name of the user's own rows, or ''."""
  prefix, colon, path = location.partition(':')
  if prefix == 'jsonl':
    return path
  if dataset_files.is_dataset_name(location):
    return location
  is_path = not colon or path.startswith('//')  # gs://...
  return location if is_path and location.endswith(row_reader.FORMATS) else ''


def _filter_split(
  results: Iterable[_RowResult], split: str
) -> Iterator[_RowResult]:
  for result in results:
    if isinstance(result, JudgingExample) and split_of(result) != split:
      yield SkippedRow('in another split')
    else:
      yield result


def _skip_ambiguous(result: _RowResult) -> _RowResult:
  """Skips an example whose best response equals one of the others."""
  if isinstance(result, JudgingExample) and result.best is not None:
    best = result.responses[result.best]
    if result.responses.count(best) > 1:
      return SkippedRow('another response equals the best one')
  return result


def _check_unique(
  result: _RowResult, examples: Mapping[str, JudgingExample], spec: str
) -> _RowResult:
  if not isinstance(result, JudgingExample) or result.id not in examples:
    return result
  if result == examples[result.id]:
    return SkippedRow('the same as an earlier row')
  reason = (
    f'{spec}: two different rows have the id {result.id!r}; make ids unique'
  )
  return ExampleError(result.id, reason)


def _log_summary(
  name: str,
  num_examples: int,
  errors: Sequence[ExampleError],
  num_skipped: Mapping[str, int],
) -> None:
  """Logs what was read; raises UserError if there is no example."""
  skipped = '; '.join(f'{n} {reason}' for reason, n in num_skipped.items())
  if not num_examples:
    raise UserError(_no_examples(name, errors, skipped))
  for error in errors[:_MAX_LOGGED_ERRORS]:
    logging.warning('%s', error.reason)
  if errors:
    logging.warning('%s: skipped %d bad rows', name, len(errors))
  logging.info(
    '%s: %d examples; skipped: %s', name, num_examples, skipped or 'none'
  )


def _no_examples(
  name: str, errors: Sequence[ExampleError], skipped: str
) -> str:
  reasons = []
  if errors:
    reasons.append(f'bad rows: {len(errors)}, the first: {errors[0].reason}')
  if skipped:
    reasons.append(f'skipped: {skipped}')
  return f'{name}: no examples; {"; ".join(reasons) or "it has no rows"}'
