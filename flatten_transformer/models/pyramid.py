"""timm's interface of hosts made of stages, for the families whose hosts are written here (PVT, CSwin)."""

# B batch, C channels.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.models._features import feature_take_indices
from torch import Tensor, nn


class Pyramid(nn.Module):
    """A model of ``stages``, each a map of half the size; a subclass has ``forward_head`` and ``reset_classifier``."""

    stages: Any  # an nn.Sequential of modules with `grad_checkpointing`; typed Any for the latter
    norm: nn.Module
    channels_last: bool = False  # whether maps between stages are [B, rows, columns, C] rather than [B, C, rows, columns]
    num_features: int
    feature_info: list[dict[str, Any]]

    def embed(self, x: Tensor) -> Tensor:
        """Return the input of the first stage, from images ``[B, in_chans, height, width]``."""
        return x

    def normalise(self, x: Tensor) -> Tensor:
        """Return the last map as the input of the classifier."""
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores ``[B, num_classes]`` of images ``[B, in_chans, height, width]``."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last map of images ``[B, in_chans, height, width]``, channels last where they are so between stages."""
        return self.normalise(self.stages(self.embed(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify the last map: ``[B, num_classes]``, or ``[B, C]`` before the classifier."""
        raise NotImplementedError

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the maps of chosen stages, and the last map before them unless ``intermediates_only``.

        Args:
            x: Images, ``[B, in_chans, height, width]``.
            indices: Stages; a number means that many last ones, None all.
            norm: Normalise the map of the last stage, where the model does.
            stop_early: Stop after the last chosen stage.
            output_fmt: ``"NCHW"``.
            intermediates_only: Return the maps alone.

        Returns:
            The last map as :meth:`forward_features` has it, and the chosen ones, each ``[B, C, rows, columns]``.

        Raises:
            ValueError: If ``output_fmt`` is another.
        """
        if output_fmt != "NCHW":
            raise ValueError(f'output_fmt must be "NCHW", got {output_fmt!r}')
        chosen, last = feature_take_indices(len(self.stages), indices)
        intermediates = []
        x = self.embed(x)
        for index, stage in enumerate(self.stages[: last + 1] if stop_early else self.stages):
            x = stage(x)
            final = index == len(self.stages) - 1
            if index in chosen:
                level = self.normalise(x) if norm and final else x
                intermediates.append(level.permute(0, 3, 1, 2).contiguous() if self.channels_last else level)
            if final and not intermediates_only:
                x = self.normalise(x)
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the stages after the last chosen one, with the norm and the classifier; return the chosen indices."""
        chosen, last = feature_take_indices(len(self.stages), indices)
        cut = last + 1 < len(self.stages)
        self.stages = self.stages[: last + 1]
        if cut or prune_norm:
            self.norm = nn.Identity()
        if cut:
            self.num_features = self.feature_info[last]["num_chs"]
        if cut or prune_head:  # the last map is gone
            self.reset_classifier(0, "")
        return list(chosen)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier: ``num_classes`` classes, 0 for none; optionally another pooling."""
        raise NotImplementedError

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        for stage in self.stages:
            stage.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Return no name: the released recipes exempt biases and 1-D parameters alone, encodings and scales decay."""
        return set()
