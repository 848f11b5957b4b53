"""Which blocks stay softmax."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Literal, SupportsIndex

from torch import Tensor, nn

from flatten_transformer.linearize.errors import block_errors

Keep = int | Sequence[int] | Literal["auto"]


def choose(
    keep: Keep, model: nn.Module, names: Sequence[str], linear: Callable[[], nn.Module], images: Tensor | None
) -> Collection[str]:
    """Return the names of the attentions that stay softmax.

    Args:
        keep: Their indices; or how many, those whose linear form errs most; or ``"auto"``, a quarter of them, rounded up, which
            is where published conversions lose next to nothing (JetViT keeps 2 of 12, IronViT 9 of 27).
        model: The softmax model.
        names: All of its attentions.
        linear: Makes its fully linear form.
        images: Images to judge the blocks on, ``[B, C, height, width]``.

    Raises:
        ValueError: If an index or a number is out of range, or images are missing.

    Example:
        >>> choose([0, -1], nn.Identity(), ["a", "b", "c"], nn.Identity, None)
        ['a', 'c']
    """
    count = len(names)
    if isinstance(keep, Sequence) and not isinstance(keep, str):
        wrong = [index for index in keep if not (_is_whole(index) and -count <= index < count)]
        if wrong:
            raise ValueError(f"keep must hold indices of the {count} blocks, 0 to {count - 1}, got {list(keep)}")
        return [names[index] for index in keep]
    most = -(-count // 4) if keep == "auto" else keep
    if not _is_whole(most) or not 0 <= most <= count:
        raise ValueError(f'keep must be indices of blocks, a number up to {count}, or "auto", got {keep!r}')
    if most in (0, count):
        return names[:most]
    if images is None:
        raise ValueError(f"keep={keep!r} chooses blocks by their errors: pass images=, a batch, or name the blocks, keep=[…]")
    errors = block_errors(model, linear(), images)
    return sorted(errors, key=lambda name: -errors[name])[:most]


def _is_whole(number: object) -> bool:
    """Return whether this is a whole number, also one of NumPy."""
    return isinstance(number, SupportsIndex) and not isinstance(number, bool)
