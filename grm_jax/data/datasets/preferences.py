"""Published preference datasets.

A hash of the example's id decides the order of the responses (see
judgement/preference_rows.py), whatever their order in the file. tags['suite']
is the name of the dataset, tags['subset'] the origin that the row states.
"""

import re
from collections.abc import Iterator

from grm_jax.data.dataset_files import SkippedRow, text_digest
from grm_jax.judgement import preference_rows, row_values
from grm_jax.judgement.example import JudgingExample, Turn
from grm_jax.judgement.preference_rows import SourceRow

# HelpSteer2 writes a conversation into one text. It separates turns by these
# markers, with none before the first turn.
_TURN_MARKER = re.compile(r'\n<extra_id_1>(User|Assistant)\n')


def ultrafeedback(row: SourceRow) -> Iterator[JudgingExample | SkippedRow]:
  """Adapts UltraFeedback: up to four completions with a score each.

  Fields: {instruction, completions: [{response, overall_score}, ...]} (Hugging
  Face openbmb/UltraFeedback). The completion with the highest score is the
  best; a row with a tie at the top is skipped.
  """
  instruction = row.text_field('instruction')
  completions = row.object_list_field('completions')
  texts = [completion.text_field('response') for completion in completions]
  scores = [x.number_field('overall_score') for x in completions]
  if len(texts) < 2:
    yield SkippedRow('fewer than two completions')
  elif scores.count(max(scores)) > 1:
    yield SkippedRow('a tie at the top')
  else:
    yield preference_rows.shuffled_example(
      row,
      id=f'ultrafeedback/{text_digest(instruction, *texts)}',
      query=preference_rows.user_query(instruction),
      responses=texts,
      best=scores.index(max(scores)),
      rewards=scores,
      tags=_tags(row, 'ultrafeedback'),
    )


def offsetbias(row: SourceRow) -> Iterator[JudgingExample]:
  """Adapts OffsetBias: pairs that counter known biases of judges.

  Fields: {instruction, output_1, output_2, label}; label is 1 or 2, the better
  output (Hugging Face NCSOFT/offsetbias).
  """
  instruction = row.text_field('instruction')
  texts = (row.text_field('output_1'), row.text_field('output_2'))
  label = row.int_field('label')
  if label not in (1, 2):
    raise row.error(f'label is {label}; it must be 1 or 2')
  yield preference_rows.shuffled_example(
    row,
    id=f'offsetbias/{text_digest(instruction, *texts)}',
    query=preference_rows.user_query(instruction),
    responses=texts,
    best=label - 1,
    tags=_tags(row, 'offsetbias'),
  )


def skywork(row: SourceRow) -> Iterator[JudgingExample]:
  """Adapts Skywork Reward Preference: conversations with two last turns.

  Fields: {chosen: [{role, content}, ...], rejected: [...]} (Hugging Face
  Skywork/Skywork-Reward-Preference-80K-v0.2). The turns before the last one are
  the query and must be the same in both.
  """
  if 'prompt' in row.fields or isinstance(row.field('chosen'), str):
    # Preference rows of TRL: the prompt is not a part of the conversations.
    name = 'chosen that is a whole conversation'
    raise row.error(str(row_values.missing_field(name, row.fields)))
  chosen, rejected = _turns(row, 'chosen'), _turns(row, 'rejected')
  if chosen[:-1] != rejected[:-1]:
    raise row.error(
      'chosen and rejected differ before the last turn; they may differ only '
      'in the last one'
    )
  for last_turn in (chosen[-1], rejected[-1]):
    if last_turn.role != 'assistant':
      raise row.error(
        f'the role of the last turn is {last_turn.role!r}; it must be '
        "'assistant'"
      )
  texts = (chosen[-1].text, rejected[-1].text)
  query = [part for turn in chosen[:-1] for part in (turn.role, turn.text)]
  yield preference_rows.shuffled_example(
    row,
    id=f'skywork/{text_digest(*query, *texts)}',
    query=chosen[:-1],
    responses=texts,
    best=0,
    tags=_tags(row, 'skywork'),
  )


def helpsteer2(row: SourceRow) -> Iterator[JudgingExample | SkippedRow]:
  """Adapts HelpSteer2-Preference: pairs with a preference strength.

  Fields: {prompt, response_1, response_2, preference_strength}; the strength
  ranges from -3 (the first is much better) to 3 (the second is) (Hugging Face
  nvidia/HelpSteer2, folder preference, uncompressed). Strength 0 is skipped.
  The absolute strength is stored in tags['strength'], which hinted sampling
  reads. The file's own field `split` is ignored: splits are by query here.
  """
  prompt = row.text_field('prompt')
  texts = (row.text_field('response_1'), row.text_field('response_2'))
  strength = row.int_field('preference_strength')
  if not -3 <= strength <= 3:
    raise row.error(f'preference_strength is {strength}; it must be -3 to 3')
  if strength == 0:
    yield SkippedRow('neither response is better')
    return
  yield preference_rows.shuffled_example(
    row,
    id=f'helpsteer2/{text_digest(prompt, *texts)}',
    query=_conversation(prompt),
    responses=texts,
    best=int(strength > 0),
    tags={'suite': 'helpsteer2', 'strength': str(abs(strength))},
  )


def _tags(row: SourceRow, suite: str) -> dict[str, str]:
  subset = row.fields.get('source')
  return {'suite': suite} | (
    {'subset': subset} if isinstance(subset, str) else {}
  )


def _turns(row: SourceRow, key: str) -> tuple[Turn, ...]:
  return tuple(
    Turn(turn.text_field('role'), turn.text_field('content'))
    for turn in row.object_list_field(key)
  )


def _conversation(prompt: str) -> tuple[Turn, ...]:
  first, *rest = _TURN_MARKER.split(prompt)
  # split() returns role, text, role, text, ... after the first turn.
  pairs = zip(rest[::2], rest[1::2], strict=True)
  later_turns = (Turn(role.lower(), text) for role, text in pairs)
  return (Turn('user', first), *later_turns)
