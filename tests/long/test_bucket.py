"""The whole method with a workdir on gs://, simulated in memory."""

import json
import os
import subprocess
import sys

from tests import test_main
from tests.messages import lines_with
from tests.stages import stage_output


def test_the_whole_method_in_a_bucket(tmp_path):
  out = subprocess.run(
    [sys.executable, '-m', 'tests.long.bucket_run', tmp_path],
    cwd=test_main.ROOT,
    env=test_main.environment(),
    capture_output=True,
    text=True,
  )
  assert out.returncode == 0, out.stderr
  # The second run skips all stages.
  assert len(lines_with(out.stdout, stage_output.SKIPPED)) == 7
  names = json.loads(out.stdout.splitlines()[-1])
  for name in ('evaluation/report.html', 'grpo/metrics.jsonl'):
    assert f'/bucket/work/{name}' in names
  # The disk has no folder of this name, the bucket no incomplete file.
  assert not os.path.exists(os.path.join(test_main.ROOT, 'gs:'))
  assert not [x for x in names if x.endswith(('.tmp', '.partial', '.greedy'))]
