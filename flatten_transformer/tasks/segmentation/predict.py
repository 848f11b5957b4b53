"""What a trained segmenter takes each pixel of image files for: as values, as masks, and as pictures."""

# K classes.

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from flatten_transformer.data.preprocessing import read_image
from flatten_transformer.data.reading import OnBadImage
from flatten_transformer.tasks.model_file import ModelInfo, forward_errors
from flatten_transformer.tasks.overlays import overlay_paths
from flatten_transformer.tasks.per_image import check_complete, count_images, run_on_files
from flatten_transformer.tasks.segmentation.inference import class_map, image_logits
from flatten_transformer.tasks.segmentation.plots import draw_overlay, mask_image
from flatten_transformer.utils.atomic_file import check_outputs, write_atomically, write_png
from flatten_transformer.utils.printable import printable
from flatten_transformer.utils.terminal import say


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


def predict_files(
    model: nn.Module,
    info: ModelInfo,
    files: Sequence[Path],
    output: Path = Path("predictions"),
    on_bad_image: OnBadImage = "skip",
    inputs: Sequence[Path] = (),
) -> None:
    """Write what a segmenter takes each pixel for into a folder, image by image.

    ``masks/<stem>.png`` holds the number of the class of each pixel, with a palette, as a training reads them, and
    ``classes.txt`` the names in the order of their numbers; ``overlays/<stem>.png`` shows them over the image.

    Args:
        model: From :func:`load_model`.
        info: From :func:`load_model`.
        files: Image files.
        output: The folder; it is made if need be.
        on_bad_image: ``"skip"`` goes on without an image that cannot be used; ``"raise"`` ends there.
        inputs: Further files that must stay as they are.

    Raises:
        FileNotFoundError: If a file is missing.
        UnfinishedError: At the end, if images were skipped.
        ValueError: If no image can be used, or something would be written over a file that is read.
    """
    masks, overlays = overlay_paths(files, output / "masks"), overlay_paths(files, output / "overlays")
    names = output / "classes.txt"
    check_outputs([names, *masks, *overlays], [*files, *inputs])
    done = 0

    def look(file: Path) -> tuple[Image.Image, Image.Image]:
        image = read_image(file)
        classes = _segment_one(model, info, image)
        return mask_image(classes, len(info.class_names)), draw_overlay(image, classes, info.class_names)

    def keep(number: int, found: tuple[Image.Image, Image.Image]) -> None:
        nonlocal done
        if not done:
            write_atomically(names, "".join(f"{printable(name)}\n" for name in info.class_names).encode())
        write_png(masks[number], found[0])
        write_png(overlays[number], found[1])
        done += 1

    try:
        skipped = run_on_files(files, look, keep, on_bad_image)
    finally:
        if done:
            say(f"Masks and overlays of {count_images(done)} are in {output}")
    check_complete(skipped, len(files))


@torch.inference_mode()
def _segment_one(model: nn.Module, info: ModelInfo, image: Image.Image) -> Tensor:
    pixels = info.preprocessing(image)  # [C, h, w], resized
    with forward_errors(info):
        logits = image_logits(model, pixels, window=info.preprocessing.window, stride=info.preprocessing.stride)
    return class_map(logits, image.height, image.width)
