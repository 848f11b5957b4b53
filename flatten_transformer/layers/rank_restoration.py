"""Rank restoration in layers: its convolution, and values stretched to the grid of the outputs."""

# B batch, H heads, M value tokens, N output tokens, E channels per head.

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from flatten_transformer.layers.grid import resize_grid
from flatten_transformer.ops.checks import shape_of
from flatten_transformer.ops.rank_restoration import on_maps

Stretch = Literal["grid", "tokens"]
DepthwiseConvolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
_CONVOLUTIONS: dict[int, type[DepthwiseConvolution]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_FORWARDS = {kind: kind.forward for kind in _CONVOLUTIONS.values()}  # PyTorch's own


def depthwise_convolution(
    channels: int, kernel_size: int, axes: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> DepthwiseConvolution:
    """Return a size-keeping depthwise convolution over 1, 2 or 3 axes, one kernel a channel.

    Raises:
        ValueError: If ``kernel_size`` is not odd and positive: an even one shifts the image.

    Example:
        >>> depthwise_convolution(32, 5, axes=2).weight.shape
        torch.Size([32, 1, 5, 5])
    """
    check_kernel_size(kernel_size)
    return _CONVOLUTIONS[axes](
        channels, channels, kernel_size, padding=kernel_size // 2, groups=channels, device=device, dtype=dtype
    )


def zero_parameters(module: nn.Module) -> None:
    """Set all parameters to zero: a convolution that adds nothing until it is trained."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)


def check_kernel_size(kernel_size: int) -> None:
    """Raise ValueError unless a kernel of this side keeps tokens in place."""
    if not isinstance(kernel_size, int) or kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd and positive, so that tokens stay in place, got {kernel_size!r}")


def convolve_values(convolution: nn.Module, value: Tensor, grid_size: Sequence[int]) -> Tensor:
    """Apply a convolution module to the values as maps.

    Args:
        convolution: From :func:`depthwise_convolution`, or a wrapper or replacement of it.
        value: ``[B, H, M, E]``, grid tokens only.
        grid_size: One to three axes; their product is M.

    Returns:
        ``[B, H, M, E]``.

    Raises:
        ValueError: If it returns maps of another size.

    Example:
        >>> convolve_values(depthwise_convolution(8, 5, axes=2), torch.rand(2, 3, 12, 8), (3, 4)).shape
        torch.Size([2, 3, 12, 8])
    """

    def convolve(maps: Tensor) -> Tensor:
        convolved: Tensor = convolution(maps)
        if not torch.compiler.is_compiling() and convolved.shape != maps.shape:
            raise ValueError(
                f"the convolution of the values must keep the size of the map, which is {shape_of(maps)}, and it returns "
                f"{shape_of(convolved)}: give {type(convolution).__name__} a padding of half its kernel and a stride of 1"
            )
        return convolved

    return on_maps(value, grid_size, convolve)


def is_depthwise(convolution: nn.Module) -> bool:
    """Return whether this is a convolution of :func:`depthwise_convolution`, with any weights and hooks."""
    kind = type(convolution)
    if kind not in _FORWARDS or kind.forward is not _FORWARDS[kind] or "forward" in convolution.__dict__:
        return False
    assert isinstance(convolution, DepthwiseConvolution)
    axes, kernel = len(convolution.kernel_size), convolution.weight.shape[2:]
    return (
        convolution.padding_mode == "zeros"
        and convolution.stride == convolution.dilation == (1,) * axes
        and convolution.padding == tuple(side // 2 for side in kernel)
        and all(side % 2 for side in kernel)
        and convolution.weight.shape[0] == convolution.groups
    )


def may_read(convolution: nn.Module, value: Tensor) -> bool:
    """Return whether a fused kernel may read the weights instead of calling the convolution, unnoticed.

    Not if it is hooked, subclassed, wrapped, parametrized or replaced, nor if the weights are on another device or no
    plain tensors.

    Args:
        convolution: The convolution of the values.
        value: Its input, channels last.

    Example:
        >>> convolution, value = depthwise_convolution(8, 5, axes=2), torch.rand(2, 3, 12, 8)
        >>> may_read(convolution, value)
        True
        >>> _ = convolution.register_forward_hook(lambda *_: None)
        >>> may_read(convolution, value)
        False
    """
    hooked = (
        convolution._forward_hooks
        or convolution._forward_pre_hooks
        or convolution._backward_hooks
        or convolution._backward_pre_hooks
        or _has_any_global_hook()
    )
    if hooked or not is_depthwise(convolution):
        return False
    assert isinstance(convolution, DepthwiseConvolution)
    weight, bias = convolution.weight, convolution.bias
    return weight.shape[:2] == (value.shape[-1], 1) and _is_plain(weight, value) and (bias is None or _is_plain(bias, value))


def _is_plain(tensor: Tensor, like: Tensor) -> bool:
    return type(tensor) in (nn.Parameter, Tensor) and tensor.layout == torch.strided and tensor.device == like.device


def stretch_values(value: Tensor, grid_size: Sequence[int], out_grid_size: Sequence[int], *, stretch: Stretch = "grid") -> Tensor:
    """Interpolate values to the grid of the outputs, so that they can be convolved there.

    Args:
        value: ``[B, H, M, E]``, grid tokens only.
        grid_size: The grid of the M values.
        out_grid_size: The grid of the N outputs.
        stretch: ``"grid"`` interpolates along the axes of the grid; ``"tokens"`` along the flattened token
            axis, which mixes rows, as the released code does under spatial reduction.

    Returns:
        ``[B, H, N, E]``.

    Example:
        >>> stretch_values(torch.rand(2, 3, 12, 8), (3, 4), (6, 8)).shape
        torch.Size([2, 3, 48, 8])
    """
    tokens = value.flatten(0, 1)  # [B·H, M, E]
    if stretch == "grid":
        tokens = resize_grid(tokens, grid_size, out_grid_size, smooth=False)
    else:
        tokens = resize_grid(tokens, [math.prod(grid_size)], [math.prod(out_grid_size)])
    return tokens.unflatten(0, value.shape[:2])
