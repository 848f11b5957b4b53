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
    hits, own, taken = counts.diag(), counts.sum(1), counts.sum(0)
    return (hits / (own + taken - hits)).nanmean()


def mean_accuracy(counts: Tensor) -> Tensor:
    """Return the recall of each class's pixels, averaged over the classes in the masks.

    Args:
        counts: Confusion matrix, pixels by true and predicted class, ``[K, K]``.

    Example:
        >>> mean_accuracy(torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]]))
        tensor(0.8750)
    """
    return (counts.diag() / counts.sum(1)).nanmean()
