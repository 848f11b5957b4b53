"""Fused backends as PyTorch operators: one node for torch.compile, forward and backward, on any device."""

# B batch, H heads, N queries, M keys, D key channels, E value channels per head.

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, get_type_hints

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from flatten_transformer.ops import linear_attention
from flatten_transformer.ops.checks import Arguments, check_attention, check_convolution, check_option, check_options, shape_of
from flatten_transformer.ops.empty import is_empty
from flatten_transformer.ops.precision import sum_dtype
from flatten_transformer.ops.transforms import transformed

Attend = Callable[[Arguments, Tensor | None], Tensor]  # arguments, attn_mask


class Saved(NamedTuple):
    """Tensors that a forward kernel saves for the backward kernel besides the arguments, in the dtype of the sums."""

    context: Tensor  # [B, H, D, E]
    key_sum: Tensor  # [B, H, D]
    norms: Tensor  # [B, 1 or H (norms of each head), numbers of a token, N + M]


_TYPES = {Tensor: "Tensor", Tensor | None: "Tensor?", Sequence[int]: "SymInt[]", float: "float", bool: "bool"}
_DECLARED = {name: f"{_TYPES[kind]} {name}" for name, kind in get_type_hints(Arguments).items()}
TENSORS = [name for name, declared in _DECLARED.items() if declared.startswith("Tensor")]
SETTINGS = [name for name in _DECLARED if name not in TENSORS]
# A key's weight has no gradient, and its encoding has the key's.
GRADIENTS = [name for name in TENSORS if name not in ("key_weights", "key_encoding")]
_TOKENS = ("query", "key", "value")
_STRIDED = (*_TOKENS, "key_encoding")  # kernels take their strides, all but the last
_OF_BACKWARD = ["grad", *TENSORS, *Saved._fields, *SETTINGS]


def _schema(arguments: Sequence[str], results: int) -> str:
    """Return the schema of an operator that takes arguments of these names and returns tensors."""
    declared = ", ".join(_DECLARED.get(name, f"Tensor {name}") for name in arguments)
    return f"({declared}) -> ({', '.join(['Tensor'] * results)})"


_Record = TypeVar("_Record", Arguments, Saved)


def _of_backward(record: type[_Record], inputs: Sequence[Any]) -> _Record:
    """Return a record from the inputs of a backward operator."""
    given = dict(zip(_OF_BACKWARD, inputs, strict=True))
    return record(**{name: given[name] for name in record._fields})


def define_operator(
    name: str,
    forward: Callable[[Arguments, Saved], Tensor],
    backward: Callable[[Tensor, Arguments, Saved], tuple[Tensor, ...]],
    norm_numbers: int,
    *,
    widens: bool = False,
) -> Attend:
    """Make a backend of two kernels: registers ``flatten_transformer::<name>`` and ``…_backward`` with PyTorch.

    Kernels get tensors whose last axis is contiguous, masked keys and values zero, and planes in place of grids of one axis.

    Args:
        name: Operator name. A change of the schema or of the saved tensors needs a new one: PyTorch keeps compiled graphs on
            disk by the operators' names, and an older graph would call the newer backward.
        forward: Returns the output ``[B, H, N, E]`` (heads side by side in memory: ``[B, N, H, E]``, transposed) and fills
            the saved tensors, whose meaning is its own.
        backward: Takes the gradient of the output (laid out as the output), the arguments and the saved tensors; returns
            the gradients of query, key and value (laid out as the output), temperature ``[H, D]``, conv_weight and
            conv_bias, empty tensors for missing options.
        norm_numbers: Numbers saved for each token.
        widens: Whether the kernels take half precision; otherwise they get every tensor in the dtype of the sums.

    Returns:
        The backend, as :func:`flatten_transformer.ops.dispatch.choose_backend` returns it.
    """

    def run_forward(*inputs: Any) -> tuple[Tensor, ...]:
        a = Arguments(*inputs)
        _check(a)
        if is_empty(a.query, a.key, a.value):
            return tuple(x.zero_() for x in fake_forward(*inputs))
        saved = _new_saved(a, norm_numbers)
        return (forward(_laid_out(a), saved), *saved)

    def run_backward(grad: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
        a, saved = _of_backward(Arguments, (grad, *inputs)), _of_backward(Saved, (grad, *inputs))
        _check(a)
        _check_saved(grad, a, saved, norm_numbers)
        if is_empty(a.query, a.key, a.value):
            return tuple(x.zero_() for x in new_gradients(a))
        return backward(_side_by_side(grad), _laid_out(a), Saved(*(x.contiguous() for x in saved)))

    def fake_forward(*inputs: Any) -> tuple[Tensor, ...]:
        a = Arguments(*inputs)
        return (heads_side_by_side(a.query, a.value.shape[3]), *_new_saved(a, norm_numbers))

    operator, gradient = (
        torch.library.custom_op(f"flatten_transformer::{name}{end}", run, mutates_args=(), schema=_schema(arguments, results))
        for end, run, arguments, results in (
            ("", run_forward, Arguments._fields, 1 + len(Saved._fields)),
            ("_backward", run_backward, _OF_BACKWARD, len(GRADIENTS)),
        )
    )
    operator.register_fake(fake_forward)
    gradient.register_fake(lambda *inputs: new_gradients(_of_backward(Arguments, inputs)))

    register_flop_formula(getattr(torch.ops.flatten_transformer, name))(_count_forward)
    register_flop_formula(getattr(torch.ops.flatten_transformer, f"{name}_backward"))(_count_backward)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        a, (_, *saved) = Arguments(*inputs), output
        ctx.save_for_backward(*(getattr(a, name) for name in TENSORS), *saved)
        ctx.settings = [getattr(a, name) for name in SETTINGS]
        ctx.set_materialize_grads(False)

    def differentiate(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * len(Arguments._fields)
        inputs = (grad, *ctx.saved_tensors, *ctx.settings)
        a = _of_backward(Arguments, inputs)
        if torch.is_grad_enabled() or transformed(*inputs):  # for a second derivative
            return _gradient_by_portable(grad, a, ctx.needs_input_grad)
        gradients = dict(zip(GRADIENTS, gradient(*inputs), strict=True))
        if a.key_encoding is not None:
            gradients["key_encoding"] = gradients["key"].sum(0)
        return tuple(None if x is None else gradients.get(name) for name, x in zip(Arguments._fields, a, strict=True))

    operator.register_autograd(differentiate, setup_context=setup_context)

    def attend(a: Arguments, attn_mask: Tensor | None) -> Tensor:
        out, *_ = operator(*_operands(a, attn_mask, None if widens else sum_dtype(a.query)))
        return out if widens else out.to(a.query.dtype)

    return attend


def _operands(a: Arguments, attn_mask: Tensor | None, dtype: torch.dtype | None) -> Sequence[Any]:
    """Return the operands of an operator: a share for each key, tensors in ``dtype``, one axis as a plane."""
    given: dict[str, Any] = a._asdict()
    if dtype is not None:  # a call that changes nothing still takes a microsecond
        given |= {name: x.to(dtype) for name in TENSORS if (x := given[name]) is not None and x.dtype != dtype}
    if len(a.grid_size) == 1:
        given |= {"conv_weight": given["conv_weight"].unsqueeze(2), "grid_size": (1, *a.grid_size)}
    given |= {"key_weights": key_weights(attn_mask, a.key), "focusing_factor": float(a.focusing_factor)}
    return list(given.values())


def _gradient_by_portable(grad: Tensor, a: Arguments, needed: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """Return the gradient of every argument, itself differentiable, or None where none is needed."""
    mask = None if a.key_weights is None else (a.key_weights > 0)[:, None, None]
    inputs: list[Tensor] = [x for x, need in zip(a, needed, strict=True) if need]  # type: ignore[misc]
    once_more = torch.is_grad_enabled()
    with torch.enable_grad():
        out = linear_attention.attend(a, mask)
        gradients = iter(torch.autograd.grad(out, inputs, grad, create_graph=once_more, materialize_grads=True))
    return tuple(next(gradients) if need else None for need in needed)


def _check(a: Arguments) -> None:
    """Raise ValueError unless the kernels can safely read these tensors: anybody may call an operator with anything."""
    check_attention(a.query, a.key, a.value)
    check_options(a)
    check_convolution(a.conv_weight, a.conv_bias, a.grid_size or None, a.query, a.value)
    if a.key_weights is not None and a.key_weights.shape != (a.key.shape[0], a.key.shape[2]):
        raise ValueError(f"key_weights must be [batch, keys] of key {shape_of(a.key)}, got {shape_of(a.key_weights)}")
    check_option("key_weights", a.key_weights, a.query)


def _check_saved(grad: Tensor, a: Arguments, saved: Saved, norm_numbers: int) -> None:
    """Raise ValueError unless gradient and saved tensors fit these arguments, as their forward pass returned them."""
    shapes, dtype = _saved_shapes(a, norm_numbers), sum_dtype(a.query)
    for name, tensor, expected, shape in (
        ("grad", grad, a.query.dtype, (*a.query.shape[:3], a.value.shape[3])),
        *((name, x, dtype, shape) for name, x, shape in zip(Saved._fields, saved, shapes, strict=True)),
    ):
        if tensor.shape != shape or tensor.dtype != expected or tensor.device != a.query.device:
            raise ValueError(
                f"{name} must be {list(shape)} of {expected} on {a.query.device}, as the forward pass returned it; "
                f"got {shape_of(tensor)} of {tensor.dtype} on {tensor.device}"
            )


def _saved_shapes(a: Arguments, norm_numbers: int) -> Sequence[tuple[int, ...]]:
    """Return the shapes of the saved tensors, in order."""
    batch, heads, queries, channels = a.query.shape
    keys, outputs = a.value.shape[2:]
    norms = (batch, 1 if a.joint else heads, norm_numbers, queries + keys)
    return (batch, heads, channels, outputs), (batch, heads, channels), norms


def _new_saved(a: Arguments, norm_numbers: int) -> Saved:
    """Return memory for a forward kernel to fill."""
    dtype = sum_dtype(a.query)
    return Saved(*(a.query.new_empty(shape, dtype=dtype) for shape in _saved_shapes(a, norm_numbers)))


def new_gradients(a: Arguments) -> tuple[Tensor, ...]:
    """Return memory for the gradients that a backward kernel returns; none for missing options."""
    tokens = (heads_side_by_side(x, x.shape[3]) for x in (a.query, a.key, a.value))
    options = (getattr(a, name) for name in GRADIENTS if name not in _TOKENS)
    return (*tokens, *(a.query.new_empty(0) if x is None else x.new_empty(x.shape) for x in options))


def heads_side_by_side(x: Tensor, channels: int) -> Tensor:
    """Return memory for ``[B, H, T, channels]``, T the tokens of ``x``, in its dtype, laid out as ``[B, T, H, channels]``."""
    batch, heads, tokens, _ = x.shape
    return x.new_empty(batch, tokens, heads, channels).transpose(1, 2)


def _laid_out(a: Arguments) -> Arguments:
    """Return the arguments in the kernels' layout; slices of a packed projection are read in place.

    This runs inside the operator, where strides are real: a compiler may predict others.
    """
    given: dict[str, Any] = {name: x for name in TENSORS if (x := getattr(a, name)) is not None}
    return a._replace(**{name: x.contiguous() for name, x in given.items() if not (name in _STRIDED and x.stride(-1) == 1)})


def _side_by_side(grad: Tensor) -> Tensor:
    """Return a gradient ``[B, H, N, E]`` with its heads side by side in memory, as it mostly is already."""
    return grad.transpose(1, 2).contiguous().transpose(1, 2)


def key_weights(attn_mask: Tensor | None, key: Tensor) -> Tensor | None:
    """Return the share of each key in the mean over a sample's keys, ``[B, M]``, or None where all are equal."""
    if attn_mask is None:
        return None
    kept = attn_mask.expand(key.shape[0], 1, 1, key.shape[2])[:, 0, 0].to(sum_dtype(key))
    return kept / kept.sum(dim=1, keepdim=True).clamp(min=1)


def _count_forward(*shapes: Any, **_: Any) -> int:
    """Count floating-point operations as PyTorch does those of the portable backend: products and convolution."""
    return _count(Arguments(*shapes), of_queries=1, of_keys=1, convolutions=1)


def _count_backward(*shapes: Any, **_: Any) -> int:
    return _count(_of_backward(Arguments, shapes), of_queries=3, of_keys=2, convolutions=2)  # one product is recomputed


def _count(a: Any, of_queries: int, of_keys: int, convolutions: int) -> int:
    """Count the operations of products with the context and of convolutions; of tensors, ``a`` holds the shapes."""
    batch, heads, queries, channels = a.query
    keys, outputs = a.value[2:]
    taps = 0 if a.conv_weight is None else math.prod(a.conv_weight[2:])
    products = (of_queries * queries + of_keys * keys) * channels * outputs + queries * channels
    return 2 * batch * heads * (products + convolutions * taps * keys * outputs)
