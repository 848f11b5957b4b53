"""Parameters on a token grid: the state dict records the grid, and loading from another one resizes them."""

# T tokens: prefix tokens, then those of the grid. C channels.

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, MutableMapping, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from flatten_transformer.layers.grid import resize_grid

Grid = tuple[int, ...]
GRIDS = "grids"  # key of the entry in a module's part of state_dict()._metadata
_CURE = "build the model with the img_size it was trained with, give it the tensors by load_state_dict, then call set_input_size"
SQUARE = "square"  # the entry for a grid of equal sides, whatever their length

_LOGGER = logging.getLogger(__name__)


class LearnsOnGrid:
    """Mixin, before the module class, for modules that learn on a grid of tokens.

    The state dict records the grid in the metadata that PyTorch keeps beside the tensors (``state_dict()._metadata``):
    ``torch.save`` keeps it, and no key is added. ``load_state_dict`` resizes tensors from other grids.

    Example:
        >>> from flatten_transformer import FocusedLinearAttention
        >>> layer, wide = FocusedLinearAttention(8, 2, (2, 8)), FocusedLinearAttention(8, 2, (4, 4))
        >>> layer.state_dict()._metadata[""]["grids"]
        {'positional_encoding': (2, 8)}
        >>> wide.load_state_dict(layer.state_dict())
        <All keys matched successfully>
    """

    fixed_axis: int | None = None  # the axis whose size never changes, such as the width of stripes

    def learned_grids(self) -> Mapping[str, Grid]:
        """Return the grid of each tensor on one, ``[1, T, C]`` or ``[T, C]``, by its name in the state dict."""
        return {}

    def fit_learned(
        self, tensors: MutableMapping[str, Tensor], prefix: str, known: Any = None, *, resuming: bool = False
    ) -> None:
        """Replace tensors that were learned on other grids by resized ones.

        Args:
            tensors: Tensors by name, with the prefix.
            prefix: Prefix of this module's names.
            known: Source grids by name without the prefix; for missing ones see :func:`source_grid`.
            resuming: Assume the grid of this module wherever it is possible.

        Raises:
            ValueError: If a grid cannot be determined.
        """
        for leaf, grid in self.learned_grids().items():
            name, own = prefix + leaf, attrgetter(leaf)(self)
            tensor = tensors.get(name)
            first = own.shape[-2] - math.prod(grid)  # prefix tokens
            if tensor is None or tensor.ndim != own.ndim or tensor.shape[-2] <= first:
                continue  # the loader reports unusable tensors
            recorded = known.get(leaf) if isinstance(known, Mapping) else None
            source = source_grid(name, tensor.shape[-2] - first, grid, recorded, fixed_axis=self.fixed_axis, resuming=resuming)
            if source != tuple(grid):
                tensors[name] = _resize(tensor, first, source, grid)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[misc]  # nn.Module's
        if hasattr(destination, "_metadata"):
            destination._metadata.setdefault(prefix[:-1], {})[GRIDS] = dict(self.learned_grids())

    def _load_from_state_dict(
        self, state_dict: MutableMapping[str, Any], prefix: str, local_metadata: Mapping[str, Any], *args: Any
    ) -> None:
        self.fit_learned(state_dict, prefix, local_metadata.get(GRIDS), resuming=True)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)  # type: ignore[misc]


def source_grid(name: str, count: int, own: Sequence[int], known: Any, *, fixed_axis: int | None, resuming: bool) -> Grid:
    """Return the source grid of ``count`` tokens.

    Weights are assumed to come from squares, and a module's own checkpoint from its own grid. The choice is logged where
    both are possible, or where only the square is and the module's grid is none.

    Args:
        name: Tensor name.
        count: Tokens without prefix tokens.
        own: The target module's grid.
        known: The recorded grid, or ``"square"``; ignored if it does not fit.
        fixed_axis: See :class:`LearnsOnGrid`.
        resuming: See :meth:`LearnsOnGrid.fit_learned`.

    Raises:
        ValueError: If it cannot be determined.

    Example:
        >>> source_grid("pos_embed", 64, (14, 14), (4, 16), fixed_axis=None, resuming=False)
        (4, 16)
    """
    axes, own = len(own), tuple(own)
    side = round(count ** (1 / axes))
    square = (side,) * axes if side**axes == count else None
    if known == SQUARE and square:
        return square
    if _is_grid(known, axes) and math.prod(known) == count:
        return tuple(known)
    if fixed_axis is not None and count % own[fixed_axis] == 0:
        return tuple(size if axis == fixed_axis else count // own[fixed_axis] for axis, size in enumerate(own))
    if count == math.prod(own) and (resuming or square in (None, own)):
        _warn(count, own, likely=own)
        return own
    if square is None or count == math.prod(own):
        doubt = "not a square" if square is None else f"which may be {square} or another grid"
        raise ValueError(
            f"{name} has {count} tokens, {doubt}, and comes without its grid, where the model has the grid {own}: {_CURE}"
        )
    _warn(count, own, likely=square)
    return square


def _warn(count: int, own: Grid, *, likely: Grid) -> None:
    if len(set(own)) == 1:
        return  # a square for a square is the rule, and a line has one length
    _warn_once(
        f"encodings of {count} tokens come without their grid and are taken for {likely}, where the model has the grid {own}: "
        f"if they are of another, {_CURE}"
    )


@lru_cache  # the blocks of a stage share a message
def _warn_once(text: str) -> None:
    _LOGGER.warning(text)


def _is_grid(known: Any, axes: int) -> bool:
    """Return whether this is a grid of ``axes`` axes: a file may hold anything."""
    return isinstance(known, list | tuple) and len(known) == axes and all(type(size) is int and size > 0 for size in known)


def _resize(tokens: Tensor, first: int, source: Sequence[int], grid: Sequence[int]) -> Tensor:
    batched = tokens if tokens.ndim == 3 else tokens[None]
    resized = resize_grid(batched[:, first:], source, grid)
    return torch.cat([batched[:, :first], resized], dim=1).reshape(*tokens.shape[:-2], -1, tokens.shape[-1])
