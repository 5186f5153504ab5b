"""Files of datasets on the Hugging Face Hub: `hf:OWNER/NAME[/PATH][@REVISION]`.

PATH is a file of the dataset's repository; its name may contain `*`. Without it
the files are data/train-*.parquet, the usual layout. They are downloaded into
the cache of huggingface_hub (HF_HOME), once per revision. HF_TOKEN gives access
to gated datasets.
"""

import functools
import glob
import os
import re

from grm_jax.errors import UserError

PREFIX = 'hf:'
DEFAULT_PATH = 'data/train-*.parquet'
_SPEC = re.compile(r'hf:([\w.-]+/[\w.-]+)(?:/([^@]+))?(?:@([\w./-]+))?')


@functools.cache
def local_path(spec: str) -> str:
  """Downloads the files that `spec` names; returns their local path.

  Raises:
    UserError: the spec is wrong, huggingface_hub is missing, or the dataset
      cannot be downloaded or has no such file.
  """
  match = _SPEC.fullmatch(spec)
  if not match:
    raise UserError(
      f'{spec!r} is not a dataset of the Hub; write hf:OWNER/NAME, or '
      'hf:OWNER/NAME/PATH for other files than data/train-*.parquet'
    )
  name, path, revision = match.groups()
  path = path or DEFAULT_PATH
  hub = _import_hub(spec)
  try:
    folder = hub.snapshot_download(
      name, repo_type='dataset', revision=revision, allow_patterns=[path]
    )
    local = os.path.join(folder, path)
    if glob.glob(local):
      return local
    files = hub.HfApi().list_repo_files(
      name, repo_type='dataset', revision=revision
    )
  except Exception as error:  # many kinds: network, access, name
    reason = ' '.join(str(error).split())[:300]
    raise UserError(
      f'{spec}: cannot be downloaded ({type(error).__name__}: {reason}); check '
      'the name, the network, and for a gated dataset HF_TOKEN'
    ) from error
  data = [x for x in files if x.endswith(('.parquet', '.jsonl', '.json'))]
  raise UserError(
    f'{spec}: no file matches {path}; the dataset has '
    f'{", ".join(data[:8]) or "no .parquet, .jsonl or .json file"}'
  )


def _import_hub(spec: str):
  try:
    import huggingface_hub
  except ImportError as error:
    raise UserError(
      f'{spec} needs huggingface_hub; install it with `pip install '
      'huggingface_hub`, or download the files and give their path'
    ) from error
  return huggingface_hub
