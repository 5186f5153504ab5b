"""Writes gemma2.npz: logits of a random Gemma-2 by Hugging Face transformers.

  python -m tests.golden.make_gemma2

Needs requirements-peers.txt. Run it again if gemma2_files.CONFIGS changes. The
logits should not change for another reason; between releases of transformers
they change by at most 1e-5. The weights are not stored: NumPy's PCG64 gives the
same ones for a seed.
"""

import pathlib
import sys
import tempfile

import numpy as np

from tests import gemma2_files

CONFIG, SEED, SHAPE = 'odd_heads', 11, (2, 40)
FILE = pathlib.Path(__file__).with_name('gemma2.npz')


def tokens():
  """Returns int [2, 40], the same on every machine."""
  rng = np.random.Generator(np.random.PCG64(SEED))
  vocab_size = gemma2_files.CONFIGS[CONFIG]['vocab_size']
  return rng.integers(0, vocab_size, SHAPE)


def main():
  """Computes and writes the logits."""
  import torch
  import transformers

  with tempfile.TemporaryDirectory() as directory:
    gemma2_files.write(directory, gemma2_files.CONFIGS[CONFIG], SEED)
    model = transformers.Gemma2ForCausalLM.from_pretrained(
      directory, attn_implementation='eager', dtype=torch.float32
    ).eval()
  with torch.no_grad():
    logits = model(torch.tensor(tokens())).logits.numpy()
  np.savez_compressed(FILE, logits=logits)
  print(f'{FILE.name}: {logits.shape} by {transformers.__version__}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
