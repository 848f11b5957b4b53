"""`flatten predict`: what a trained model sees in image files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flatten_transformer.data.image_folder import SUFFIXES, find_images
from flatten_transformer.data.reading import OnBadImage
from flatten_transformer.tasks.model_file import load_model
from flatten_transformer.tasks.registry import TaskName, task_spec
from flatten_transformer.utils.atomic_file import check_outputs
from flatten_transformer.utils.stopping import stopped_like_ctrl_c


def predict(
    images: list[Path],
    checkpoint: Path,
    task: TaskName | None = None,
    top_k: int | None = None,
    csv: Path | None = None,
    output: Path | None = None,
    threshold: float | None = None,
    on_bad_image: OnBadImage = "skip",
) -> None:
    """Print or write what a trained model sees in image files; its file says whether it classifies, detects or segments.

    Args:
        images: Image files, PNG, JPEG, WebP, TIFF, AVIF and their like, or folders, of which all images are taken.
        checkpoint: The model.safetensors of a training.
        task: What the model must do; by default whatever it does.
        top_k: A classifier prints so many classes an image, the most probable first; by default 3.
        csv: A classifier writes a table of file, class and probability into this file instead of printing.
        output: A detector or segmenter writes into this folder; by default predictions.
        threshold: A detector leaves out what has a lower score, in 0 … 1; by default 0.5.
        on_bad_image: skip: name an image that cannot be used, go on with the others, and end with exit status 1; raise: end
            there. What was found before is kept either way.

    Raises:
        FileNotFoundError: If a file is missing.
        UnfinishedError: At the end, if images were skipped; all others are done.
        ValueError: If no image can be used, a folder holds none, an output would take the place of an image or of the model,
            or an option is out of range or not for this model.
    """
    files = expand(images)
    if missing := next((path for path in images if not path.exists()), None):
        raise FileNotFoundError(f"no image {missing}: check the path")
    if csv is not None and not csv.is_dir():
        check_outputs([csv], [*files, checkpoint])
    model, info = load_model(checkpoint)
    spec = task_spec(info.task)
    if task not in (None, info.task):
        raise ValueError(f"the model in {checkpoint} {spec.does}: leave --task {task} out, or give a model that does so")
    values: dict[str, Any] = {"top_k": top_k, "csv": csv, "output": output, "threshold": threshold}
    given = {name: value for name, value in values.items() if value is not None}
    if idle := [name for name in given if name not in spec.options]:
        raise ValueError(f"the model in {checkpoint} {spec.does} and takes no --{idle[0]}: leave it out")
    with stopped_like_ctrl_c():
        spec.predict(model, info, files, **given, on_bad_image=on_bad_image, inputs=[checkpoint])


def expand(images: Sequence[Path]) -> list[Path]:
    """Return image files, with the images in a folder, and in the folders in it, sorted, in its place.

    Args:
        images: Files and folders.

    Raises:
        ValueError: If a folder holds no image.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> (folder / "a.png").touch()
        >>> [path.name for path in expand([folder, Path("b.png")])]
        ['a.png', 'b.png']
    """
    files: list[Path] = []
    for path in images:
        found = find_images(path) if path.is_dir() else [path]
        if not found:
            raise ValueError(f"{path} holds no image ({', '.join(SUFFIXES)}): give it a folder of images, or image files")
        files += found
    return files
