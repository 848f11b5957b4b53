"""What a trained segmenter takes each pixel of image files for: as values, as masks, and as pictures."""

# K classes.

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from rich.markup import escape
from torch import Tensor, nn

from flatten_transformer.atomic_file import write_atomically, write_png
from flatten_transformer.data.preprocessing import read_image
from flatten_transformer.tasks.model_file import ModelInfo, seeing
from flatten_transformer.tasks.overlays import overlay_paths
from flatten_transformer.tasks.prediction import patience_bar
from flatten_transformer.tasks.segmentation.inference import class_map, image_logits
from flatten_transformer.tasks.segmentation.pictures import draw_overlay, mask_image


def segment(model: nn.Module, info: ModelInfo, images: Sequence[Path | Image.Image]) -> list[Tensor]:
    """Return the number of the class of each pixel, ``[height, width]`` in the size of the image, for each image.

    Args:
        model: From :func:`load_model`.
        info: From :func:`load_model`; ``info.class_names`` has the name of each number.
        images: Image files, or images that are open already.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is not an image.
    """
    return [_segment_one(model, info, image if isinstance(image, Image.Image) else read_image(image)) for image in images]


def predict_files(model: nn.Module, info: ModelInfo, files: Sequence[Path], output: Path = Path("predictions")) -> None:
    """Write what a segmenter takes each pixel for into a folder.

    ``masks/<stem>.png`` holds the number of the class of each pixel, with a palette, as a training reads them, and
    ``classes.txt`` the names in the order of their numbers; ``overlays/<stem>.png`` shows them over the image.

    Args:
        model: From :func:`load_model`.
        info: From :func:`load_model`.
        files: Image files.
        output: The folder; it is made if need be.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is not an image, or a picture would take the place of an image.
    """
    masks, overlays = overlay_paths(files, output / "masks"), overlay_paths(files, output / "overlays")
    write_atomically(output / "classes.txt", ("\n".join(info.class_names) + "\n").encode())
    with patience_bar(len(files)) as advance:
        for file, mask, overlay in zip(files, masks, overlays, strict=True):
            image = read_image(file)
            classes = _segment_one(model, info, image)
            write_png(mask, mask_image(classes, len(info.class_names)))
            write_png(overlay, draw_overlay(image, classes, info.class_names))
            advance()
    count = f"{len(files)} image{'s' * (len(files) != 1)}"
    Console().print(f"Masks and overlays of {count} are in {escape(str(output))}", soft_wrap=True)


@torch.inference_mode()
def _segment_one(model: nn.Module, info: ModelInfo, image: Image.Image) -> Tensor:
    pixels = info.preprocessing(image)  # [C, h, w], resized
    with seeing(info):
        logits = image_logits(model, pixels, window=info.preprocessing.window, stride=info.preprocessing.stride)
    return class_map(logits, image.height, image.width)
