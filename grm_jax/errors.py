"""Errors that end a run with one line instead of a traceback.

`main` prints the message of these errors and exits with the code given below.
Every other exception is an error in the program or the machine: it keeps its
traceback and exits with code 1.
"""


class UserError(ValueError):
  """An error that the user can fix: in a setting, path, row or checkpoint.

  The message is one line: what is wrong, with the values, and how to fix it. It
  names the full config key, or the file and the line. Exit code 2.

  An error that only a programmer can make, such as a wrong rank or dtype, is a
  plain ValueError.
  """


class NonFiniteError(FloatingPointError):
  """Training computed a NaN or an infinity. Exit code 3.

  It is not a UserError: the cause can be a setting, the data or an error in the
  program.
  """
