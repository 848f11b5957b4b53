"""Pictures of what a classifier confuses."""

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

_LARGEST = 40  # classes that can be told apart in one picture
_TITLE = 30  # characters above a small image


def draw_confusion(matrix: Tensor, class_names: Sequence[str], path: Path) -> None:
    """Draw which classes are taken for which into a PNG file; of many classes, those with the most mistakes.

    Args:
        matrix: ``[K, K]``, how many images of the class of the row are taken for that of the column.
        class_names: K names, of which long ones are cut.
        path: Where the PNG goes.
    """
    from matplotlib.figure import Figure

    chosen = most_confused(matrix, _LARGEST)
    shown = matrix[chosen][:, chosen].cpu()
    shares = shown / matrix.sum(1)[chosen].cpu().clamp_min(1)[:, None]
    fonts = FallbackFonts([class_names[index] for index in chosen])
    names = [fonts.plot(class_names[index]) for index in chosen]
    side = 2.5 + 0.32 * len(names) + 0.1 * max(0, max(map(cell_len, names)) - 12)  # room for long names
    with fonts.styled():
        figure = Figure(figsize=(side + 1, side), layout="constrained")
        axis = figure.subplots()
        heat = axis.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
        for row, column in shown.nonzero().tolist():
            color = "white" if shares[row, column] > 0.5 else "black"
            axis.text(column, row, f"{int(shown[row, column])}", ha="center", va="center", fontsize=7, color=color)
        left_out = f" ({len(names)} of {len(class_names)} classes)" if len(names) < len(class_names) else ""
        axis.set(title=f"validation images{left_out}", xlabel="taken for", ylabel="class")
        axis.set_xticks(range(len(names)), names, rotation=90)
        axis.set_yticks(range(len(names)), names)
        figure.colorbar(heat, ax=axis, shrink=0.6, label="share of the images of a class")
        write_figure(path, figure)


def most_confused(matrix: Tensor, most: int) -> list[int]:
    """Return at most ``most`` classes in their order, those with the most mistakes.

    Args:
        matrix: ``[K, K]``, as for :func:`draw_confusion`.
        most: How many.

    Example:
        >>> most_confused(torch.tensor([[5, 0, 0], [2, 3, 0], [0, 1, 4]]), 2)
        [0, 1]
    """
    wrong = matrix - torch.diag(matrix.diag())
    return sorted((wrong.sum(0) + wrong.sum(1)).topk(min(most, len(matrix))).indices.tolist())


def draw_images(images: Sequence[Image.Image], titles: Sequence[str], title: str, path: Path) -> None:
    """Draw images in a grid, each under its title, into a PNG file.

    Args:
        images: Of any size and mode.
        titles: One for each, of one line or more, each of which may be cut.
        title: Of the picture.
        path: Where the PNG goes.
    """
    from matplotlib.figure import Figure

    columns = min(6, len(images))
    rows = -(-len(images) // columns)
    fonts = FallbackFonts([line for below in titles for line in below.split("\n")])
    with fonts.styled():
        figure = Figure(figsize=(2.2 * columns, 2.6 * rows + 0.4), layout="constrained")
        figure.suptitle(title)
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axis in axes:
            axis.axis("off")
        for axis, image, below in zip(axes, images, titles, strict=False):
            axis.imshow(image.convert("RGB"))
            axis.set_title("\n".join(fonts.plot(line, _TITLE) for line in below.split("\n")), fontsize=8)
        write_figure(path, figure)
