"""The most confident errors of a classifier."""

# B batch, K classes.

from __future__ import annotations

import heapq
from typing import NamedTuple

import torch
from torch import Tensor


class Misclassification(NamedTuple):
    """A misclassified image."""

    probability: float  # of the predicted class
    predicted: int
    label: int
    image_index: int  # in the data set


class ConfidentErrors:
    """Keep the most confident errors of one pass over the data.

    Args:
        limit: Number of errors kept.

    Example:
        >>> errors = ConfidentErrors()
        >>> errors.update(torch.tensor([[0.0, 2.0], [3.0, 0.0]]), torch.tensor([0, 0]), torch.tensor([7, 8]))
        >>> [(round(e.probability, 2), e.predicted, e.label, e.image_index) for e in errors.top]
        [(0.88, 1, 0, 7)]
    """

    def __init__(self, limit: int = 24) -> None:
        self.limit = limit
        self.top: list[Misclassification] = []

    def reset(self) -> None:
        """Start a new pass."""
        self.top = []

    def update(self, logits: Tensor, labels: Tensor, indices: Tensor) -> None:
        """Add the errors of a batch.

        Args:
            logits: ``[B, K]``.
            labels: ``[B]``.
            indices: ``[B]``, of the images in their data set.
        """
        probabilities, predicted = logits.float().softmax(1).max(1)
        wrong = torch.nonzero(predicted != labels).flatten()
        columns = (column[wrong].tolist() for column in (probabilities, predicted, labels, indices))
        self.top = heapq.nlargest(self.limit, [*self.top, *map(Misclassification, *columns)])
