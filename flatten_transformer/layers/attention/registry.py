"""Registry of attentions: those of this library, and yours."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

from flatten_transformer.layers.attention.base import GridAttention, GridOptions
from flatten_transformer.utils.suggest import did_you_mean

Class = TypeVar("Class", bound=type[GridAttention])


class _Entry(NamedTuple):
    attention: type[GridAttention]
    defaults: Mapping[str, Any]


_ATTENTIONS: dict[str, _Entry] = {}


def register_attention(name: str, **defaults: Any) -> Callable[[Class], Class]:
    """Register a subclass of GridAttention under a name, for :func:`create_attention` and every model.

    Args:
        name: The name; one class may have several, with different defaults.
        defaults: Defaults of the class's options that differ under this name.

    Returns:
        A decorator that returns the class unchanged.

    Raises:
        ValueError: If the name is taken by another class, or the class does not take the options of every attention, has a
            default of no option, or no ``mix``.

    Example:
        >>> @register_attention("average", rank_restoration=True)
        ... class AverageAttention(GridAttention):
        ...     def mix(self, q, k, v, layout):
        ...         return v.mean(dim=2, keepdim=True).expand_as(q)
        >>> create_attention("average", dim=32, num_heads=2, grid_size=(5, 7))(torch.randn(3, 35, 32)).shape
        torch.Size([3, 35, 32])
        >>> unregister_attention("average")
    """
    if not isinstance(name, str):
        raise ValueError('register_attention takes a name: write @register_attention("mine") above the class')

    def register(attention: Class) -> Class:
        if not (isinstance(attention, type) and issubclass(attention, GridAttention)):
            raise ValueError(f"{attention!r} is no attention over a grid: write class Mine(GridAttention)")
        taken = _ATTENTIONS.get(name)
        # the same class again: a notebook cell was rerun
        if taken is not None and _identity(taken.attention) != _identity(attention):
            raise ValueError(f"{name!r} is {taken.attention.__name__} already: choose another name")
        missing = GridOptions.__annotations__.keys() - _options(attention)
        if missing:
            raise ValueError(
                f"{attention.__name__} does not take {', '.join(sorted(missing))}, options of every attention: write "
                "def __init__(self, dim, num_heads, grid_size, *, mine=…, **options) and pass **options to super().__init__"
            )
        unknown = (defaults.keys() | attention.defaults.keys()) - _options(attention)
        if unknown:
            raise ValueError(f"{attention.__name__} has no option {', '.join(sorted(unknown))} to set a default of")
        _check_mix(attention)
        _ATTENTIONS[name] = _Entry(attention, defaults)
        return attention

    return register


def unregister_attention(name: str) -> None:
    """Remove a name.

    Raises:
        ValueError: If it is not registered.
    """
    _entry(name)
    del _ATTENTIONS[name]


def list_attentions() -> list[str]:
    """Return the names of all attentions, in the order of their registration.

    Example:
        >>> list_attentions()[:5]
        ['focused', 'relu', 'enhanced', 'elu', 'hydra']
    """
    return list(_ATTENTIONS)


def create_attention(name: str, dim: int, num_heads: int, grid_size: Sequence[int], **options: Any) -> GridAttention:
    """Return an attention layer by name, called as ``layer(x, grid_size, attn_mask=…)``.

    Args:
        name: One of :func:`list_attentions`.
        dim: Channels C of ``x``.
        num_heads: Heads; divides ``dim``.
        grid_size: The grid that encodings are learned on; others may be passed at each call.
        options: Options of every attention (:class:`GridAttention`), such as ``rank_restoration`` or
            ``projections=False``, and of this one, such as ``focusing_factor`` or ``num_agents``.

    Raises:
        ValueError: If there is no such attention, or it has no such option; the message lists the known ones.

    Example:
        >>> create_attention("hydra", dim=192, num_heads=3, grid_size=(14, 14))(torch.randn(2, 196, 192)).shape
        torch.Size([2, 196, 192])
    """
    check_options(name, options)
    attention, defaults = _entry(name)
    return attention(dim, num_heads, grid_size, **{**defaults, **options})


create_attention_core = partial(create_attention, projections=False)  # an alias from earlier versions


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError unless the attention ``name`` has all ``options``, and each of them has an effect."""
    attention, defaults = _entry(name)
    known = _options(attention)
    for option in options:
        if option not in known:
            raise ValueError(f"attention {name!r} has no option {option!r}: {did_you_mean(option, sorted(known))}")
    convolves = {**attention.defaults, **defaults, **options}["rank_restoration"]
    if "kernel_size" in options and not convolves:
        raise ValueError(
            f"attention {name!r} has no convolution whose kernel_size could be {options['kernel_size']}: leave it out, or "
            "pass rank_restoration=True too"
        )


def _check_mix(attention: type[GridAttention]) -> None:
    """Raise ValueError unless a class says how it attends."""
    if any(getattr(attention, method) is not getattr(GridAttention, method) for method in ("attend", "compute", "forward")):
        return
    cure = "write def mix(self, q, k, v, layout), which returns [batch, heads, queries, channels]"
    if attention.mix is GridAttention.mix:
        raise ValueError(f"{attention.__name__} does not say how it attends: {cure}")
    try:
        inspect.signature(attention.mix).bind("self", "q", "k", "v", "layout")
    except TypeError:
        raise ValueError(f"{attention.__name__} has mix{inspect.signature(attention.mix)}: {cure}") from None


def _entry(name: str) -> _Entry:
    if not isinstance(name, str):
        names = [repr(known) for known, entry in _ATTENTIONS.items() if entry.attention is name]
        cure = (
            f"pass {' or '.join(names)}" if names else 'write @register_attention("mine") above a class of yours and pass "mine"'
        )
        raise ValueError(f"an attention is chosen by its name, got {name!r}: {cure}")
    if name not in _ATTENTIONS:
        raise ValueError(f"there is no attention {name!r}: {did_you_mean(name, _ATTENTIONS)}")
    return _ATTENTIONS[name]


def _options(attention: type[GridAttention]) -> set[str]:
    return set(inspect.signature(attention).parameters) - {"dim", "num_heads", "grid_size"}


def _identity(attention: type) -> tuple[str, str]:
    return attention.__module__, attention.__qualname__
