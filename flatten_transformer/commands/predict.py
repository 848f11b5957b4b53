"""`flatten predict`: run a trained model on image files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flatten_transformer.data.image_folder import SUFFIXES, find_images
from flatten_transformer.data.reading import OnBadImage
from flatten_transformer.tasks.model_file import load_model
from flatten_transformer.tasks.registry import TaskName, task_spec
from flatten_transformer.utils.atomic_file import check_outputs
from flatten_transformer.utils.stopping import telling_what_is_kept


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
    """Classify, detect or segment image files with a trained model; its file says which.

    Args:
        images: Image files (PNG, JPEG, WebP, TIFF, AVIF and so on), or folders, with all images in them.
        checkpoint: A model.safetensors written by training.
        task: Task the model must have; by default any.
        top_k: Classes per image that a classifier prints, most probable first; by default 3.
        csv: File for a classifier's table of file, class and probability, instead of printing.
        output: Folder for a detector's or segmenter's files; by default predictions.
        threshold: Lowest score of a detection, in 0 … 1; by default 0.5.
        on_bad_image: skip: name unusable images, continue, and exit with status 1; raise: stop at the first. Earlier
            results are kept either way.

    Raises:
        FileNotFoundError: If a file is missing.
        UnfinishedError: At the end, if images were skipped; all others are done.
        ValueError: If no image can be used, a folder holds none, an output would overwrite an image or the model, or an
            option is out of range or not for this model.
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
    if unknown := [name for name in given if name not in spec.options]:
        raise ValueError(f"the model in {checkpoint} {spec.does} and takes no --{unknown[0]}: leave it out")
    with telling_what_is_kept(lambda: "what is finished is kept; the same command begins with the first image again"):
        spec.predict(model, info, files, **given, on_bad_image=on_bad_image, inputs=[checkpoint])


def expand(images: Sequence[Path]) -> list[Path]:
    """Return image files, with folders replaced by the images in them, recursive and sorted.

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
        paths = find_images(path) if path.is_dir() else [path]
        if not paths:
            raise ValueError(f"{path} holds no image ({', '.join(SUFFIXES)}): give it a folder of images, or image files")
        files += paths
    return files
