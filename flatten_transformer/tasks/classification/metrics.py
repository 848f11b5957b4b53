"""Numbers of each class, and the most confident errors of a classifier."""

# B batch, K classes.

from __future__ import annotations

import heapq
from typing import NamedTuple

import torch
from torch import Tensor


def class_numbers(counts: Tensor) -> dict[str, list[float]]:
    """Return accuracy (the recall of a class), precision and F1 of each class, K numbers in 0 … 1 by name.

    A class without images has NaN for all three; one that has images and is never predicted has precision 0, as in torchmetrics
    and scikit-learn.

    Args:
        counts: Images by true and predicted class, ``[K, K]``.

    Example:
        >>> class_numbers(torch.tensor([[3, 1, 0], [1, 3, 0], [0, 0, 0]]))
        {'accuracy': [0.75, 0.75, nan], 'precision': [0.75, 0.75, nan], 'f1': [0.75, 0.75, nan]}
    """
    hits, own, taken = counts.double().diag(), counts.sum(1), counts.sum(0)
    numbers = {"accuracy": hits / own, "precision": hits / taken.clamp(min=1), "f1": 2 * hits / (own + taken)}
    return {name: values.masked_fill(own == 0, torch.nan).tolist() for name, values in numbers.items()}


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
