"""Image preprocessing of a detector, shared by training, evaluation and prediction."""

# C channels.

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from flatten_transformer.data.preprocessing import Normalisation, to_mode


@dataclass(frozen=True)
class DetectionPreprocessing(Normalisation):
    """Normalise an image for a detector, which resizes it itself and rescales its boxes.

    Arguments and errors are those of :class:`Normalisation`.

    Example:
        >>> DetectionPreprocessing(1, (0.5,), (0.5,))(Image.new("RGBA", (8, 12))).shape
        torch.Size([1, 12, 8])
    """

    def __call__(self, image: Image.Image) -> Tensor:
        """Convert an image of any mode to ``[C, height, width]``, float32."""
        return self.normalise(F.pil_to_tensor(to_mode(image, self.in_chans)))
