"""Parameters that lie on a grid of tokens: a state dict says which grid, and what comes from another one is resized."""

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
GRIDS = "grids"  # of our entry in a module's part of state_dict()._metadata
_CURE = "build the model with the img_size it was trained with, give it the tensors by load_state_dict, then call set_input_size"
SQUARE = "square"  # stands there for a grid whose sides are known to be equal


_LOGGER = logging.getLogger(__name__)


class LearnsOnGrid:
    """Mixed into a module, before its class: it learns on a grid of tokens.

    Its state dict says on which, in the metadata that PyTorch keeps beside the tensors (``state_dict()._metadata``): so
    ``torch.save`` keeps it, and no key is added. ``load_state_dict`` resizes what was learned on another grid.

    Example:
        >>> from flatten_transformer import FocusedLinearAttention
        >>> layer, wide = FocusedLinearAttention(8, 2, (2, 8)), FocusedLinearAttention(8, 2, (4, 4))
        >>> layer.state_dict()._metadata[""]["grids"]
        {'positional_encoding': (2, 8)}
        >>> wide.load_state_dict(layer.state_dict())
        <All keys matched successfully>
    """

    fixed_axis: int | None = None  # along which the grid has one size wherever it is learned, as stripes have their width

    def learned_grids(self) -> Mapping[str, Grid]:
        """Return the grid of each tensor that lies on one, ``[1, T, C]`` or ``[T, C]``, by its name in the state dict."""
        return {}

    def fit_learned(
        self, tensors: MutableMapping[str, Tensor], prefix: str, known: Any = None, *, resuming: bool = False
    ) -> None:
        """Resize, in place of those that came, what was learned on other grids.

        Args:
            tensors: By name, with the prefix.
            prefix: Of the names of this module.
            known: The grids they come from, by name without the prefix; where it has none, see :func:`source_grid`.
            resuming: Tensors that may have come from the grid of this module are taken to have.

        Raises:
            ValueError: If a grid cannot be known.
        """
        for leaf, grid in self.learned_grids().items():
            name, own = prefix + leaf, attrgetter(leaf)(self)
            came = tensors.get(name)
            first = own.shape[-2] - math.prod(grid)  # prefix tokens
            if came is None or came.ndim != own.ndim or came.shape[-2] <= first:
                continue  # what is of no use is reported by whoever loads
            told = known.get(leaf) if isinstance(known, Mapping) else None
            source = source_grid(name, came.shape[-2] - first, grid, told, fixed_axis=self.fixed_axis, resuming=resuming)
            if source != tuple(grid):
                tensors[name] = _resize(came, first, source, grid)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[misc]  # of nn.Module
        if hasattr(destination, "_metadata"):
            destination._metadata.setdefault(prefix[:-1], {})[GRIDS] = dict(self.learned_grids())

    def _load_from_state_dict(
        self, state_dict: MutableMapping[str, Any], prefix: str, local_metadata: Mapping[str, Any], *args: Any
    ) -> None:
        self.fit_learned(state_dict, prefix, local_metadata.get(GRIDS), resuming=True)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)  # type: ignore[misc]


def source_grid(name: str, count: int, own: Sequence[int], known: Any, *, fixed_axis: int | None, resuming: bool) -> Grid:
    """Return the grid that so many tokens come from.

    Weights come from squares unless somebody says otherwise, and a module's own checkpoint from its own grid. Where both
    could be, or where only the first is left and the module's grid is no square, the log says what was taken.

    Args:
        name: Of the tensor.
        count: Tokens without prefix tokens.
        own: The grid of the module that they are for.
        known: The grid by what came with them, or ``"square"``; whatever does not fit is passed over.
        fixed_axis: See :class:`LearnsOnGrid`.
        resuming: See :meth:`LearnsOnGrid.fit_learned`.

    Raises:
        ValueError: If it cannot be known.

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
    _say_once(
        f"encodings of {count} tokens come without their grid and are taken for {likely}, where the model has the grid {own}: "
        f"if they are of another, {_CURE}"
    )


@lru_cache  # the blocks of a stage have the same to say
def _say_once(text: str) -> None:
    _LOGGER.warning(text)


def _is_grid(known: Any, axes: int) -> bool:
    """Return whether this is a grid of so many axes: a file may say anything."""
    return isinstance(known, list | tuple) and len(known) == axes and all(type(size) is int and size > 0 for size in known)


def _resize(tokens: Tensor, first: int, source: Sequence[int], grid: Sequence[int]) -> Tensor:
    batched = tokens if tokens.ndim == 3 else tokens[None]
    resized = resize_grid(batched[:, first:], source, grid)
    return torch.cat([batched[:, :first], resized], dim=1).reshape(*tokens.shape[:-2], -1, tokens.shape[-1])
