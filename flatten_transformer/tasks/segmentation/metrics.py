"""Metrics of semantic segmentation, from a confusion matrix."""

# K classes.

from __future__ import annotations

from torch import Tensor


def mean_iou(counts: Tensor) -> Tensor:
    """Return the intersection over union, averaged over the classes that occur in masks or in predictions.

    Args:
        counts: Pixels of each class, taken for each class, ``[K, K]``.

    Example:
        >>> mean_iou(torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]]))
        tensor(0.7750)
    """
    hits, own, taken = counts.diag(), counts.sum(1), counts.sum(0)
    return (hits / (own + taken - hits)).nanmean()


def mean_accuracy(counts: Tensor) -> Tensor:
    """Return the share of each class's pixels that is found, averaged over the classes that occur in masks.

    Args:
        counts: Pixels of each class, taken for each class, ``[K, K]``.

    Example:
        >>> mean_accuracy(torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]]))
        tensor(0.8750)
    """
    return (counts.diag() / counts.sum(1)).nanmean()
