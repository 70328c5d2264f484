"""What a model family declares; nothing outside ``models`` asks for more, or knows a family by name.

A family is one file: a dataclass of its fields, a network, a table of its leaves, and one :class:`Family` that is
registered. Everything else — training, evaluation, sharding, counts — is written against this.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax

from wsm_jax.config import MODEL_FIELDS, ModelFields
from wsm_jax.core.trees import named_leaves
from wsm_jax.errors import UsageError
from wsm_jax.models.public import Public

Params = Any
Init = Callable[[jax.Array], Params]
Metrics = dict[str, jax.Array]
LAYER = "layer"


class Forward(Protocol):
    """(params, tokens) -> last hidden states [B, T, D] and output projection [D, V], both of the compute dtype.

    Families that can are also given, by name, ``positions`` (int [B, T]), ``segments`` (int [B, T]: who sees whom) and
    ``cache`` (keys and values of the tokens before).
    """

    def __call__(self, params: Params, tokens: jax.Array, /) -> tuple[jax.Array, jax.Array]: ...


@dataclasses.dataclass(frozen=True)
class Leaf:
    """What is to be known of one leaf of the parameters.

    Attributes:
      axes: name of each dimension, for the sharding rules: ``layer, embed, heads, kv, ff, expert, vocab``, ...; a first
        one called ``layer`` says that the leaf holds all layers, one after the other.
      decayed: whether weight decay shrinks it; as a rule matrices, not norms and biases.
      muon: (reduction axes, output axes) of the matrices that Muon orthogonalises; None where it is not to.
      has_gradient: whether the loss has a slope along it; where not, the family's ``after_update`` moves it.
    """

    axes: tuple[str, ...]
    decayed: bool = False
    muon: tuple[int | tuple[int, ...], int | tuple[int, ...]] | None = None
    has_gradient: bool = True

    @property
    def stacked(self) -> bool:
        """Whether its first dimension counts layers."""
        return self.axes[:1] == (LAYER,)


Leaves = Mapping[str, Leaf]


def _as_it_is(config: Any, params: Params, found: Metrics) -> tuple[Params, Metrics]:
    del config
    return params, found


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    """An architecture: its fields, and functions of them. ``config`` below is an instance of ``fields``.

    Attributes:
      fields: dataclass of the configuration; the default of its ``family`` is the name. Its ``NUMERICS`` and ``UNSEEN``
        say in which fields a branch may differ and which of them shapes do not tell.
      network: config -> (init, forward): PRNG key -> params, a nested dict of float32 arrays; and :class:`Forward`.
      leaves: config -> {path: Leaf} of every leaf of the parameters.
      flops_per_token: (config, parameters) -> training FLOPs a token, for MFU.
      check: raises UsageError for fields that cannot make a network; those that all families share are checked.
      portable: config -> the same function as this machine can compute it, for evaluations.
      picked: (config, rows) -> config with the family's own open fields decided for this machine and for batches of so
        many sequences on a device.
      active_parameters: (config, parameters) -> those that one token passes through.
      loss: (model, params, inputs [B, T], targets [B, T]) -> scalar that training descends, and scalars to record with
        it, see :func:`wsm_jax.models.model.training_loss`; on packed rows it is given weights [B, T] after these, and
        positions and segments by name. None: the mean cross-entropy alone.
      after_update: (config, params, what ``loss`` recorded) -> (params, scalars to record), once an update after the
        optimizer's: for what moves by another rule than a gradient, whose leaves have none. What ``loss`` gives for it
        alone may be no scalar, and is not passed on. It comes after the optimizer, so no moment, clipping, norm or
        decay ever sees it; on disk such a leaf is a parameter as any other.
      stops: (config, scalars recorded of an update) -> why a run must not go on after it; "" where it may.
      presets: name -> function that makes a config.
      public: the architectures whose published models it computes.
    """

    fields: type[ModelFields]
    network: Callable[[Any], tuple[Init, Forward]]
    leaves: Callable[[Any], Leaves]
    flops_per_token: Callable[[Any, int], float]
    check: Callable[[Any], None] = lambda config: None
    portable: Callable[[Any], Any] = lambda config: config
    picked: Callable[[Any, int], Any] = lambda config, rows: config
    active_parameters: Callable[[Any, int], int] = lambda config, parameters: parameters
    loss: Callable[..., tuple[jax.Array, Metrics]] | None = None
    after_update: Callable[[Any, Params, Metrics], tuple[Params, Metrics]] = _as_it_is
    stops: Callable[[Any, Mapping[str, float]], str] = lambda config, metrics: ""
    presets: Mapping[str, Callable[[], Any]] = dataclasses.field(default_factory=dict)
    public: Sequence[Public] = ()

    @property
    def name(self) -> str:
        """As ``model.family`` has it."""
        return self.fields().family


_FAMILIES: dict[str, Family] = {}


def register(family: Family) -> Family:
    """Makes ``family`` known by its name, and its fields to the configuration.

    Raises:
      UsageError: another one has the name.
    """
    if family.name in _FAMILIES:
        raise UsageError(f"there is a model family {family.name!r} already")
    _FAMILIES[family.name] = family
    MODEL_FIELDS[family.name] = family.fields
    return family


def families() -> dict[str, Family]:
    """Name -> family."""
    return dict(_FAMILIES)


def of(config: ModelFields) -> Family:
    """The family of ``config``.

    Raises:
      UsageError: nobody registered it, or the fields are not its own.
    """
    family = _FAMILIES.get(config.family)
    if family is None:
        raise UsageError(f"unknown model.family {config.family!r}; known: {', '.join(_FAMILIES)}")
    if not isinstance(config, family.fields):
        raise UsageError(f"the model's fields are a {type(config).__name__}, not those of family {config.family!r}")
    return family


def check_leaves(leaves: Leaves, params: Params) -> None:
    """Raises UsageError where ``leaves`` does not tell the leaves of ``params`` (arrays or shapes) and their ranks."""
    found = named_leaves(params)
    for path in sorted({*found, *leaves}):
        if path not in leaves:
            raise UsageError(f"the model family does not declare its leaf {path}")
        if path not in found:
            raise UsageError(f"the model family declares a leaf {path} that the parameters lack")
        if len(leaves[path].axes) != len(found[path].shape):
            raise UsageError(f"leaf {path} is of shape {found[path].shape}, its declared axes are {leaves[path].axes}")


def biases(leaves: Leaves) -> Leaves:
    """The biases that belong to every norm (``…/scale``) and matrix (``…/kernel``) of ``leaves``: its last axis."""
    found = {}
    for path, leaf in leaves.items():
        name, _, last = path.rpartition("/")
        if last in ("scale", "kernel"):
            found[f"{name}/bias"] = Leaf((*(axis for axis in leaf.axes[:1] if leaf.stacked), leaf.axes[-1]))
    return found


def dense_flops_per_token(parameters: int, layers: int, d_model: int, context: int) -> float:
    """Training FLOPs a token of a dense transformer: 6 N + 12 layers d_model context (Chowdhery et al. 2022, app. B).

    Args:
      parameters: N, without the embedding look-ups but with the output projection.
      layers: blocks with attention.
      d_model: heads times their width.
      context: tokens that attention sees.
    """
    return 6.0 * parameters + 12.0 * layers * d_model * context
