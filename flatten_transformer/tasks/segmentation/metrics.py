"""Metrics of semantic segmentation, from a confusion matrix."""

# K classes.

from __future__ import annotations

from torch import Tensor


def mean_iou(counts: Tensor) -> Tensor:
    """Return the intersection over union, averaged over the classes in masks or predictions.

    Args:
        counts: Confusion matrix, pixels by true and predicted class, ``[K, K]``.

    Example:
        >>> mean_iou(torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]]))
        tensor(0.7750)
    """
    return _ious(counts).nanmean()


def mean_accuracy(counts: Tensor) -> Tensor:
    """Return the recall of each class's pixels, averaged over the classes in the masks.

    Args:
        counts: Confusion matrix, pixels by true and predicted class, ``[K, K]``.

    Example:
        >>> mean_accuracy(torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]]))
        tensor(0.8750)
    """
    return (counts.diag() / counts.sum(1)).nanmean()


def class_numbers(counts: Tensor) -> dict[str, list[float]]:
    """Return intersection over union and accuracy (recall) of each class, K numbers in 0 … 1 by name.

    A class in no mask has accuracy NaN, and IoU NaN if it is not predicted either, else 0: as the means count them.

    Args:
        counts: Confusion matrix, pixels by true and predicted class, ``[K, K]``.

    Example:
        >>> class_numbers(torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]]))
        {'iou': [0.75, 0.8, nan], 'accuracy': [0.75, 1.0, nan]}
    """
    counts = counts.double()
    return {"iou": _ious(counts).tolist(), "accuracy": (counts.diag() / counts.sum(1)).tolist()}


def _ious(counts: Tensor) -> Tensor:
    hits, own, taken = counts.diag(), counts.sum(1), counts.sum(0)
    return hits / (own + taken - hits)
