"""Segment image files; return class maps, or write masks and overlays."""

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
    """Return the class map of each image, ``[height, width]`` in the size of the image.

    Args:
        model: From :func:`load_model`.
        info: From :func:`load_model`; ``info.class_names`` names the classes.
        images: Image files or open images.

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
    """Write class maps into a folder, image by image.

    ``masks/<stem>.png`` holds class numbers, with a palette, in the format read for training, and ``classes.txt`` the class
    names in order; ``overlays/<stem>.png`` shows the classes over the image.

    Args:
        model: From :func:`load_model`.
        info: From :func:`load_model`.
        files: Image files.
        output: Output folder; created if missing.
        on_bad_image: ``"skip"`` continues without an unusable image; ``"raise"`` stops there.
        inputs: Further files that must not be overwritten.

    Raises:
        FileNotFoundError: If a file is missing.
        UnfinishedError: At the end, if images were skipped.
        ValueError: If no image is usable, or an output would overwrite an input.
    """
    masks, overlays = overlay_paths(files, output / "masks"), overlay_paths(files, output / "overlays")
    names = output / "classes.txt"
    check_outputs([names, *masks, *overlays], [*files, *inputs])
    done = 0

    def predict(file: Path) -> tuple[Image.Image, Image.Image]:
        image = read_image(file)
        classes = _segment_one(model, info, image)
        return mask_image(classes, len(info.class_names)), draw_overlay(image, classes, info.class_names)

    def handle(number: int, result: tuple[Image.Image, Image.Image]) -> None:
        nonlocal done
        if not done:
            write_atomically(names, "".join(f"{printable(name)}\n" for name in info.class_names).encode())
        write_png(masks[number], result[0])
        write_png(overlays[number], result[1])
        done += 1

    try:
        skipped = run_on_files(files, predict, handle, on_bad_image)
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
