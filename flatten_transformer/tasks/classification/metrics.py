"""Which images a classifier gets wrong, the surest first."""

# B batch, K classes.

from __future__ import annotations

import heapq
from typing import NamedTuple

import torch
from torch import Tensor


class Mistake(NamedTuple):
    """An image that is taken for something else."""

    probability: float  # of the class it is taken for
    predicted: int
    label: int
    number: int  # of the image in its data set


class Mistakes:
    """The surest mistakes of one pass over the data.

    Args:
        most: How many are kept.

    Example:
        >>> mistakes = Mistakes()
        >>> mistakes.update(torch.tensor([[0.0, 2.0], [3.0, 0.0]]), torch.tensor([0, 0]), torch.tensor([7, 8]))
        >>> [(round(m.probability, 2), m.predicted, m.label, m.number) for m in mistakes.found]
        [(0.88, 1, 0, 7)]
    """

    def __init__(self, most: int = 24) -> None:
        self.most = most
        self.found: list[Mistake] = []

    def reset(self) -> None:
        """Begin a new pass."""
        self.found = []

    def update(self, logits: Tensor, labels: Tensor, indices: Tensor) -> None:
        """Look at a batch.

        Args:
            logits: ``[B, K]``.
            labels: ``[B]``.
            indices: ``[B]``, which images they are.
        """
        probabilities, predicted = logits.float().softmax(1).max(1)
        wrong = torch.nonzero(predicted != labels).flatten()
        columns = (column[wrong].tolist() for column in (probabilities, predicted, labels, indices))
        self.found = heapq.nlargest(self.most, [*self.found, *map(Mistake, *columns)])
