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
from flatten_transformer.utils.picture_style import COLOURS, Colour

_GAP = 8  # pixels between pictures
_LONGEST = 240  # bytes of a file name; file systems allow 255 with suffix and number
_TITLE = 18  # font size of column titles, in pixels
_READABLE = 384  # longer side of an enlarged image, in pixels
_PIXELATED = 64  # images up to this side show their pixels when enlarged, others are smoothed


def colour_of(label: int) -> Colour:
    """Return the colour of a class.

    Example:
        >>> colour_of(0) == colour_of(7)
        True
    """
    return COLOURS[label % len(COLOURS)]


def readable_scale(image: Image.Image) -> int:
    """Return the factor that makes an image large enough for captions, 1 if it is.

    Example:
        >>> [readable_scale(Image.new("L", size)) for size in ((8, 8), (128, 96), (640, 480))]
        [48, 3, 1]
    """
    return max(1, round(_READABLE / max(image.size)))


def enlarge(image: Image.Image, scale: int) -> Image.Image:
    """Return an image in colour, ``scale`` times as large: up to 64 pixels as squares, larger ones smoothed.

    Example:
        >>> enlarge(Image.new("L", (8, 6)), 4).size
        (32, 24)
    """
    image = image.convert("RGB")
    small = max(image.size) <= _PIXELATED
    method = Image.Resampling.NEAREST if small else Image.Resampling.BICUBIC
    return image if scale == 1 else image.resize((scale * image.width, scale * image.height), method)


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
    size = max(11, max(image.size) // 45)
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


def contact_sheet(pictures: Sequence[Image.Image], captions: Sequence[str]) -> Image.Image:
    """Return pictures in rows, each with a caption below.

    Args:
        pictures: One or more, of any sizes.
        captions: One per picture; cut where they are wider than it.

    Example:
        >>> contact_sheet([Image.new("RGB", (30, 20))] * 5, [""] * 5).size
        (160, 64)
    """
    fonts, line = FallbackFonts(captions), 20 if any(captions) else 0
    width, height = max(each.width for each in pictures), max(each.height for each in pictures) + line
    columns = min(4, len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (_GAP + (_GAP + width) * columns, (_GAP + height) * rows + _GAP), "white")
    for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left, top = _GAP + number % columns * (width + _GAP), _GAP + number // columns * (height + _GAP)
        below = Image.new("RGB", (width, line), "white")
        fonts.draw(ImageDraw.Draw(below), (0, 14), fonts.legible(caption), 13, "black")
        sheet.paste(picture, (left, top))
        sheet.paste(below, (left, top + picture.height))
    return sheet


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
