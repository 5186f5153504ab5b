"""Which mesh axes split which dimension: one table, and the code that reads it.

Every dimension of every parameter and of the large activations has a logical
name. The table maps a name to the mesh axes that split it, `()` meaning "not
split". A config carries the table as `config.mesh.logical_axis_rules`, so that a layout is
changed from the command line, for example
`--config.mesh.logical_axis_rules.logit_vocab="('tensor',)"`.

Linen itself accepts names that no rule mentions and splits nothing; here such
a name is an error, as is a mesh axis used twice on one array and a dimension
that its mesh axes do not divide.
"""

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from grm_jax.errors import UserError

Rules = Mapping[str, tuple[str, ...]]

# The memory kind of arrays in the host's memory, as jax.sharding names it.
HOST_MEMORY = 'pinned_host'

RULES: dict[str, tuple[str, ...]] = {
  # Parameters at rest.
  'pairs': (),  # the scanned (local, global) layer pairs
  'embed': ('fsdp',),  # width D of every kernel
  'heads': ('tensor',),
  'kv_heads': ('tensor',),
  'head_dim': (),
  'mlp': ('tensor',),
  'norm': (),
  'value': (),  # the single output of the scalar head
  # The embedding table has names of its own: with its width over fsdp the
  # lookup makes XLA rematerialize the whole table on every device.
  'vocab': ('tensor', 'fsdp'),
  'table_width': (),
  # Parameters while they are used. A kernel's width is gathered layer by
  # layer, after the cast to the compute dtype. For the lookup the table is
  # turned to be split by width: every device looks up all tokens, a slice
  # of the width each, and no device ever holds the table.
  'gathered_embed': (),
  'lookup_vocab': (),
  'lookup_width': ('tensor', 'fsdp'),
  'lookup_prompts': ('data',),
  'embed_to_residual_width': (
    'tensor',
  ),  # on the way from lookup_width to width
  # Activations.
  'prompts': ('data', 'fsdp'),
  'tokens': (),
  'width': (),
  # What a pair of layers begins with, which the way back keeps: `tensor` here
  # leaves less of it on a device and gathers it once more.
  'residual_tokens': (),
  # Logits of one chunk: split over the vocabulary where the table rests, so
  # that neither the table nor its gradient is ever gathered.
  'logit_prompts': ('data',),
  'logit_vocab': ('tensor', 'fsdp'),
}

# Decoding reads every weight at every step and has few tokens: weights rest
# where they are used, split over `tensor` alone, and the other axes split the
# prompts. The table is looked up where its rows are; turning it for every
# step would move all of it.
_RESIDENT: dict[str, tuple[str, ...]] = {
  'embed': (),
  'vocab': ('tensor',),
  'lookup_vocab': ('tensor',),
  'lookup_width': (),
  'lookup_prompts': ('data', 'fsdp'),
  'embed_to_residual_width': (),
  'residual_tokens': (),
  'logit_prompts': ('data', 'fsdp'),
  'logit_vocab': ('tensor',),
}


@dataclasses.dataclass(frozen=True)
class ShardingLayout:
  """A mesh and the rules that spread arrays over it. Hashable, so static.

  Attributes:
    mesh: the devices, with named axes.
    rules: (logical name, mesh axes) pairs; see `layout` below.
  """

  mesh: Mesh
  rules: tuple[tuple[str, tuple[str, ...]], ...]

  def spec(
    self, names: Sequence[str], shape: Sequence[int] | None = None
  ) -> PartitionSpec:
    """The PartitionSpec of an array whose dimensions have these names.

    Args:
      names: one logical name per dimension.
      shape: the array's sizes; when given, each split dimension must be a
        multiple of the number of devices that split it.

    Raises:
      UserError: a mesh axis used twice, or an uneven split.
      ValueError: an unlisted name.
    """
    table = dict(self.rules)
    for name in names:
      if name not in table:
        raise ValueError(_unlisted(name, table))
    axes = [table[name] for name in names]
    _check_reuse(names, axes)
    if shape is not None:
      self._check_even(names, axes, shape)
    # jit writes a single axis as itself; so do we, for specs to compare equal.
    entries = [a[0] if len(a) == 1 else (a or None) for a in axes]
    while entries and entries[-1] is None:
      entries.pop()
    return PartitionSpec(*entries)

  def sharding(
    self, names: Sequence[str], shape: Sequence[int] | None = None
  ) -> NamedSharding:
    """`spec`, on this layout's mesh."""
    return NamedSharding(self.mesh, self.spec(names, shape))

  def constrain(self, x: jax.Array, names: Sequence[str]) -> jax.Array:
    """Asks XLA to lay out `x` by these names; a no-op on one device."""
    if x.ndim != len(names):
      raise ValueError(f'{len(names)} names {tuple(names)} for shape {x.shape}')
    if self.mesh.size == 1:
      return x
    return jax.lax.with_sharding_constraint(x, self.sharding(names, x.shape))

  def split(self, name: str) -> int:
    """How many ways the dimension `name` is split."""
    return math.prod(self.mesh.shape[a] for a in dict(self.rules)[name])

  def _check_even(self, names, axes, shape):
    for name, used, size in zip(names, axes, shape, strict=True):
      ways = math.prod(self.mesh.shape[a] for a in used)
      if size % ways:
        sizes = ' x '.join(f'{a}={self.mesh.shape[a]}' for a in used)
        raise UserError(
          f'{name} has size {size}, which {ways} devices ({sizes}) cannot '
          f'split evenly; change {_keys(used)} or config.mesh.logical_axis_rules.{name}'
        )


def layout(mesh: Mesh, rules: Rules) -> ShardingLayout:
  """A Layout, once the rules are known to fit the mesh.

  Raises:
    UserError: a rule names an axis that the mesh does not have, or twice.
  """
  table = []
  for name, axes in rules.items():
    axes = tuple(axes)
    for axis in axes:
      if axis not in mesh.shape:
        raise UserError(
          f'config.mesh.logical_axis_rules.{name} names mesh axis {axis!r}; the mesh has '
          f'{tuple(mesh.shape)}'
        )
    if len(set(axes)) < len(axes):
      raise UserError(
        f'config.mesh.logical_axis_rules.{name} has an axis twice: {axes}'
      )
    table.append((name, axes))
  return ShardingLayout(mesh, tuple(sorted(table)))


def for_decoding(rules: Rules, weights: str) -> Rules:
  """The rules of decoding, from those of training.

  Args:
    rules: the table of training.
    weights: 'resident', whole but for `tensor`, or 'fsdp', as in training:
      gathered at every step, for models that do not fit otherwise.
  """
  if weights not in ('resident', 'fsdp'):
    raise UserError(
      f'config.sampling.weights is {weights!r}; it can be resident, fsdp'
    )
  return {**rules, **_RESIDENT} if weights == 'resident' else rules


def _unlisted(name, table):
  close = difflib.get_close_matches(name, table, 1)
  hint = f'; the nearest listed name is {close[0]!r}' if close else ''
  return f'logical axis {name!r} is not in config.mesh.logical_axis_rules{hint}'


def _check_reuse(names, axes):
  seen = {}
  for name, used in zip(names, axes, strict=True):
    for axis in used:
      if axis in seen:
        raise UserError(
          f'mesh axis {axis!r} would split two dimensions of one array, '
          f'{seen[axis]} and {name}; change config.mesh.logical_axis_rules.{seen[axis]} or '
          f'config.mesh.logical_axis_rules.{name}'
        )
      seen[axis] = name


def _keys(axes):
  return ' or '.join(f'config.mesh.{axis}' for axis in axes)
