"""Logical axes: which mesh axes split which dimension of which array.

Every dimension of every parameter and of the large activations has a logical
name. One table, RULES, maps each name to the mesh axes that split it; `()`
means "not split". A config holds the table as `config.mesh.logical_axis_rules`,
so one rule can be changed on the command line:

  --config.mesh.logical_axis_rules.logit_vocab="('tensor',)"

Linen ignores names without a rule. Here they are errors, and so are a mesh axis
that would split two dimensions of one array and a dimension that its mesh axes
do not divide.
"""

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from grm_jax import settings
from grm_jax.errors import UserError

AXES = ('data', 'fsdp', 'tensor')
Rules = Mapping[str, tuple[str, ...]]

# The memory kind of arrays in host memory, as jax.sharding names it.
HOST_MEMORY = 'pinned_host'

# Arrays and their logical axes. The first dimension of every parameter of a
# layer is `pairs`, the stack of (local, global) layer pairs.
#
#   parameter            at rest                    while a layer uses it
#   query                embed, heads, head_dim     gathered_embed, heads, ..
#   key, value           embed, kv_heads, head_dim  gathered_embed, kv_heads, ..
#   attention out        heads, head_dim, embed     heads, .., gathered_embed
#   MLP gate, up         embed, mlp                 gathered_embed, mlp
#   MLP down             mlp_rows, gathered_embed   mlp, gathered_embed
#   RMSNorm scale        norm                       norm
#   scalar head kernel   norm, value                norm, value
#   embedding table      vocab, table_width         see the lookup below
#   adapter of a kernel  its inputs, lora_rank; lora_rank, its outputs
#
#   activation           logical axes
#   residual stream      prompts, tokens, width
#   input of a pair      prompts, residual_tokens, width
#   MLP hidden           prompts, tokens, mlp
#   KV cache             prompts, kv_heads, tokens, head_dim
#   logits of one chunk  logit_prompts, tokens, logit_vocab
#
# Embedding lookup, in the order in which arrays change their layout:
#   table    vocab, table_width -> lookup_vocab, lookup_width
#   tokens   lookup_prompts, tokens
#   rows     lookup_prompts, tokens, lookup_width
#            -> prompts, tokens, embed_to_residual_width
#            -> prompts, tokens, width
RULES: dict[str, tuple[str, ...]] = {
  # Parameters at rest.
  'pairs': (),
  'embed': ('fsdp',),
  'heads': ('tensor',),
  'kv_heads': ('tensor',),
  'head_dim': (),
  'mlp': ('tensor',),
  # Rows and not columns: what is gathered is then in the order in which matrix
  # products read it. Columns would first have to be transposed.
  'mlp_rows': ('tensor', 'fsdp'),
  'lora_rank': (),
  'norm': (),
  'value': (),  # the single output of the scalar head
  # The embedding table has its own names. With its width split over fsdp, the
  # lookup would make XLA rematerialize the whole table on every device.
  'vocab': ('tensor', 'fsdp'),
  'table_width': (),
  # Parameters in use. The width of a kernel is gathered layer by layer, after
  # the cast to the compute dtype.
  'gathered_embed': (),
  # For the lookup the table is resharded from rows to width: each device looks
  # up all tokens, for its slice of the width. No device holds the whole table.
  'lookup_vocab': (),
  'lookup_width': ('tensor', 'fsdp'),
  'lookup_prompts': ('data',),
  # The step between lookup_width and width, see transformer.Embedder.
  'embed_to_residual_width': ('tensor',),
  # Activations.
  'prompts': ('data', 'fsdp'),
  'tokens': (),
  'width': (),
  # The input of a layer pair, which the backward pass saves. ('tensor',) here
  # saves memory per device and costs one more gather (sequence parallelism).
  'residual_tokens': (),
  # Logits are split over the vocabulary as the table is, so neither the table
  # nor its gradient is ever gathered.
  'logit_prompts': ('data',),
  'logit_vocab': ('tensor', 'fsdp'),
}

# Rules that decoding changes if weights are resident. A decode step reads every
# weight for few tokens, so weights are split over `tensor` alone and never
# gathered; `data` and `fsdp` split the prompts. The lookup uses the table where
# it rests: resharding it in every step would move all of it.
_RESIDENT_WEIGHTS: dict[str, tuple[str, ...]] = {
  'embed': (),
  'mlp_rows': ('tensor',),
  'vocab': ('tensor',),
  'lookup_vocab': ('tensor',),
  'lookup_width': (),
  'lookup_prompts': ('data', 'fsdp'),
  'embed_to_residual_width': (),
  'residual_tokens': (),
  'logit_prompts': ('data', 'fsdp'),
  'logit_vocab': ('tensor',),
}

# Rules of config.mesh.logical_axis_rules.
SETTINGS = dict.fromkeys(RULES, settings.tuple_of(AXES))
# Places of the weights while a model generates, see `decode_rules`.
WEIGHTS = ('resident', 'fsdp')

_KEY = 'config.mesh.logical_axis_rules'


@dataclasses.dataclass(frozen=True)
class ShardingLayout:
  """A mesh and its rules. Hashable, so it can be a static argument of jit.

  Attributes:
    mesh: the devices, with named axes.
    rules: sorted (logical name, mesh axes) pairs; see `make_layout`.
  """

  mesh: Mesh
  rules: tuple[tuple[str, tuple[str, ...]], ...]

  @property
  def platform(self) -> str:
    """Platform of the devices, such as 'tpu'."""
    return self.mesh.devices.flat[0].platform

  def spec(
    self, names: Sequence[str], shape: Sequence[int] | None = None
  ) -> PartitionSpec:
    """Returns the PartitionSpec of an array with these logical axes.

    Args:
      names: one logical name per dimension.
      shape: the array's shape. If given, it is checked that the mesh divides
        each dimension evenly.

    Raises:
      UserError: a mesh axis is used twice, or a split is uneven.
      ValueError: a name has no rule.
    """
    table = dict(self.rules)
    for name in names:
      if name not in table:
        raise ValueError(_no_rule(name, table))
    axes = [table[name] for name in names]
    _check_axis_reuse(names, axes)
    if shape is not None:
      self._check_even(names, axes, shape)
    # The form in which jit returns specs, so that equal specs compare equal: a
    # single axis is not in a tuple, and there are no None at the end.
    entries = [a[0] if len(a) == 1 else (a or None) for a in axes]
    while entries and entries[-1] is None:
      entries.pop()
    return PartitionSpec(*entries)

  def sharding(
    self, names: Sequence[str], shape: Sequence[int] | None = None
  ) -> NamedSharding:
    """Returns `spec(names, shape)` on this layout's mesh."""
    return NamedSharding(self.mesh, self.spec(names, shape))

  def constrain(self, x: jax.Array, names: Sequence[str]) -> jax.Array:
    """Constrains the sharding of `x` inside jit; a no-op on one device.

    Args:
      x: any array.
      names: one logical name per dimension.

    Raises:
      ValueError: the number of names is not the rank, or a name has no rule.
    """
    if x.ndim != len(names):
      raise ValueError(
        f'{len(names)} logical axes {tuple(names)} for an array of shape '
        f'{x.shape}; give one name per dimension'
      )
    if self.mesh.size == 1:
      return x
    return jax.lax.with_sharding_constraint(x, self.sharding(names, x.shape))

  def num_shards(self, name: str) -> int:
    """Returns into how many shards the dimension `name` is split."""
    return self._num_devices(dict(self.rules)[name])

  def _num_devices(self, axes):
    return math.prod(self.mesh.shape[axis] for axis in axes)

  def _check_even(self, names, axes, shape):
    for name, used, size in zip(names, axes, shape, strict=True):
      shards = self._num_devices(used)
      if size % shards:
        sizes = ' x '.join(f'{a}={self.mesh.shape[a]}' for a in used)
        keys = ' or '.join(f'config.mesh.{axis}' for axis in used)
        raise UserError(
          f'dimension {name} has size {size}, which the {shards} devices of '
          f'{sizes} do not divide; change {keys} or {_KEY}.{name}'
        )


def make_layout(mesh: Mesh, rules: Rules) -> ShardingLayout:
  """Makes a layout after checking the rules against the mesh.

  Args:
    mesh: the devices.
    rules: logical name -> mesh axes, in any order.

  Raises:
    UserError: a rule names an unknown mesh axis, or one axis twice.
  """
  table = []
  for name, axes in rules.items():
    axes = tuple(axes)
    for axis in axes:
      if axis not in mesh.shape:
        raise UserError(
          f'{_KEY}.{name} contains {axis!r}, which is not an axis of the mesh; '
          f'use some of {", ".join(mesh.shape)}'
        )
    if len(set(axes)) < len(axes):
      raise UserError(
        f'{_KEY}.{name} is {axes}; use each mesh axis at most once'
      )
    table.append((name, axes))
  # Sorted, so that equal rules in another order make an equal layout.
  return ShardingLayout(mesh, tuple(sorted(table)))


def decode_rules(rules: Rules, weights: str) -> Rules:
  """Returns the rules for decoding.

  Args:
    rules: the rules for training.
    weights: 'resident': weights are split over `tensor` alone, which is fast.
      'fsdp': weights rest as in training and are gathered in every step; for
      models that do not fit otherwise.

  Raises:
    UserError: `weights` is neither.
  """
  if weights not in ('resident', 'fsdp'):
    raise UserError(
      f'config.sampling.weights is {weights!r}; set it to resident or fsdp'
    )
  return {**rules, **_RESIDENT_WEIGHTS} if weights == 'resident' else rules


def _no_rule(name, table):
  close = difflib.get_close_matches(name, table, 1)
  hint = f'; did you mean {close[0]!r}?' if close else ''
  return f'logical axis {name!r} has no rule in {_KEY}{hint}'


def _check_axis_reuse(names, axes):
  """Raises UserError if one mesh axis would split two dimensions."""
  user_of = {}
  for name, used in zip(names, axes, strict=True):
    for axis in used:
      if axis in user_of:
        raise UserError(
          f'mesh axis {axis!r} would split two dimensions of one array, '
          f'{user_of[axis]} and {name}; change {_KEY}.{user_of[axis]} or '
          f'{_KEY}.{name}'
        )
      user_of[axis] = name
