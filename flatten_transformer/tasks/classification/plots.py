"""Plots of the confusion matrix and of misclassified images."""

# K classes.

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from rich.cells import cell_len
from torch import Tensor

from flatten_transformer.utils.atomic_file import write_figure
from flatten_transformer.utils.font_fallback import FallbackFonts
from flatten_transformer.utils.picture_style import new_figure, styled

_LARGEST = 40  # classes in one plot
_TITLE = 30  # characters above a small image


def draw_confusion(matrix: Tensor, class_names: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix to a PNG file; with many classes, only those with the most errors.

    Args:
        matrix: ``[K, K]``, images by true class (row) and predicted class (column).
        class_names: K names; long ones are truncated.
        path: Output file.
    """
    chosen = most_confused(matrix, _LARGEST)
    shown = matrix[chosen][:, chosen].cpu()
    shares = shown / matrix.sum(1)[chosen].cpu().clamp_min(1)[:, None]
    fonts = FallbackFonts([class_names[index] for index in chosen])
    names = [fonts.plot(class_names[index]) for index in chosen]
    side = 2.5 + 0.32 * len(names) + 0.1 * max(0, max(map(cell_len, names)) - 12)  # room for long names
    with styled(), fonts.styled():
        figure = new_figure(side + 1, side)
        axis = figure.subplots()
        heat = axis.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
        for row, column in shown.nonzero().tolist():
            color = "white" if shares[row, column] > 0.5 else "black"
            axis.text(column, row, f"{int(shown[row, column])}", ha="center", va="center", fontsize=7, color=color)
        left_out = f" ({len(names)} of {len(class_names)} classes)" if len(names) < len(class_names) else ""
        axis.set(title=f"validation images{left_out}", xlabel="taken for", ylabel="class")
        axis.spines[:].set_visible(True)
        axis.set_xticks(range(len(names)), names, rotation=90 if max(map(cell_len, names)) > 2 else 0)
        axis.set_yticks(range(len(names)), names)
        figure.colorbar(heat, ax=axis, shrink=0.6, label="share of the images of a class")
        write_figure(path, figure)


def most_confused(matrix: Tensor, limit: int) -> list[int]:
    """Return the ``limit`` classes with the most errors, in class order.

    Args:
        matrix: ``[K, K]``, as for :func:`draw_confusion`.
        limit: Maximum number of classes.

    Example:
        >>> most_confused(torch.tensor([[5, 0, 0], [2, 3, 0], [0, 1, 4]]), 2)
        [0, 1]
    """
    wrong = matrix - torch.diag(matrix.diag())
    return sorted((wrong.sum(0) + wrong.sum(1)).topk(min(limit, len(matrix))).indices.tolist())


def draw_images(images: Sequence[Image.Image], titles: Sequence[str], title: str, path: Path) -> None:
    """Draw a grid of titled images to a PNG file.

    Args:
        images: Images of any size and mode.
        titles: Title of each image; may have several lines, which may be truncated.
        title: Title of the figure.
        path: Output file.
    """
    columns = min(6, len(images))
    rows = -(-len(images) // columns)
    fonts = FallbackFonts([line for below in titles for line in below.split("\n")])
    with styled(), fonts.styled():
        figure = new_figure(2.2 * columns, 2.6 * rows + 0.4)
        figure.suptitle(title)
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axis in axes:
            axis.axis("off")
        for axis, image, below in zip(axes, images, titles, strict=False):
            axis.imshow(image.convert("RGB"), interpolation="nearest" if max(image.size) <= 64 else "antialiased")
            lines = [fonts.plot(line, _TITLE) for line in below.split("\n")]
            axis.set_title("\n".join(lines), fontsize=8, y=1)  # looking for a free y takes half of the time
        write_figure(path, figure)
