"""Errors that end a run with one line instead of a traceback.

`main` prints the message of these errors and exits with the code given below.
Every other exception is a defect of the program or a fault of the machine: it
keeps its traceback and exits with code 1.
"""


class UserError(ValueError):
  """What the user can fix: a setting, a path, a row, a request, a checkpoint.

  The message is one line: what is wrong, with the values, and how to fix it.
  It names the full config key, or the file and the line. Exit code 2.

  A mistake that only a programmer can make (a wrong rank or dtype, a broken
  invariant) is a plain ValueError.
  """


class NonFiniteError(FloatingPointError):
  """Training computed a number that is NaN or infinite. Exit code 3.

  It is not a UserError: the cause can be a setting, the data or a defect.
  """
