"""Draw class maps: palettes, overlays, legends, and comparisons of truth and prediction."""

# K classes.

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import max_pool2d, pad
from torchvision.transforms.v2 import functional as F
from torchvision.utils import draw_segmentation_masks

from flatten_transformer.tasks.overlays import enlarge, readable_scale
from flatten_transformer.utils.font_fallback import FallbackFonts
from flatten_transformer.utils.picture_style import COLOURS, Colour

_TINTS = (0.0, -0.45, 0.5)  # shares of black (negative) or white mixed in, to extend the palette
_UNTINTED = "background"  # a class of this name is not tinted
_SHOWN = 30  # classes in a legend, those with the most pixels


def palette(count: int) -> list[Colour]:
    """Return a colour for each class: the first seven are colour-blind safe, 21 are distinct.

    Args:
        count: K.

    Example:
        >>> palette(8)[0], palette(8)[7], palette(22)[21] == palette(1)[0]
        ((230, 159, 0), (126, 87, 0), True)
    """
    return [_tinted(COLOURS[label % len(COLOURS)], _TINTS[label // len(COLOURS) % len(_TINTS)]) for label in range(count)]


def _tinted(colour: Colour, tint: float) -> Colour:
    towards = 255 if tint > 0 else 0
    red, green, blue = (int(value + abs(tint) * (towards - value)) for value in colour)
    return red, green, blue


def mask_image(classes: Tensor, count: int) -> Image.Image:
    """Return a class map as an image of class numbers, with a palette up to 256 classes, 16-bit grey above.

    Args:
        classes: ``[height, width]``, from 0 to K - 1.
        count: K.

    Example:
        >>> image = mask_image(torch.tensor([[0, 1]]), 2)
        >>> image.mode, image.getpixel((1, 0))
        ('P', 1)
    """
    if count > 256:
        return Image.fromarray(classes.cpu().numpy().astype(np.uint16))
    image = Image.fromarray(classes.cpu().byte().numpy())
    image.putpalette([value for colour in palette(count) for value in colour])
    return image


def draw_classes(image: Image.Image, classes: Tensor, class_names: Sequence[str]) -> Image.Image:
    """Return an image in grey, tinted by the class of each pixel, with edges in the very colour of the class.

    Pixels without a class or of a class "background" stay as they are.

    Args:
        image: Image in any mode.
        classes: ``[height, width]``, the size of the image; negative for pixels without a class.
        class_names: K names.
    """
    pixels, classes = F.pil_to_tensor(image.convert("RGB")), classes.cpu()
    colours = palette(len(class_names))
    shown = [label for label in classes.unique().tolist() if label >= 0 and class_names[label] != _UNTINTED]
    if not shown:
        return image.convert("RGB")
    masks = torch.stack([classes == label for label in shown])
    grey = F.rgb_to_grayscale(pixels, 3)  # under the tint, so that its hue is that of the class
    drawn = draw_segmentation_masks(
        torch.where(masks.any(0), grey, pixels), masks, alpha=0.65, colors=[colours[label] for label in shown]
    )
    edges = _edges(classes, width=max(1, round(max(image.size) / 200)))
    for label, mask in zip(shown, masks, strict=True):
        drawn[:, mask & edges] = torch.tensor(colours[label], dtype=torch.uint8)[:, None]
    return F.to_pil_image(drawn)


def _edges(classes: Tensor, width: int) -> Tensor:
    """Return True where another class, or the end of the image, is at most ``width`` pixels away, ``[height, width]``."""
    framed = pad(classes[None].float(), [width] * 4, value=-2)
    highest, lowest = (max_pool2d(sign * framed, 2 * width + 1, stride=1)[0] for sign in (1, -1))
    return highest != -lowest


def draw_overlay(image: Image.Image, classes: Tensor, class_names: Sequence[str]) -> Image.Image:
    """Return an image tinted by the class of each pixel, with a legend to its right; small images are enlarged.

    Args:
        image: Image in any mode.
        classes: ``[height, width]``, the size of the image; negative for pixels without a class.
        class_names: K names.

    Example:
        >>> overlay = draw_overlay(Image.new("L", (60, 40)), torch.ones(40, 60, dtype=torch.long), ["cat", "dog"])
        >>> overlay.width > 60, overlay.height >= 40
        (True, True)
    """
    image, classes = _enlarged(image, classes)
    labels = largest_classes(classes, len(class_names))
    return _beside(draw_classes(image, classes, class_names), _legend(labels, class_names, image.height))


def draw_comparison(
    image: Image.Image, truth: Tensor, predicted: Tensor, class_names: Sequence[str]
) -> tuple[Image.Image, Image.Image]:
    """Return an image tinted by true and by predicted classes, with a common legend; small images are enlarged.

    Args:
        image: Image in any mode.
        truth: ``[height, width]``, the size of the image; negative for pixels without a class.
        predicted: ``[height, width]``, in the same encoding.
        class_names: K names.
    """
    (_, truth), (image, predicted) = _enlarged(image, truth), _enlarged(image, predicted)
    labels = largest_classes(torch.stack([truth, predicted]), len(class_names))
    right = _beside(draw_classes(image, predicted, class_names), _legend(labels, class_names, image.height))
    return draw_classes(image, truth, class_names), right


def _enlarged(image: Image.Image, classes: Tensor) -> tuple[Image.Image, Tensor]:
    """Return an image and its class map as large as a legend needs."""
    scale = readable_scale(image)
    return enlarge(image, scale), classes.repeat_interleave(scale, 0).repeat_interleave(scale, 1)


def largest_classes(classes: Tensor, count: int) -> list[int]:
    """Return the classes that occur, by descending pixel count, at most 30.

    Args:
        classes: Any shape; negative for pixels without a class.
        count: K.

    Example:
        >>> largest_classes(torch.tensor([[2, 2, -1], [0, 2, -1]]), 3)
        [2, 0]
    """
    pixels = torch.bincount(classes[classes >= 0].cpu(), minlength=count)
    return [label for label in pixels.argsort(descending=True, stable=True).tolist() if pixels[label]][:_SHOWN]


def _legend(labels: Sequence[int], class_names: Sequence[str], height: int) -> Image.Image:
    """Return a legend of class colours and names."""
    colours, size = palette(len(class_names)), max(11, height // 32)
    line, fonts = round(1.6 * size), FallbackFonts([class_names[label] for label in labels])
    labels = sorted(labels, key=lambda label: class_names[label] == _UNTINTED)  # last, as it has no colour
    unpainted = [class_names[label] == _UNTINTED for label in labels]
    names = [fonts.legible(class_names[label]) + " (not painted)" * left for label, left in zip(labels, unpainted, strict=True)]
    width = max((round(fonts.box(name, size)[2]) for name in names), default=0) + 3 * size
    legend = Image.new("RGB", (width, line * len(labels) + size), "white")
    canvas = ImageDraw.Draw(legend)
    for row, (label, name) in enumerate(zip(labels, names, strict=True)):
        top = size // 2 + row * line
        if not unpainted[row]:
            canvas.rectangle((size // 2, top + 1, size * 3 // 2, top + size + 1), fill=colours[label], outline="black")
        fonts.draw(canvas, (2 * size, top + size), name, size, "black")
    return legend


def _beside(left: Image.Image, right: Image.Image) -> Image.Image:
    sheet = Image.new("RGB", (left.width + right.width, max(left.height, right.height)), "white")
    sheet.paste(left, (0, 0))
    sheet.paste(right, (left.width, 0))
    return sheet
