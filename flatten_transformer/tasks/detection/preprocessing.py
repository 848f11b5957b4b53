"""From an image file to what a detector sees of it; training, evaluation and prediction share it."""

# C channels.

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from flatten_transformer.data.preprocessing import Normalisation, to_mode


@dataclass(frozen=True)
class DetectionPreprocessing(Normalisation):
    """What is done to an image before a detector sees it; the detector resizes it itself, and its boxes back.

    Its arguments and errors are those of :class:`Normalisation`.

    Example:
        >>> DetectionPreprocessing(1, (0.5,), (0.5,))(Image.new("RGBA", (8, 12))).shape
        torch.Size([1, 12, 8])
    """

    def __call__(self, image: Image.Image) -> Tensor:
        """Return ``[C, height, width]``, float32, of an image of any mode."""
        return self.normalise(F.pil_to_tensor(to_mode(image, self.in_chans)))
