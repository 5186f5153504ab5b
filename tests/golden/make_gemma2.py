"""Makes gemma2.npz: log-probs of a random Gemma-2 by Hugging Face.

  python -m tests.golden.make_gemma2

Needs requirements-peers.txt. Run it again when gemma2_files.CONFIGS changes;
the numbers should not move for any other reason, and by at most 1e-5 between
releases of transformers. The weights are not stored: NumPy's PCG64 makes them
again from the seed.
"""

import pathlib
import sys
import tempfile

import numpy as np

from tests import gemma2_files

CONFIG, SEED, SHAPE = 'odd_heads', 11, (2, 40)
FILE = pathlib.Path(__file__).with_name('gemma2.npz')


def tokens():
  """int [2, 40], the same everywhere."""
  rng = np.random.Generator(np.random.PCG64(SEED))
  vocab_size = gemma2_files.CONFIGS[CONFIG]['vocab_size']
  return rng.integers(0, vocab_size, SHAPE)


def main():
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
