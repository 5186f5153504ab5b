"""Child process of test_bucket: runs the whole method twice.

The workdir is a bucket in memory. The last line of output is a JSON list of the
files in it.
"""

import json
import pathlib
import sys

import pytest

from grm_jax.stages.spct import run as spct_run_module
from tests import fake_bucket
from tests.stages import spct_run


def main(folder: str) -> None:
  config = spct_run.parse(*spct_run.arguments(pathlib.Path(folder)))
  with pytest.MonkeyPatch.context() as patch, fake_bucket.bucket(patch) as url:
    for _ in range(2):
      spct_run_module.run(config, f'{url}/work')
    print(json.dumps(sorted(fake_bucket.MemoryBuckets.store)))


if __name__ == '__main__':
  main(*sys.argv[1:])
