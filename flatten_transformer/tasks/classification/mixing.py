"""timm's mixup and CutMix, for batches of any size."""

# B batch, C channels, K classes.

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor


@dataclass(frozen=True)
class Mixing:
    """Mix the images and labels of a batch in pairs; with both alphas 0, nothing is mixed.

    Args:
        mixup_alpha: Parameter of mixup's Beta distribution; 0 disables mixup.
        cutmix_alpha: Parameter of CutMix's Beta distribution; 0 disables CutMix. With both on, each batch uses one at random.
        prob: Probability that a batch is mixed at all.
        switch_prob: Probability of CutMix, with both on.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> images, targets = Mixing(mixup_alpha=0.8)(torch.rand(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1]), num_classes=3)
        >>> images.shape, targets.shape, targets.sum(1)
        (torch.Size([5, 1, 8, 8]), torch.Size([5, 3]), tensor([1., 1., 1., 1., 1.]))
    """

    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    prob: float = 1.0
    switch_prob: float = 0.5

    def __post_init__(self) -> None:
        if min(self.mixup_alpha, self.cutmix_alpha) < 0:
            raise ValueError(f"mixup_alpha and cutmix_alpha must be at least 0, got {self.mixup_alpha} and {self.cutmix_alpha}")
        for name in ("prob", "switch_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in 0 … 1, got {getattr(self, name)}")

    def __call__(self, images: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
        """Return mixed images, ``[B, C, height, width]``, and soft targets, ``[B, K]``.

        Args:
            images: ``[B, C, height, width]``.
            labels: ``[B]``.
            num_classes: K.
        """
        targets = F.one_hot(labels, num_classes).to(images.dtype)
        even = len(images) // 2 * 2  # timm mixes pairs; the last of an odd batch stays unmixed
        if even == 0 or self.mixup_alpha == self.cutmix_alpha == 0:
            return images, targets
        mix = Mixup(
            self.mixup_alpha,
            self.cutmix_alpha,
            prob=self.prob,
            switch_prob=self.switch_prob,
            label_smoothing=0.0,
            num_classes=num_classes,
        )
        mixed, mixed_targets = mix(images[:even].clone(), labels[:even])  # timm writes into its input
        return torch.cat([mixed, images[even:]]), torch.cat([mixed_targets.to(targets.dtype), targets[even:]])
