"""How a model is computed: dtypes, remat, backends, block sizes."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Compute:
  """How to compute, as opposed to what: nothing here changes the function.

  Attributes:
    dtype: of activations and of weights while they are used.
    param_dtype: of parameters at rest.
    remat: what the backward pass keeps of a layer pair; a key of
      `gemma.REMAT`.
    attention: 'xla' anywhere, or 'splash' (Pallas) for the prompt part on TPU.
    query_block: most queries whose attention logits exist at once (xla).
    splash_block: rows and columns of a splash tile; a multiple of 128.
    head_chunk: most tokens whose logits over the vocabulary exist at once.
    interpret: run splash in Pallas' interpreter, for tests off TPU.
  """

  dtype: str = 'float32'
  param_dtype: str = 'float32'
  remat: str = 'none'
  attention: str = 'xla'
  query_block: int = 512
  splash_block: int = 512
  head_chunk: int = 4096
  interpret: bool = False
