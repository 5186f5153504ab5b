"""Rows that survive being killed, TensorBoard's files, non-finite steps."""

import json
import math
import pathlib
import struct
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from grm_jax.errors import NonFiniteError, UserError
from grm_jax.training import metric_writer
from tests import full_disk
from tests.messages import names, naming


def log(workdir, first, last, step=0):
  """A run of the steps first..last that goes on after `step`."""
  with metric_writer.MetricWriter(workdir, step) as writer:
    for n in range(first, last + 1):
      writer.write(n, {'loss': 1 / n, 'tokens': 8 * n})


def rows(workdir):
  text = (workdir / 'metrics.jsonl').read_text()
  assert text == '' or text.endswith('\n')
  return [json.loads(line) for line in text.splitlines()]


def events(workdir):
  """All TensorBoard events, in the order in which it reads them.

  A record is its length (8 bytes), a checksum (4), the event, a checksum (4).
  """
  for path in sorted((workdir / 'tensorboard').iterdir()):
    data = path.read_bytes()
    while data:
      (length,) = struct.unpack('<Q', data[:8].ljust(8))
      if len(data) < 16 + length:
        break  # cut off: TensorBoard shows what is before
      yield event_pb2.Event.FromString(data[12 : 12 + length])
      data = data[16 + length :]


def board(workdir):
  """{tag: {step: value}} as TensorBoard shows it."""
  shown = {}
  for event in events(workdir):
    if event.session_log.status == event_pb2.SessionLog.START:
      for steps in shown.values():
        for step in [step for step in steps if step >= event.step]:
          del steps[step]
    for value in event.summary.value:
      steps = shown.setdefault(value.tag, {})
      assert event.step not in steps
      steps[event.step] = value
  return shown


def test_a_row_is_in_the_file_at_once(tmp_path):
  writer = metric_writer.MetricWriter(tmp_path / 'new' / 'run')
  writer.write(
    1, {'loss': jnp.float32(0.5), 'tokens': 12, 'mfu': None, 'x': np.int32(3)}
  )
  assert (tmp_path / 'new' / 'run' / 'metrics.jsonl').read_text() == (
    '{"step": 1, "loss": 0.5, "tokens": 12, "x": 3.0}\n'
  )
  writer.close()


def test_numbers_that_json_does_not_have(tmp_path):
  with metric_writer.MetricWriter(tmp_path) as writer:
    writer.write(1, {'a': math.nan, 'b': jnp.float32(math.inf), 'c': -math.inf})
  (row,) = rows(tmp_path)
  assert row == {'step': 1, 'a': 'nan', 'b': 'inf', 'c': '-inf'}
  assert float(row['c']) == -math.inf


@pytest.mark.parametrize('torn', ['', '{"step": 5, "lo', '{"step": 2'])
def test_a_run_that_goes_on_equals_an_undisturbed_one(tmp_path, torn):
  log(tmp_path / 'whole', 1, 6)
  log(tmp_path / 'killed', 1, 4)
  path = tmp_path / 'killed' / 'metrics.jsonl'
  path.write_text(path.read_text() + torn)
  log(tmp_path / 'killed', 3, 6, step=2)
  assert (
    path.read_bytes() == (tmp_path / 'whole' / 'metrics.jsonl').read_bytes()
  )
  shown = {
    name: {
      tag: {step: value.simple_value for step, value in steps.items()}
      for tag, steps in board(tmp_path / name).items()
    }
    for name in ('whole', 'killed')
  }
  assert shown['killed'] == shown['whole']
  assert shown['whole']['tokens'] == {n: 8.0 * n for n in range(1, 7)}


def test_a_run_from_the_start_begins_anew(tmp_path):
  for last in (3, 1):
    with metric_writer.MetricWriter(tmp_path) as writer:
      for n in range(last + 1):  # Row 0 is of the model before any update.
        writer.write(n, {'loss': last})
  assert rows(tmp_path) == [{'step': 0, 'loss': 1}, {'step': 1, 'loss': 1}]
  loss = board(tmp_path)['loss']
  assert {n: value.simple_value for n, value in loss.items()} == {0: 1, 1: 1}


def test_text_and_histogram(tmp_path):
  with metric_writer.MetricWriter(tmp_path) as writer:
    writer.text(3, 'generation', '# Scores\n<b>7</b>')
    writer.histogram(3, 'scores', jnp.asarray([[1, 2], [2, 9]]))
  shown = board(tmp_path)
  (text,) = [v for tag, v in shown.items() if tag.startswith('generation')]
  assert text[3].tensor.string_val == [b'    # Scores\n    <b>7</b>\n']
  histogram = shown['scores'][3].histo
  assert (histogram.num, histogram.min, histogram.max) == (4, 1, 9)


def test_other_processes_do_nothing(tmp_path):
  with metric_writer.MetricWriter(tmp_path / 'run', active=False) as writer:
    writer.write(1, {'loss': object()})  # not even waited for
    writer.text(1, 'generation', 'x')
    writer.histogram(1, 'scores', object())
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  'content', ['not json\n', '[1]\n', '{"loss": 1}\n', '{"step": "1"}\n']
)
def test_a_file_of_something_else_is_left_alone(tmp_path, content):
  path = tmp_path / 'metrics.jsonl'
  path.write_text(content)
  with pytest.raises(UserError, match=naming(path, '--workdir')):
    metric_writer.MetricWriter(tmp_path, step=1)
  assert path.read_text() == content


def test_a_place_that_cannot_be_written(tmp_path):
  (tmp_path / 'FILE').touch()
  with pytest.raises(UserError, match=naming(tmp_path / 'FILE/run')):
    metric_writer.MetricWriter(tmp_path / 'FILE' / 'run')


def test_a_row_that_finds_no_room(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  message = naming(path, full_disk.WHY)
  many = {f'a number {i}': i for i in range(100)}  # TensorBoard's have room
  with metric_writer.MetricWriter(tmp_path) as writer:
    writer.write(1, many)
  with (
    pytest.raises(UserError, match=message),
    full_disk.files_up_to(path.stat().st_size + 5),
    metric_writer.MetricWriter(tmp_path, step=1) as writer,
  ):
    writer.write(2, many)
    pytest.fail('half a row was taken for a whole one')
  with metric_writer.MetricWriter(tmp_path, step=1) as writer:
    writer.write(2, {'loss': 3})
  assert rows(tmp_path) == [{'step': 1, **many}, {'step': 2, 'loss': 3}]


def test_a_board_that_finds_no_room_is_no_reason_to_end(tmp_path, caplog):
  with (
    full_disk.files_up_to(4000),
    metric_writer.MetricWriter(tmp_path) as writer,
  ):
    for n in range(1, 100):
      writer.histogram(n, 'scores', np.arange(100))
    writer.write(99, {'loss': 1})
  assert rows(tmp_path) == [{'step': 99, 'loss': 1}]
  (warning,) = [x for x in caplog.messages if names(x, full_disk.WHY)]
  assert f'{tmp_path}/tensorboard/events' in warning
  with metric_writer.MetricWriter(tmp_path, step=99) as writer:
    writer.write(100, {'loss': 2})
  assert board(tmp_path)['loss'][100].simple_value == 2


def test_finite_steps_pass(tmp_path):
  numbers = {'loss': jnp.float32(1), 'grad_norm': 0.0, 'entropy': math.nan}
  numbers['param_norm'] = 2.0
  metric_writer.check_finite(numbers, ['a'], tmp_path, 7)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  'loss, grad_norm, bad',
  [
    (math.nan, 1.0, {'loss': 'nan'}),
    (0.5, math.inf, {'grad_norm': 'inf'}),
    (-math.inf, math.nan, {'loss': '-inf', 'grad_norm': 'nan'}),
  ],
)
def test_a_non_finite_step_stops(tmp_path, loss, grad_norm, bad):
  numbers = {'loss': jnp.float32(loss), 'grad_norm': grad_norm, 'tokens': 9}
  numbers['param_norm'] = 2.0
  with pytest.raises(NonFiniteError) as error:
    metric_writer.check_finite(numbers, ('a', 'b'), tmp_path, 7)
  path = tmp_path / 'nonfinite_7.json'
  assert names(error.value, 7, path, *bad.values())
  named = {x for x in ('loss', 'grad_norm') if names(error.value, x)}
  assert named == set(bad)
  report = json.loads(path.read_text())
  assert report['step'] == 7 and report['ids'] == ['a', 'b']
  assert report['metrics']['tokens'] == 9
  assert float(report['metrics']['loss']) == pytest.approx(loss, nan_ok=True)


def test_the_module_alone_brings_neither_torch_nor_tensorflow():
  code = (
    'import sys, grm_jax.training.metric_writer\n'
    'print([m for m in ("tensorflow", "torch") if m in sys.modules])'
  )
  out = subprocess.run(
    [sys.executable, '-c', code],
    cwd=pathlib.Path(__file__).parents[2],
    capture_output=True,
    text=True,
  )
  assert out.stdout.strip() == '[]', out.stderr
