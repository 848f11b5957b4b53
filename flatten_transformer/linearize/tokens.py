"""The grid that a model's tokens lie on, and what stands before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from flatten_transformer.layers.attention.layout import check_grid


class SeenGrid:
    """The grid of the image that a model is looking at: a forward hook of its patch embedding sets it.

    Models of others tell their attentions neither height nor width; one such object is shared by all attentions of a model,
    and copied with it.

    Args:
        grid_size: The grid before the first image.

    Example:
        >>> import torch
        >>> seen = SeenGrid((14, 14))
        >>> patches = nn.Conv2d(3, 8, 16, stride=16)
        >>> _ = patches.register_forward_hook(seen)
        >>> _ = patches(torch.rand(1, 3, 64, 96))
        >>> seen.grid_size
        (4, 6)
    """

    def __init__(self, grid_size: Sequence[int]) -> None:
        self.grid_size = tuple(grid_size)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], maps: Tensor) -> None:
        """See the maps ``[B, C, height, width]`` that the patch embedding returns."""
        sides = tuple(maps.shape[2:])
        self.grid_size = tuple(map(int, sides)) if torch._C._get_tracing_state() else sides  # there they are tensors

    def __getstate__(self) -> dict[str, tuple[int, ...]]:
        """Return plain sizes: an export leaves symbols, which cannot be copied."""
        return {"grid_size": tuple(map(int, self.grid_size))}


class Tokens(NamedTuple):
    """Tokens of a model.

    Args:
        grid_size: The grid they lie on, for images of the size the model was built for.
        num_prefix_tokens: Class, register and distillation tokens before the grid.
    """

    grid_size: tuple[int, ...]
    num_prefix_tokens: int


def tokens_of(model: nn.Module, grid_size: Sequence[int] | None = None, num_prefix_tokens: int | None = None) -> Tokens:
    """Return the tokens of timm's and torchvision's vision Transformers, of transformers' ones, or as given.

    Args:
        model: The model.
        grid_size: Overrides what the model says.
        num_prefix_tokens: Overrides it, too.

    Raises:
        ValueError: If neither the model nor the arguments say the grid.

    Example:
        >>> import timm
        >>> tokens_of(timm.create_model("vit_tiny_patch16_224", depth=1, reg_tokens=4))
        Tokens(grid_size=(14, 14), num_prefix_tokens=5)
    """
    says = _owner(model)
    if grid_size is None:
        if says is None:
            raise ValueError(
                f"{type(model).__name__} does not say which grid its tokens lie on: pass grid_size=(height, width) in tokens, or "
                "grid_size=(length,) for a sequence, and num_prefix_tokens="
            )
        grid_size = says.patch_embed.grid_size if _is_timms(says) else _grid(says)
    if num_prefix_tokens is None:
        num_prefix_tokens = says.num_prefix_tokens if says is not None and _is_timms(says) else _prefix(model)
    return Tokens(check_grid(grid_size), num_prefix_tokens)


def patch_embedding(model: nn.Module) -> nn.Conv2d | None:
    """Return the convolution that makes the tokens: the only one whose patches do not overlap; None if there is no such one.

    Args:
        model: The model.

    Example:
        >>> import timm
        >>> patch_embedding(timm.create_model("vit_tiny_patch16_224", depth=1))
        Conv2d(3, 192, kernel_size=(16, 16), stride=(16, 16))
    """
    found = [
        part
        for part in model.modules()
        if isinstance(part, nn.Conv2d) and part.kernel_size == part.stride and part.stride != (1, 1)
    ]
    return found[0] if len(found) == 1 else None


def _owner(model: nn.Module) -> Any:
    """Return the part of a model that knows its grid, such as the backbone of a detector; None: none does."""
    for part in model.modules():
        if _is_timms(part) or (_image_size(part) is not None and patch_embedding(part) is not None):
            return part
    return None


def _is_timms(model: Any) -> bool:
    return bool(getattr(getattr(model, "patch_embed", None), "grid_size", None)) and hasattr(model, "num_prefix_tokens")


def _grid(model: nn.Module) -> list[int]:
    """Return the grid of torchvision's and transformers' models."""
    patches, size = patch_embedding(model), _image_size(model)
    assert patches is not None
    assert size is not None
    return [side // patch for side, patch in zip(size, patches.stride, strict=True)]


def _image_size(model: Any) -> tuple[int, int] | None:
    """Return the image size that a model of torchvision or transformers was built for."""
    size: Any = getattr(model, "image_size", None) or getattr(getattr(model, "config", None), "image_size", None)
    return (size, size) if isinstance(size, int) else size and (size[0], size[1])


def _prefix(model: nn.Module) -> int:
    """Return the tokens before the grid: parameters of these names."""
    names = ("class_token", "cls_token", "class_embedding", "register_tokens", "distillation_token")
    tokens = [value for name, value in model.named_parameters() if name.rpartition(".")[2] in names]
    return sum(1 if value.ndim == 1 else value.shape[-2] for value in tokens)
