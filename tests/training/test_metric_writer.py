"""metrics.jsonl survives kills; TensorBoard files; non-finite steps."""

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


def write_steps(workdir, first, last, step=0):
  """Writes steps first..last of a run that resumes after `step`."""
  with metric_writer.MetricWriter(workdir, step) as writer:
    for n in range(first, last + 1):
      writer.write(n, {'loss': 1 / n, 'tokens': 8 * n})
      writer.commit(n)


def rows(workdir):
  text = (workdir / 'metrics.jsonl').read_text()
  assert text == '' or text.endswith('\n')
  return [json.loads(line) for line in text.splitlines()]


def events(workdir):
  """Yields all TensorBoard events in the order in which it reads them.

  A record is its length (8 bytes), a checksum (4), the event, a checksum (4).
  """
  for path in sorted((workdir / 'tensorboard').iterdir()):
    data = path.read_bytes()
    while data:
      (length,) = struct.unpack('<Q', data[:8].ljust(8))
      if len(data) < 16 + length:
        break  # truncated: TensorBoard shows the events before it
      yield event_pb2.Event.FromString(data[12 : 12 + length])
      data = data[16 + length :]


def tensorboard(workdir):
  """Returns {tag: {step: value}} as TensorBoard shows it."""
  values = {}
  for event in events(workdir):
    if event.session_log.status == event_pb2.SessionLog.START:
      for steps in values.values():
        for step in [step for step in steps if step >= event.step]:
          del steps[step]
    for value in event.summary.value:
      steps = values.setdefault(value.tag, {})
      assert event.step not in steps
      steps[event.step] = value
  return values


def test_row_is_in_the_file_after_write(tmp_path):
  writer = metric_writer.MetricWriter(tmp_path / 'new' / 'run')
  writer.write(
    1, {'loss': jnp.float32(0.5), 'tokens': 12, 'mfu': None, 'x': np.int32(3)}
  )
  assert (tmp_path / 'new' / 'run' / 'metrics.jsonl').read_text() == (
    '{"step": 1, "loss": 0.5, "tokens": 12, "x": 3.0}\n'
  )
  writer.close()


def test_nan_and_infinity_become_strings(tmp_path):
  with metric_writer.MetricWriter(tmp_path) as writer:
    writer.write(1, {'a': math.nan, 'b': jnp.float32(math.inf), 'c': -math.inf})
  (row,) = rows(tmp_path)
  assert row == {'step': 1, 'a': 'nan', 'b': 'inf', 'c': '-inf'}
  assert float(row['c']) == -math.inf


@pytest.mark.parametrize(
  'partial_line', ['', '{"step": 5, "lo', '{"step": 2', '\0' * 9, '\n\n', 'x\n']
)
def test_resumed_run_equals_an_uninterrupted_one(tmp_path, partial_line):
  write_steps(tmp_path / 'uninterrupted', 1, 6)
  write_steps(tmp_path / 'killed', 1, 4)
  path = tmp_path / 'killed' / 'metrics.jsonl'
  path.write_text(path.read_text() + partial_line)
  write_steps(tmp_path / 'killed', 3, 6, step=2)
  assert (
    path.read_bytes()
    == (tmp_path / 'uninterrupted' / 'metrics.jsonl').read_bytes()
  )
  boards = {
    name: {
      tag: {step: value.simple_value for step, value in steps.items()}
      for tag, steps in tensorboard(tmp_path / name).items()
    }
    for name in ('uninterrupted', 'killed')
  }
  assert boards['killed'] == boards['uninterrupted']
  assert boards['uninterrupted']['tokens'] == {n: 8.0 * n for n in range(1, 7)}


def test_run_from_step_0_overwrites_old_rows(tmp_path):
  for last in (3, 1):
    with metric_writer.MetricWriter(tmp_path) as writer:
      for n in range(last + 1):  # Row 0 is from the model before any update.
        writer.write(n, {'loss': last})
  assert rows(tmp_path) == [{'step': 0, 'loss': 1}, {'step': 1, 'loss': 1}]
  loss = tensorboard(tmp_path)['loss']
  assert {n: value.simple_value for n, value in loss.items()} == {0: 1, 1: 1}


def test_text_and_histogram(tmp_path):
  with metric_writer.MetricWriter(tmp_path) as writer:
    writer.text(3, 'generation', '# Scores\n<b>7</b>')
    writer.histogram(3, 'scores', jnp.asarray([[1, 2], [2, 9]]))
  values = tensorboard(tmp_path)
  (text,) = [v for tag, v in values.items() if tag.startswith('generation')]
  assert text[3].tensor.string_val == [b'    # Scores\n    <b>7</b>\n']
  histogram = values['scores'][3].histo
  assert (histogram.num, histogram.min, histogram.max) == (4, 1, 9)


def test_inactive_writer_does_nothing(tmp_path):
  with metric_writer.MetricWriter(tmp_path / 'run', active=False) as writer:
    writer.write(1, {'loss': object()})  # not even converted
    writer.text(1, 'generation', 'x')
    writer.histogram(1, 'scores', object())
  assert list(tmp_path.iterdir()) == []


def damage(lines, kind):
  """Returns two rows with damage to the second."""
  return {
    'changed': [lines[0], lines[1].replace('16', '61')],
    'doubled': [lines[0], lines[0], lines[1]],
    'missing': [lines[1]],
    'shorter': [lines[0], lines[1][:-5]],
    'blank': [lines[0], '\n', lines[1]],
    'NUL': [lines[0], '\0' * len(lines[1])],
    'empty': [],
  }[kind]


@pytest.mark.parametrize(
  'kind', ['changed', 'doubled', 'missing', 'shorter', 'blank', 'NUL', 'empty']
)
def test_changed_rows_are_refused(tmp_path, kind):
  write_steps(tmp_path, 1, 2)
  path = tmp_path / 'metrics.jsonl'
  content = ''.join(damage(path.read_text().splitlines(True), kind))
  path.write_text(content)
  for read in (metric_writer.MetricWriter, metric_writer.read_rows):
    with pytest.raises(UserError, match=naming(path)):
      read(tmp_path, 2)
  assert path.read_text() == content
  path.unlink()
  write_steps(tmp_path, 3, 4, 2)
  assert [row['step'] for row in rows(tmp_path)] == [3, 4]


def test_rows_are_read_up_to_a_checkpoint(tmp_path):
  assert metric_writer.read_rows(tmp_path) == []
  write_steps(tmp_path, 1, 2)
  written = rows(tmp_path)
  with metric_writer.MetricWriter(tmp_path, 2) as writer:
    writer.write(3, {'loss': 1})  # its checkpoint is never saved
  assert metric_writer.read_rows(tmp_path) == written
  with metric_writer.MetricWriter(tmp_path) as writer:  # from the start
    writer.write(1, {'loss': 7})
    writer.commit(1)
  assert metric_writer.read_rows(tmp_path) == [{'step': 1, 'loss': 7}]


def test_rows_changed_during_the_run_are_reported(tmp_path, caplog):
  path = tmp_path / 'metrics.jsonl'
  with metric_writer.MetricWriter(tmp_path) as writer:
    writer.write(1, {'loss': 1})
  assert str(path) not in caplog.text
  with metric_writer.MetricWriter(tmp_path) as writer:
    writer.write(1, {'loss': 1})
    path.write_text(path.read_text().replace('1', '2'))
  assert str(path) in caplog.text


def test_unwritable_workdir_is_named(tmp_path):
  (tmp_path / 'FILE').touch()
  with pytest.raises(UserError, match=naming(tmp_path / 'FILE/run')):
    metric_writer.MetricWriter(tmp_path / 'FILE' / 'run')


def test_full_disk_is_reported(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  message = naming(path, full_disk.ERROR_TEXT)
  # Longer than the TensorBoard records, which stay below the limit.
  scalars = {f'a number {i}': i for i in range(100)}
  with metric_writer.MetricWriter(tmp_path) as writer:
    writer.write(1, scalars)
    writer.commit(1)
  with (
    pytest.raises(UserError, match=message),
    full_disk.limit_file_size(path.stat().st_size + 5),
    metric_writer.MetricWriter(tmp_path, 1) as writer,
  ):
    writer.write(2, scalars)
    pytest.fail('an incomplete row was accepted')
  with metric_writer.MetricWriter(tmp_path, 1) as writer:
    writer.write(2, {'loss': 3})
  assert rows(tmp_path) == [{'step': 1, **scalars}, {'step': 2, 'loss': 3}]


def test_full_disk_for_tensorboard_only_warns(tmp_path, caplog):
  with (
    full_disk.limit_file_size(4000),
    metric_writer.MetricWriter(tmp_path) as writer,
  ):
    for n in range(1, 100):
      writer.histogram(n, 'scores', np.arange(100))
    writer.write(99, {'loss': 1})
    writer.commit(99)
  assert rows(tmp_path) == [{'step': 99, 'loss': 1}]
  (warning,) = [x for x in caplog.messages if names(x, full_disk.ERROR_TEXT)]
  assert f'{tmp_path}/tensorboard/events' in warning
  with metric_writer.MetricWriter(tmp_path, 99) as writer:
    writer.write(100, {'loss': 2})
  assert tensorboard(tmp_path)['loss'][100].simple_value == 2


def test_finite_metrics_pass(tmp_path):
  metrics = {'loss': jnp.float32(1), 'grad_norm': 0.0, 'entropy': math.nan}
  metrics['param_norm'] = 2.0
  metric_writer.check_finite(metrics, ['a'], tmp_path, 7)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  'loss, grad_norm, non_finite',
  [
    (math.nan, 1.0, {'loss': 'nan'}),
    (0.5, math.inf, {'grad_norm': 'inf'}),
    (-math.inf, math.nan, {'loss': '-inf', 'grad_norm': 'nan'}),
  ],
)
def test_non_finite_metrics_stop_the_run(tmp_path, loss, grad_norm, non_finite):
  metrics = {'loss': jnp.float32(loss), 'grad_norm': grad_norm, 'tokens': 9}
  metrics['param_norm'] = 2.0
  with pytest.raises(NonFiniteError) as error:
    metric_writer.check_finite(metrics, ('a', 'b'), tmp_path, 7)
  path = tmp_path / 'nonfinite_7.json'
  assert names(error.value, 7, path, *non_finite.values())
  named = {x for x in ('loss', 'grad_norm') if names(error.value, x)}
  assert named == set(non_finite)
  report = json.loads(path.read_text())
  assert report['step'] == 7 and report['ids'] == ['a', 'b']
  assert report['metrics']['tokens'] == 9
  assert float(report['metrics']['loss']) == pytest.approx(loss, nan_ok=True)


def test_import_loads_neither_torch_nor_tensorflow():
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


@pytest.mark.parametrize('content', [None, '', '{', '[]', '{"1": 2}'])
def test_rows_without_their_positions_are_refused(tmp_path, content):
  write_steps(tmp_path, 1, 2)
  path = tmp_path / metric_writer.POSITIONS
  path.unlink()
  if content is not None:
    path.write_text(content)
  with pytest.raises(UserError, match=naming(tmp_path / 'metrics.jsonl', path)):
    metric_writer.MetricWriter(tmp_path, 2)
