"""Sets in which people or models prefer a response, as published.

Responses stand in an order that a hash of the example's id decides
(judgement/preference_rows.py), whatever the order in the file. tags['suite'] is the set's
name; tags['subset'] what the row itself says it comes from, if it does.
"""

import math
import re
from collections.abc import Iterator

from grm_jax.data.dataset_files import SkippedRow, digest
from grm_jax.data.datasets import pandalm as pandalm_rows
from grm_jax.judgement import preference_rows
from grm_jax.judgement.example import JudgingExample, Turn

# HelpSteer2 writes a conversation into its prompt, without the first mark.
_MARK = re.compile(r'\n<extra_id_1>(User|Assistant)\n')


def ultrafeedback(
  row: preference_rows.SourceRow,
) -> Iterator[JudgingExample | SkippedRow]:
  """UltraFeedback: up to four completions and a score for each.

  {instruction, completions: [{response, overall_score}, ...]} (Hugging Face
  openbmb/UltraFeedback). The best is the one with the highest score; a tie at
  the top is dropped.
  """
  question = row.text('instruction')
  completions = row.inners('completions')
  texts = [completion.text('response') for completion in completions]
  scores = [_number(completion, 'overall_score') for completion in completions]
  if len(texts) < 2:
    yield SkippedRow('fewer than two completions')
  elif scores.count(max(scores)) > 1:
    yield SkippedRow('a tie at the top')
  else:
    yield preference_rows.arranged(
      row,
      id=f'ultrafeedback/{digest(question, *texts)}',
      query=preference_rows.asked(question),
      responses=texts,
      best=scores.index(max(scores)),
      rewards=scores,
      tags=_tags(row, 'ultrafeedback'),
    )


def offsetbias(row: preference_rows.SourceRow) -> Iterator[JudgingExample]:
  """OffsetBias: pairs against the biases of judges.

  {instruction, output_1, output_2, label}, label 1 or 2 for the better one
  (Hugging Face NCSOFT/offsetbias).
  """
  question = row.text('instruction')
  texts = (row.text('output_1'), row.text('output_2'))
  label = row.whole('label')
  if label not in (1, 2):
    raise row.fault(f'label is {label}, neither 1 nor 2')
  yield preference_rows.arranged(
    row,
    id=f'offsetbias/{digest(question, *texts)}',
    query=preference_rows.asked(question),
    responses=texts,
    best=label - 1,
    tags=_tags(row, 'offsetbias'),
  )


def skywork(row: preference_rows.SourceRow) -> Iterator[JudgingExample]:
  """Skywork Reward Preference: two conversations that differ at the end.

  {chosen: [{role, content}, ...], rejected: [...]} (Hugging Face
  Skywork/Skywork-Reward-Preference-80K-v0.2). The turns before the last are
  the query and must be the same in both.
  """
  chosen, rejected = _turns(row, 'chosen'), _turns(row, 'rejected')
  if chosen[:-1] != rejected[:-1]:
    raise row.fault('chosen and rejected differ before their last turn')
  for last in (chosen[-1], rejected[-1]):
    if last.role != 'assistant':
      raise row.fault(f"the last turn is the {last.role}'s")
  texts = (chosen[-1].text, rejected[-1].text)
  turns = [part for turn in chosen[:-1] for part in (turn.role, turn.text)]
  yield preference_rows.arranged(
    row,
    id=f'skywork/{digest(*turns, *texts)}',
    query=chosen[:-1],
    responses=texts,
    best=0,
    tags=_tags(row, 'skywork'),
  )


def helpsteer2(
  row: preference_rows.SourceRow,
) -> Iterator[JudgingExample | SkippedRow]:
  """HelpSteer2-Preference: pairs with how much better one is.

  {prompt, response_1, response_2, preference_strength}, from -3 (the first is
  much better) to 3 (the second is) (Hugging Face nvidia/HelpSteer2, folder
  preference, unpacked). 0 is dropped. The strength without its sign is in
  tags['strength'], where a hint finds it. The file's own field `split` is not
  used: splits are by question here.
  """
  prompt = row.text('prompt')
  texts = (row.text('response_1'), row.text('response_2'))
  strength = row.whole('preference_strength')
  if not -3 <= strength <= 3:
    raise row.fault(f'preference_strength is {strength}, not from -3 to 3')
  if strength == 0:
    yield SkippedRow('neither response is better')
    return
  yield preference_rows.arranged(
    row,
    id=f'helpsteer2/{digest(prompt, *texts)}',
    query=_conversation(prompt),
    responses=texts,
    best=int(strength > 0),
    tags={'suite': 'helpsteer2', 'strength': str(abs(strength))},
  )


def pandalm(
  row: preference_rows.SourceRow,
) -> Iterator[JudgingExample | SkippedRow]:
  """PandaLM's human test set, as in evaluation: same ids, same order.

  Who trains on a split of it reports its suite on the held out one only.
  """
  yield pandalm_rows.example(row) or SkippedRow('the majority is a tie or none')


def _tags(row, suite):
  subset = row.fields.get('source')
  return {'suite': suite} | (
    {'subset': subset} if isinstance(subset, str) else {}
  )


def _number(row, key):
  value = row.value(key)
  good = isinstance(value, int | float) and not isinstance(value, bool)
  if not good or not math.isfinite(value):
    raise row.fault(f'{key} must be a finite number, not {value!r:.60}')
  return float(value)


def _turns(row, key):
  return tuple(
    Turn(turn.text('role'), turn.text('content')) for turn in row.inners(key)
  )


def _conversation(prompt):
  first, *rest = _MARK.split(prompt)
  pairs = zip(rest[::2], rest[1::2], strict=True)
  later = [Turn(role.lower(), text) for role, text in pairs]
  return (Turn('user', first), *later)
