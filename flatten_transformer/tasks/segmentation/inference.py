"""Inference on whole images or sliding windows, and class maps."""

# C channels of the image, K classes.

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from flatten_transformer.tasks.segmentation.preprocessing import check_window

_AT_ONCE = 8  # classes upsampled at once: 12 megapixels take 0.4 GB, not 7 GB with 150 classes


def image_logits(
    model: Callable[[Tensor], Tensor], image: Tensor, *, window: int | None = None, stride: int | None = None
) -> Tensor:
    """Return the logits of one image, ``[K, height, width]``.

    Args:
        model: Maps ``[B, C, height, width]`` to ``[B, K, height, width]``.
        image: ``[C, height, width]``.
        window: Side of the square windows in pixels, whose logits are averaged where they overlap; None for the whole image.
        stride: Stride of the windows; None for two thirds of their side. The last window of a row or column ends with the
            image.

    Raises:
        ValueError: If a number is out of range, or the stride leaves pixels out.

    Example:
        >>> logits = image_logits(torch.nn.Conv2d(3, 5, 1), torch.rand(3, 40, 64), window=32)
        >>> logits.shape
        torch.Size([5, 40, 64])
    """
    check_window(window, stride)
    if window is None:
        return model(image[None])[0]
    height, width = image.shape[1:]
    step = stride or max(window * 2 // 3, 1)
    counts = image.new_zeros(height, width)
    total: Tensor | None = None
    for top in window_starts(height, window, step):
        for left in window_starts(width, window, step):
            area = (..., slice(top, top + window), slice(left, left + window))
            logits = model(image[None][area])[0]
            total = logits.new_zeros(len(logits), height, width) if total is None else total
            total[area] += logits
            counts[area] += 1
    assert total is not None
    return total / counts


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Return the window positions along a side: every ``stride`` pixels, the last one aligned with the end.

    Example:
        >>> window_starts(100, 64, 32), window_starts(64, 64, 32), window_starts(40, 64, 32)
        ([0, 32, 36], [0], [0])
    """
    last = max(length - window, 0)
    return [*range(0, last, stride), last]


def class_map(logits: Tensor, height: int, width: int) -> Tensor:
    """Return the most probable class of each pixel, ``[height, width]``, from logits of another size.

    Args:
        logits: ``[K, h, w]``, resized bilinearly, a few classes at a time.
        height: Output height.
        width: Output width.

    Example:
        >>> class_map(torch.eye(3)[:, None], 2, 3)
        tensor([[0, 1, 2],
                [0, 1, 2]])
    """
    best, classes = logits.new_full((height, width), float("-inf")), torch.zeros(height, width, dtype=torch.long)
    classes = classes.to(logits.device)
    for first in range(0, len(logits), _AT_ONCE):
        few = logits[None, first : first + _AT_ONCE]
        values, indices = F.interpolate(few, size=(height, width), mode="bilinear", align_corners=False)[0].max(0)
        classes = torch.where(values > best, first + indices, classes)
        best = torch.maximum(best, values)
    return classes
