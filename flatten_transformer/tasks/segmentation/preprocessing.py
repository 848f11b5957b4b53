"""Image preprocessing of a segmenter, in evaluation and prediction."""

# C channels.

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from flatten_transformer.data.preprocessing import Normalisation, to_mode


@dataclass(frozen=True)
class SegmentationPreprocessing(Normalisation):
    """Resize and normalise an image for a segmenter, outside training.

    The first three arguments are those of :class:`Normalisation`.

    Args:
        short_side: Shorter side after bilinear resizing, in pixels; None for no resizing.
        long_side: Limit of the longer side then; None for no limit.
        window: Side of the sliding window in pixels; None for the whole image.
        stride: Stride of the window; None for two thirds of it.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> preprocessing = SegmentationPreprocessing(1, (0.5,), (0.5,), short_side=64)
        >>> preprocessing(Image.new("RGBA", (300, 200))).shape
        torch.Size([1, 64, 96])
    """

    short_side: int | None = None
    long_side: int | None = None
    window: int | None = None
    stride: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_window(self.window, self.stride)
        if self.short_side is not None and self.short_side < 1:
            raise ValueError(f"short_side must be at least 1, got {self.short_side}")
        if self.long_side is not None and self.long_side < (self.short_side or 1):
            raise ValueError(f"long_side must be at least short_side, got {self.long_side} and {self.short_side}")

    def __call__(self, image: Image.Image) -> Tensor:
        """Convert an image of any mode and size to ``[C, height, width]``, float32."""
        pixels = F.pil_to_tensor(to_mode(image, self.in_chans))
        return self.normalise(F.resize(pixels, list(self.size(*pixels.shape[1:]))))

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return the resized height and width, proportions kept."""
        scale = 1.0 if self.short_side is None else self.short_side / min(height, width)
        if self.long_side is not None:
            scale = min(scale, self.long_side / max(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))


def check_window(window: int | None, stride: int | None) -> None:
    """Raise ValueError if the side of a window or its stride is out of range."""
    if window is None and stride is not None:
        raise ValueError(f"a stride of {stride} needs a window to move: set window too, or leave stride out")
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    if window is not None and stride is not None and not 1 <= stride <= window:
        raise ValueError(f"stride must lie in 1 … window = {window}, so that no pixel is left out, got {stride}")
