"""Turn a pretrained softmax Transformer into a linear one."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

from torch import Tensor, nn

from flatten_transformer.layers import create_attention
from flatten_transformer.linearize.forms import converted_class, form_of, softmax_attentions, unknown_attentions
from flatten_transformer.linearize.hugging_face_forms import use_mixers
from flatten_transformer.linearize.keep import Keep, choose
from flatten_transformer.linearize.mixer import LinearMixer
from flatten_transformer.linearize.timm_forms import are_shifted, widen_windows
from flatten_transformer.linearize.tokens import SeenGrid, Tokens, patch_embedding, tokens_of
from flatten_transformer.linearize.torch_forms import without_nested_tensors

Model = TypeVar("Model", bound=nn.Module)
Windows = Literal["map", "own"]


def linearize(
    model: Model,
    attention: str = "focused",
    *,
    keep: Keep = (),
    images: Tensor | None = None,
    attention_args: Mapping[str, Any] | None = None,
    center_keys: bool = False,
    convolve_queries_keys: bool = False,
    local_window: int | None = None,
    windows: Windows = "map",
    grid_size: Sequence[int] | None = None,
    num_prefix_tokens: int | None = None,
) -> Model:
    """Return a copy of a softmax Transformer whose attentions are linear, with all of its weights.

    It finds the attentions of timm's ViT, DeiT, DINO, EVA, DINOv3, Swin and PVTv2, of torchvision's ViT and of
    ``nn.TransformerEncoder``, of transformers' vision models, and those registered by :func:`linear_form_of`. The copy gives
    other outputs than the model until it is distilled from it (``flatten linearize``); what is new in it starts at nothing.

    Args:
        model: The softmax model, the teacher; it stays as it is.
        attention: Linear attention: one of :func:`flatten_transformer.layers.list_attentions`.
        keep: Blocks that stay softmax: their indices; or how many, those with the largest errors on ``images``; or
            ``"auto"``, a quarter of them, rounded up.
        images: Inputs of the model, ``[B, C, height, width]``, where ``keep`` is a number or ``"auto"``.
        attention_args: Options of the attention, such as ``{"kernel_size": 3}``.
        center_keys: Subtract the mean key, to which softmax attention is blind; for features with signs.
        convolve_queries_keys: Add depthwise convolutions of queries and keys, at zero (T⁵, arXiv 2605.02772).
        local_window: Side of a softmax window beside the linear attention, its gate closed at first; odd; None: none.
        windows: Swin's windows: the whole ``"map"``, unshifted, or its ``"own"``.
        grid_size: The grid of the tokens, where the model does not say it; one number for a sequence.
        num_prefix_tokens: Class and register tokens before the grid, where the model does not say it.

    Returns:
        The student: the class of the model, in its mode, on its device and in its dtype.

    Raises:
        ValueError: If the model has no softmax attention that is known, one of its attentions has no linear form, its grid is
            not known, or an option is out of range.

    Warns:
        UserWarning: If something of the model has no linear counterpart and is left out, such as Swin's relative position bias,
            or another attention, of unknown class, stays as it is.

    Example:
        >>> import timm, torch
        >>> teacher = timm.create_model("vit_tiny_patch16_224", depth=4, num_classes=10)
        >>> student = linearize(teacher, keep=[3])
        >>> [type(block.attn).__name__ for block in student.blocks]
        ['LinearAttention', 'LinearAttention', 'LinearAttention', 'Attention']
        >>> student(torch.randn(1, 3, 224, 224)).shape
        torch.Size([1, 10])
    """
    if windows not in ("map", "own"):
        raise ValueError(f'windows must be "map" or "own", got {windows!r}')
    for option, value in (("center_keys", center_keys), ("convolve_queries_keys", convolve_queries_keys)):
        if not isinstance(value, bool):
            raise ValueError(f"{option} must be true or false, got {value!r}")
    if num_prefix_tokens is not None and (isinstance(num_prefix_tokens, bool) or not isinstance(num_prefix_tokens, int)):
        raise ValueError(f"num_prefix_tokens must be a whole number, got {num_prefix_tokens!r}")
    check_attention_args(attention_args)
    plan = Plan(
        attention,
        {} if attention_args is None else attention_args,
        {"center_keys": center_keys, "convolve_queries_keys": convolve_queries_keys, "local_window": local_window},
        windows,
        grid_size,
        num_prefix_tokens,
    )
    names = softmax_attentions(model)
    kept = choose(keep, model, names, lambda: convert(copy.deepcopy(model), names, plan), images)
    student = copy.deepcopy(model)
    linear = [name for name in names if name not in kept]
    for sentence in _losses(student, linear, windows):
        warnings.warn(f"the linear {type(model).__name__} loses {sentence}", stacklevel=2)
    if others := unknown_attentions(model, names):
        cure = f"register a linear form, @linear_form_of({others[0].rpartition('.')[2]})"
        warnings.warn(f"{', '.join(others)} of {type(model).__name__} may be softmax attention and stays: {cure}", stacklevel=2)
    return convert(student, linear, plan)


def check_attention_args(options: object) -> None:
    """Raise ValueError unless these are options by name that a host does not decide."""
    if not isinstance(options, Mapping | None):
        raise ValueError(f'attention_args must hold options by name, such as {{"kernel_size": 3}}, got {options!r}')
    taken = [name for name in ("projections", "num_prefix_tokens", "device", "dtype") if name in (options or {})]
    if taken:
        raise ValueError(f"attention_args must not hold {' and '.join(taken)}: the model says it; leave it out")


class Plan(NamedTuple):
    """How attentions are converted: the options of :func:`linearize`."""

    attention: str
    attention_args: Mapping[str, Any]
    mixer_args: Mapping[str, Any]
    windows: Windows
    grid_size: Sequence[int] | None
    num_prefix_tokens: int | None


def _losses(model: nn.Module, names: Sequence[str], windows: Windows) -> list[str]:
    """Return what has no linear counterpart."""
    losses: dict[str, None] = {}
    for name in names:
        host = model.get_submodule(name)
        form = form_of(host)
        assert form is not None
        if form.loses:
            losses[form.loses] = None
        if form.attention_dropout(host):
            losses["the dropout of attention weights"] = None
    if windows == "own" and are_shifted(model, names):
        losses["the mask of its shifted windows, so that tokens of opposite ends meet there"] = None
    return list(losses)


def convert(model: Model, names: Sequence[str], plan: Plan) -> Model:
    """Make these attentions of a model linear, in place; return it."""
    if plan.windows == "map":
        widen_windows(model, names)
    seen: SeenGrid | None = None
    for name in names:
        host: Any = model.get_submodule(name)
        form: Any = form_of(host)
        if plan.mixer_args["local_window"] and not form.on_one_grid:
            raise ValueError(f"{name} attends to a reduced map, where no token has neighbours: leave local_window out")
        grid = form.grid_size(host)
        if grid is None and seen is None:
            tokens = tokens_of(model, plan.grid_size, plan.num_prefix_tokens)
            seen = _watch(model, tokens)
        place = Tokens(grid, 0) if grid is not None else tokens
        mixer = _mixer(form.heads(host), place, next(host.parameters()), plan, None if grid is not None else seen)
        if issubclass(form, nn.Module):
            kind: Any = type(host)
            host.__class__ = converted_class(form, kind)
        for part in form.without:
            delattr(host, part)
        form.adopt(host, mixer.train(host.training))
    without_nested_tensors(model)
    use_mixers(model)
    return model


def _watch(model: nn.Module, tokens: Tokens) -> SeenGrid:
    """Return the grid of the image that the model is looking at, from now on."""
    seen, patches = SeenGrid(tokens.grid_size), patch_embedding(model)
    if patches is not None and len(tokens.grid_size) == 2:
        patches.register_forward_hook(seen)
    return seen


def _mixer(heads: tuple[int, int], tokens: Tokens, like: Tensor, plan: Plan, seen: SeenGrid | None) -> LinearMixer:
    count, channels = heads
    place: Any = {"device": like.device, "dtype": like.dtype}
    fixed = {"projections": False, "num_prefix_tokens": tokens.num_prefix_tokens, **place}
    try:
        attention = create_attention(plan.attention, count * channels, count, tokens.grid_size, **plan.attention_args, **fixed)
    except TypeError as error:  # a word where a number belongs
        raise ValueError(
            f"attention_args {dict(plan.attention_args)} do not fit {plan.attention} ({error}): correct them"
        ) from error
    return LinearMixer(attention, seen, **plan.mixer_args, **place)
