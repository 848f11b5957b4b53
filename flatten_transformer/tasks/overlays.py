"""Draw predictions over images, in a colour-blind-safe palette."""

# n objects of an image.

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from flatten_transformer.utils.atomic_file import same_file, write_png
from flatten_transformer.utils.font_fallback import FallbackFonts

Colour = tuple[int, int, int]
_GAP = 8  # pixels between pictures
_LONGEST = 240  # bytes of a file name; file systems allow 255 with suffix and number
_TITLE = 18  # font size of column titles, in pixels

# Okabe and Ito, "Color Universal Design", 2008, without black, ordered for contrast between neighbours.
COLOURS: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)


def colour_of(label: int) -> Colour:
    """Return the colour of a class.

    Example:
        >>> colour_of(0) == colour_of(7)
        True
    """
    return COLOURS[label % len(COLOURS)]


def draw_objects(
    image: Image.Image, boxes: Tensor, labels: Sequence[int], captions: Sequence[str], masks: Tensor | None = None
) -> Image.Image:
    """Return an image with the box, caption and mask of each object, coloured by class.

    Args:
        image: Image in any mode.
        boxes: ``[n, 4]``, corners in pixels.
        labels: Class number of each object.
        captions: Caption of each box.
        masks: ``[n, height, width]``, True inside; None for boxes alone.

    Example:
        >>> draw_objects(Image.new("L", (60, 40)), torch.tensor([[4.0, 4, 30, 30]]), [0], ["cat 90 %"]).size
        (60, 40)
    """
    pixels = F.pil_to_tensor(image.convert("RGB"))
    if not len(boxes):
        return F.to_pil_image(pixels)
    colours = [colour_of(label) for label in labels]
    thickness = max(1, round(max(pixels.shape[1:]) / 320))
    if masks is not None:
        pixels = draw_segmentation_masks(pixels, masks, alpha=0.45, colors=colours)
    drawn = F.to_pil_image(draw_bounding_boxes(pixels, boxes, colors=colours, width=thickness))
    write_captions(drawn, boxes, captions, colours)
    return drawn


def write_captions(image: Image.Image, boxes: Tensor, captions: Sequence[str], colours: Sequence[Colour]) -> None:
    """Write each caption on a coloured background above its box, or inside if there is no room.

    Args:
        image: Drawn on in place.
        boxes: ``[n, 4]``, corners in pixels.
        captions: One per box.
        colours: One per box.
    """
    canvas, fonts = ImageDraw.Draw(image), FallbackFonts(captions)
    size = max(9, max(image.size) // 45)
    for (left, top, _, _), caption, colour in zip(boxes.tolist(), captions, colours, strict=True):
        text = fonts.legible(caption)
        x0, y0, x1, y1 = fonts.box(text, size)
        width, height = x1 - x0 + 4, y1 - y0 + 4
        x = max(0, min(left, image.width - width))
        y = top - height if top >= height else min(top, image.height - height)
        canvas.rectangle((x, y, x + width, y + height), fill=colour)
        fonts.draw(canvas, (x + 2 - x0, y + 2 - y0), text, size, "black" if _is_light(colour) else "white")


def _is_light(colour: Colour) -> bool:
    return float(torch.tensor(colour).float() @ torch.tensor([0.299, 0.587, 0.114])) > 120


def overlay_paths(files: Sequence[Path], output: Path) -> list[Path]:
    """Return the output path of each image: ``output/<stem>.png``, numbered where names collide.

    Names are compared case-insensitively, as on some file systems; overlong ones are truncated.

    Args:
        files: Image files.
        output: Output folder.

    Raises:
        ValueError: If an output would overwrite an image.

    Example:
        >>> [path.name for path in overlay_paths([Path("a/cat.jpg"), Path("b/cat.jpg")], Path("found"))]
        ['cat.png', 'cat-2.png']
    """
    taken: set[str] = set()
    paths = []
    for file in files:
        stem = (
            os.fsencode(file.stem)[:_LONGEST].decode("utf-8", "ignore") if len(os.fsencode(file.stem)) > _LONGEST else file.stem
        )
        name, number = stem, 1
        while name.casefold() in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.casefold())
        paths.append(output / f"{name}.png")
    if lost := same_file(paths, files):
        raise ValueError(f"{lost} is one of the images, and its picture would take its place: choose another --output")
    return paths


def side_by_side(titles: Sequence[str], rows: Sequence[Sequence[Image.Image]], path: Path) -> None:
    """Write a grid of pictures, such as truth and detections side by side, to a PNG file.

    Args:
        titles: One per column.
        rows: Pictures of any sizes, one per column.
        path: Output file.
    """
    font = ImageFont.load_default(_TITLE)
    widths = [max(row[column].width for row in rows) for column in range(len(titles))]
    heights = [max(picture.height for picture in row) for row in rows]
    top = _GAP + _TITLE
    sheet = Image.new("RGB", (sum(widths) + _GAP * (len(widths) + 1), top + sum(heights) + _GAP * (len(heights) + 1)), "white")
    for column, title in enumerate(titles):
        left = _GAP + sum(widths[:column]) + _GAP * column
        ImageDraw.Draw(sheet).text((left, _GAP), title, font=font, fill="black")
        for number, row in enumerate(rows):
            sheet.paste(row[column], (left, top + _GAP + sum(heights[:number]) + _GAP * number))
    write_png(path, sheet)
