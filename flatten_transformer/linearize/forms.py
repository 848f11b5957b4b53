"""Linear forms of the softmax attentions of other libraries: the registry, for yours too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, ClassVar, TypeVar

from torch import nn

from flatten_transformer.layers import GridAttention
from flatten_transformer.linearize.mixer import LinearMixer
from flatten_transformer.models import FlattenVisionTransformer


class LinearForm:
    """Mixin, before the host's class: a softmax attention that keeps all of its parts but lets :attr:`mixer` attend.

    A converted attention changes its class to its form, and keeps its name, parameters, hooks and place in the model. Its
    ``forward`` gives the mixer heads ``[B, H, N, D]`` and gets the input of the output projection, ``[B, N, H·D]``.

    Attributes:
        mixer: What attends.
        without: Parts of the host that the form has no use for, and loses.
        loses: What the host does that has no linear counterpart, said in a warning; empty: nothing.
        on_one_grid: Whether queries and keys are the same tokens.
    """

    mixer: LinearMixer
    without: ClassVar[tuple[str, ...]] = ()
    loses: ClassVar[str] = ""
    on_one_grid: ClassVar[bool] = True

    @classmethod
    def heads(cls, host: Any) -> tuple[int, int]:
        """Return the number of heads H and the channels D of each."""
        return host.num_heads, host.head_dim

    @classmethod
    def grid_size(cls, host: Any) -> tuple[int, ...] | None:
        """Return the grid that the host attends on; None: that of the model's tokens."""
        return None

    @classmethod
    def attention_dropout(cls, host: Any) -> float:
        """Return the probability at which the host drops attention weights, which linear attention does not have."""
        return float(getattr(getattr(host, "attn_drop", None), "p", 0.0))

    @classmethod
    def check(cls, host: Any) -> None:
        """Raise ValueError, in words without the host's name, if this one has no linear form."""

    def adopt(self, mixer: LinearMixer) -> None:
        """Take the mixer, which attends from now on."""
        self.mixer = mixer


Form = TypeVar("Form", bound=type[Any])
_FORMS: dict[type[nn.Module], type[LinearForm]] = {}
_FORMS_BY_LOOK: list[tuple[Callable[[nn.Module], bool], type[LinearForm]]] = []  # of hosts that keep their class


def linear_form_of(host: type[nn.Module]) -> Callable[[Form], Form]:
    """Register the linear form of a softmax attention, so that :func:`flatten_transformer.linearize` finds it.

    Args:
        host: Class of the softmax attention; its subclasses are found too, unless they have a ``forward`` of their own.

    Returns:
        A decorator for a class ``(LinearForm, host)`` with a ``forward`` that calls ``self.mixer``.

    Raises:
        ValueError: If the decorated class is not a subclass of both.

    Example:
        >>> import torch
        >>> class Tiny(nn.Module):
        ...     num_heads, head_dim = 2, 4
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.qkv = nn.Linear(8, 24)
        ...     def forward(self, x):
        ...         q, k, v = self.qkv(x).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        ...         return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        >>> @linear_form_of(Tiny)
        ... class LinearTiny(LinearForm, Tiny):
        ...     def forward(self, x):
        ...         return self.mixer(*self.qkv(x).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4))
        >>> from flatten_transformer.linearize import linearize
        >>> student = linearize(nn.Sequential(Tiny()), grid_size=(3, 5), num_prefix_tokens=0)
        >>> student(torch.randn(1, 15, 8)).shape
        torch.Size([1, 15, 8])
    """

    def register(form: Form) -> Form:
        if not (isinstance(form, type) and issubclass(form, LinearForm) and issubclass(form, host)):
            raise ValueError(f"write class {getattr(form, '__name__', 'Mine')}(LinearForm, {host.__name__})")
        _FORMS[host] = form
        return form

    return register


def form_of(module: nn.Module) -> type[LinearForm] | None:
    """Return the linear form of a softmax attention; None for everything else, linear attentions among it.

    Args:
        module: Any module.

    Example:
        >>> from timm.layers import Attention
        >>> form_of(Attention(32, 2)).__name__
        'LinearAttention'
    """
    if is_linear(module):
        return None
    for kind in type(module).__mro__:
        if kind in _FORMS:
            return _FORMS[kind]
        if "forward" in vars(kind):
            break
    return next((form for looks_so, form in _FORMS_BY_LOOK if looks_so(module)), None)


@cache
def converted_class(form: Any, host: Any) -> Any:
    """Return the class of a converted attention: its form, with what a subclass of the form's host adds.

    Args:
        form: The linear form of ``host``.
        host: Class of the softmax attention.

    Example:
        >>> from timm.layers import Attention
        >>> class Mine(Attention): pass
        >>> form = form_of(Attention(32, 2))
        >>> converted_class(form, Attention).__name__, converted_class(form, Mine).__name__
        ('LinearAttention', 'LinearMine')
    """
    if issubclass(form, host):
        return form
    return type(f"Linear{host.__name__}", (form, host), {"__module__": host.__module__, "__reduce_ex__": _reduce})


def _reduce(attention: Any, protocol: int) -> tuple[Any, ...]:
    """Pickle an attention whose class stands in no module."""
    return _blank, type(attention).__bases__, attention.__dict__


def _blank(form: Any, host: Any) -> Any:
    kind = converted_class(form, host)
    return kind.__new__(kind)


def linear_form_by_look(looks_so: Callable[[nn.Module], bool]) -> Callable[[Form], Form]:
    """Register a form by what modules look like, for libraries that call a function to attend: they keep their classes.

    Args:
        looks_so: Whether a module is such an attention.

    Returns:
        A decorator for a subclass of :class:`LinearForm`.
    """

    def register(form: Form) -> Form:
        _FORMS_BY_LOOK.append((looks_so, form))
        return form

    return register


def is_linear(module: nn.Module) -> bool:
    """Return whether a module is a converted attention."""
    return isinstance(getattr(module, "mixer", None), LinearMixer)


def softmax_attentions(model: nn.Module) -> list[str]:
    """Return the names of a model's softmax attentions that have a linear form, in order; ``keep`` counts blocks by them.

    Args:
        model: The model.

    Raises:
        ValueError: If it has none, or one that linear attention cannot replace.

    Example:
        >>> import timm
        >>> softmax_attentions(timm.create_model("vit_tiny_patch16_224", depth=2))
        ['blocks.0.attn', 'blocks.1.attn']
    """
    if type(model).__module__.startswith("flatten_transformer.models.") and not isinstance(model, FlattenVisionTransformer):
        raise ValueError(
            f'{type(model).__name__} has linear blocks of its own: build it with attn_types="L" and begin with these weights, '
            'pretrained_cfg_overlay={"file": …}'
        )
    found = {name: form for name, module in model.named_modules() if (form := form_of(module)) is not None}
    if any(not issubclass(form, nn.Module) for form in found.values()):  # transformers: torch's attention pools there
        found = {name: form for name, form in found.items() if not issubclass(form, nn.Module)}
    for name, form in found.items():
        host = model.get_submodule(name)
        try:
            form.check(host)
        except ValueError as error:
            raise ValueError(f"{name}, {_class(host)}, has no linear form: {error}") from None
    if not found:
        raise ValueError(f"{type(model).__name__} has no softmax attention that is known{_others(model)}")
    return list(found)


def _others(model: nn.Module) -> str:
    """Return what may be an attention, and the cure."""
    if any(map(_is_ours, model.modules())):
        return ": its attentions are linear already"
    kinds = unknown_attentions(model, ())
    if not kinds:
        return ": give a Transformer, such as timm's vit_*, deit_*, eva02_* or swin_*"
    return f", but {', '.join(kinds)}: register its linear form, @linear_form_of({kinds[0].rpartition('.')[2]})"


def unknown_attentions(model: nn.Module, known: Sequence[str]) -> list[str]:
    """Return the classes of what seems to be softmax attention, by its name, and has no linear form; pooling is not meant.

    Args:
        model: The model.
        known: Names of its attentions that are turned linear; what lies around or within them is left out.

    Example:
        >>> class StrangeAttention(nn.Identity): pass
        >>> [kind.rpartition(".")[2] for kind in unknown_attentions(nn.Sequential(StrangeAttention()), [])]
        ['StrangeAttention']
    """
    kinds: dict[str, None] = {}
    for name, part in model.named_modules():
        word = type(part).__name__.lower()
        near = any(f"{one}.".startswith(f"{other}.") for host in known for one, other in ((name, host), (host, name)))
        if ("attn" in word or "attention" in word) and "pool" not in word and not (near or _is_ours(part) or form_of(part)):
            kinds[_class(part)] = None
    return list(kinds)


def _is_ours(part: nn.Module) -> bool:
    return is_linear(part) or isinstance(part, GridAttention)


def _class(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"
