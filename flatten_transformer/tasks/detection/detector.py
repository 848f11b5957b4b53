"""A detector without padding: images are grouped by size."""

# B images, n objects of an image, K classes, C channels.

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.retinanet import RetinaNet

from flatten_transformer.tasks.backbone import feature_name, plain_model

Target = dict[str, Tensor]


class Detector(nn.Module):
    """Wrap a torchvision detector for images of any sizes and classes counted from 0.

    Global attention would attend to padding, so nothing is padded: the images of a batch are grouped by size, and the losses
    of the groups are averaged over their images, as if each group were on its own device.

    Args:
        core: torchvision detector.
        first_label: Its label of the first class: 1 if 0 is the background.
        has_masks: Whether it predicts masks.
        backbone: timm name of the backbone.
        backbone_args: Arguments of the backbone.
    """

    def __init__(
        self,
        core: GeneralizedRCNN | RetinaNet,
        *,
        first_label: int,
        has_masks: bool,
        backbone: str,
        backbone_args: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.core = core
        self.first_label = first_label
        self.has_masks = has_masks
        self.backbone = backbone
        self.backbone_args = dict(backbone_args)

    def forward(
        self, images: Sequence[Tensor] | Tensor, targets: Sequence[Target] | None = None
    ) -> list[Target] | dict[str, Tensor]:
        """Return detections, or in training the losses by name.

        Args:
            images: ``[C, height, width]`` each, normalised; in evaluation resized here.
            targets: Per image ``boxes`` ``[n, 4]``, corners in pixels, ``labels`` ``[n]``, 0 … K - 1, and for masks
                ``masks`` ``[n, height, width]``; in training only.

        Returns:
            Per image ``boxes`` ``[n, 4]``, corners in pixels of the input image, ``labels`` ``[n]``, ``scores`` ``[n]`` in
            0 … 1 in descending order, and for masks ``masks`` ``[n, 1, height, width]``, probabilities.

        Raises:
            ValueError: If targets are missing in training, or masks in the targets.
        """
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(images):
            groups.setdefault(tuple(image.shape[-2:]), []).append(index)
        if self.training:
            return self._losses(images, self._check(targets), list(groups.values()))
        detections: dict[int, Target] = {}
        for group in groups.values():
            detections.update(zip(group, self.core([images[index] for index in group]), strict=True))
        return [{**detections[index], "labels": detections[index]["labels"] - self.first_label} for index in range(len(images))]

    def _losses(self, images: Sequence[Tensor] | Tensor, targets: list[Target], groups: list[list[int]]) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for group in groups:
            losses = self.core([images[index] for index in group], [targets[index] for index in group])
            for name, loss in losses.items():
                total[name] = total.get(name, 0) + loss * (len(group) / len(images))
        return total

    def _check(self, targets: Sequence[Target] | None) -> list[Target]:
        if targets is None:
            raise ValueError("a detector in training needs targets, got none: pass them, or call eval() first")
        if self.has_masks and not all("masks" in target for target in targets):
            raise ValueError("this detector learns masks, but the targets hold none: set data.masks to true")
        return [{**target, "labels": target["labels"] + self.first_label} for target in targets]

    def no_weight_decay(self) -> set[str]:
        """Return the parameters that the backbone exempts from weight decay."""
        with torch.device("meta"):
            model = plain_model(self.backbone, self.backbone_args)
        exempt: Callable[[], set[str]] = getattr(model, "no_weight_decay", set)
        prefix = "core.backbone.body."
        own = {name.removeprefix(prefix): True for name, _ in self.named_parameters() if name.startswith(prefix)}
        return {prefix + short for name in exempt() if (short := feature_name(name, own))}


def keep_float32(module: nn.Module) -> None:
    """Cast the outputs of ``module`` to float32, also under autocast, for further computation with boxes.

    Args:
        module: Predictor of boxes and scores; one pixel in 1333 is below the resolution of bfloat16.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> keep_float32(layer)
        >>> with torch.autocast("cpu", torch.bfloat16):
        ...     layer(torch.zeros(1, 1)).dtype
        torch.float32
    """
    module.register_forward_hook(lambda _, __, output: tree_map_only(Tensor, Tensor.float, output))
