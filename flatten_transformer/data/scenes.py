"""Synthetic scenes of handwritten digits on photographs: boxes, instance masks and semantic maps, from a seed.

scikit-learn's digits, enlarged and coloured, partly cover each other on crops of its two photographs. They are written as
COCO JSON with run-length masks and as PNG masks of class numbers.
"""

# n instances of a scene.

from __future__ import annotations

import colorsys
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flatten_transformer.data import digits
from flatten_transformer.data.source import Split
from flatten_transformer.utils.atomic_file import draft_of, naming
from flatten_transformer.utils.progress import track

SCENES = Path("runs", "data", "scenes")  # default folder of the data modules; runs/scenes holds runs of scenes/*
CLASS_NAMES = ("background", *digits.CLASS_NAMES)  # of the semantic maps; detection has the digits alone
# Columns (of 640) of the photographs used as background by each split, so that splits share no background.
_COLUMNS: Mapping[Split, tuple[int, int]] = {"train": (0, 352), "val": (352, 480), "test": (480, 640)}
_KEPT = 0.8  # least visible share of each digit
_TRIES = 20  # at placing a digit
_SHARPNESS = 3  # of the edges of an enlarged digit
_CONTRAST = 100  # least distance of a colour to its background, in 0 … 255
Bits = NDArray[np.bool_]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class SceneSettings:
    """Settings of a folder of scenes; equal settings give equal scenes.

    Args:
        train: Training scenes.
        val: Validation scenes.
        test: Test scenes.
        height: Scene height in pixels.
        width: Scene width in pixels.
        most: Maximum number of digits in a scene; at least one.
        seed: Random seed.

    Raises:
        ValueError: If a number is out of range.
    """

    train: int = 1000
    val: int = 50
    test: int = 100
    height: int = 96
    width: int = 128
    most: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for name, minimum in (("train", 1), ("val", 1), ("test", 1), ("height", 32), ("width", 32), ("most", 1), ("seed", 0)):
            if getattr(self, name) < minimum:
                raise ValueError(f"{name} must be at least {minimum}, got {getattr(self, name)}")


class Scene(NamedTuple):
    """A scene with its masks and labels."""

    image: Pixels  # [height, width, 3]
    masks: Bits  # [n, height, width]: visible part of each digit, disjoint
    labels: list[int]  # the digits, n numbers from 0 to 9

    def semantic_map(self) -> Pixels:
        """Return the class of each pixel, ``[height, width]``: 0 for the background, 1 + digit elsewhere."""
        classes = np.zeros(self.image.shape[:2], np.uint8)
        for mask, label in zip(self.masks, self.labels, strict=True):
            classes[mask] = 1 + label
        return classes


def draw_scene(split: Split, index: int, settings: SceneSettings = SceneSettings()) -> Scene:
    """Draw one scene, which depends on seed, split and index alone.

    Args:
        split: Determines the digits and the part of the photographs.
        index: Index of the scene in its split.
        settings: Size, seed and number of digits.

    Example:
        >>> scene = draw_scene("test", 0)
        >>> scene.image.shape, scene.masks.shape[1:] == scene.semantic_map().shape
        ((96, 128, 3), True)
    """
    rng = np.random.default_rng([settings.seed, list(_COLUMNS).index(split), index])
    image = _background(rng, split, settings)
    source = _digits(split)
    masks: list[Bits] = []
    whole: list[int] = []  # pixels of each digit before occlusion
    labels: list[int] = []
    for _ in range(rng.integers(1, settings.most + 1)):
        small, label = source[int(rng.integers(len(source)))]
        for _ in range(_TRIES):
            alpha = _placed(rng, small, settings)
            mask = alpha > 0.5
            visible = [earlier & ~mask for earlier in masks]
            if all(part.sum() >= _KEPT * size for part, size in zip(visible, whole, strict=True)):
                image += alpha[:, :, None] * (_colour(rng, image[mask].mean(0)) - image)
                masks, whole, labels = [*visible, mask], [*whole, int(mask.sum())], [*labels, label]
                break
    return Scene(np.rint(image).astype(np.uint8), np.stack(masks), labels)


@cache
def _photographs() -> tuple[Image.Image, ...]:
    from sklearn.datasets import load_sample_images  # slow to import, not needed for inference

    return tuple(Image.fromarray(pixels) for pixels in load_sample_images().images)


@cache
def _digits(split: Split) -> digits.Digits:
    return digits.Digits(split)


def _background(rng: np.random.Generator, split: Split, settings: SceneSettings) -> NDArray[np.float64]:
    """Return a crop of a photograph, randomly mirrored, ``[height, width, 3]`` in 0 … 255."""
    photograph = _photographs()[rng.integers(2)]
    left, right = _COLUMNS[split]
    largest = min((right - left) / settings.width, photograph.height / settings.height)
    scale = largest * rng.uniform(0.6, 1.0)
    width, height = scale * settings.width, scale * settings.height
    x, y = rng.uniform(left, right - width), rng.uniform(0, photograph.height - height)
    size = (settings.width, settings.height)
    crop = photograph.resize(size, Image.Resampling.BICUBIC, box=(x, y, x + width, y + height))
    pixels = np.asarray(crop, np.float64)
    return pixels[:, ::-1].copy() if rng.random() < 0.5 else pixels.copy()


def _placed(rng: np.random.Generator, digit: Image.Image, settings: SceneSettings) -> NDArray[np.float64]:
    """Enlarge and place a digit at random; return its alpha, ``[height, width]`` in 0 … 1."""
    shorter = min(settings.height, settings.width)
    side = int(rng.integers(shorter * 3 // 10, shorter * 11 // 20))
    x, y = (int(rng.integers(0, length - side + 1)) for length in (settings.width, settings.height))
    alpha = np.zeros((settings.height, settings.width))
    large = digit.resize((side, side), Image.Resampling.BICUBIC)
    alpha[y : y + side, x : x + side] = np.asarray(large, np.float64) / 255
    return (0.5 + _SHARPNESS * (alpha - 0.5)).clip(0, 1)


def _colour(rng: np.random.Generator, behind: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return white or a bright colour that contrasts with the mean of the background; ``[3]`` in 0 … 255."""
    while True:
        saturation = 0.0 if rng.random() < 0.3 else rng.uniform(0.5, 1.0)
        colour = 255 * np.array(colorsys.hsv_to_rgb(rng.random(), saturation, rng.uniform(0.8, 1.0)))
        if np.linalg.norm(colour - behind) > _CONTRAST:
            return colour


def write_scenes(folder: Path, settings: SceneSettings = SceneSettings()) -> None:
    """Write scenes into a folder atomically, unless it already holds the same scenes.

    The folder then holds ``images/<split>/``, ``masks/<split>/`` with PNGs of class numbers, ``classes.txt`` with the class
    names, and ``annotations/instances_<split>.json`` in COCO's format.

    Args:
        folder: Output folder; new, or holding scenes of the same settings.
        settings: Size, number and seed.

    Raises:
        ValueError: If the folder holds something else.

    Example:
        >>> folder = getfixture("tmp_path") / "scenes"
        >>> write_scenes(folder, SceneSettings(train=2, val=1, test=1))
        >>> sorted(path.name for path in folder.iterdir())
        ['annotations', 'classes.txt', 'images', 'masks', 'scenes.json']
    """
    made_from = json.dumps(asdict(settings), indent=1)
    if _is_there(folder, made_from):
        return
    draft = draft_of(folder)
    try:
        with naming(folder):
            draft.mkdir(parents=True)
            for split in _COLUMNS:
                _write_split(draft, split, settings)
            (draft / "classes.txt").write_text("\n".join(CLASS_NAMES) + "\n", "utf-8")
            (draft / "scenes.json").write_text(made_from, "utf-8")
            draft.rename(folder)
    except OSError:
        if not _is_there(folder, made_from):  # another process may have been faster
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _is_there(folder: Path, made_from: str) -> bool:
    note = folder / "scenes.json"
    if folder.exists() and not (note.is_file() and note.read_text("utf-8") == made_from):
        raise ValueError(f"{folder} is there already and holds no scenes of these settings: name another folder, or remove it")
    return folder.exists()


def _write_split(folder: Path, split: Split, settings: SceneSettings) -> None:
    for kind in ("images", "masks"):
        (folder / kind / split).mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    with track(range(getattr(settings, split)), lambda _: f"scenes of {split}", quick=True) as indices:
        for index in indices:
            scene, name = draw_scene(split, index, settings), f"{index:06}.png"
            Image.fromarray(scene.image).save(folder / "images" / split / name)
            Image.fromarray(scene.semantic_map()).save(folder / "masks" / split / name)
            images.append({"id": index + 1, "file_name": name, "height": settings.height, "width": settings.width})
            for mask, label in zip(scene.masks, scene.labels, strict=True):
                annotations.append({"id": len(annotations) + 1, "image_id": index + 1, **_annotation(mask, label)})
    categories = [{"id": 1 + digit, "name": name} for digit, name in enumerate(digits.CLASS_NAMES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content), "utf-8")


def _annotation(mask: Bits, label: int) -> dict[str, Any]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y = int(columns[0]), int(rows[0])
    return {
        "category_id": 1 + label,
        "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
        "area": int(mask.sum()),
        "iscrowd": 0,
        "segmentation": {"size": list(mask.shape), "counts": run_lengths(mask)},
    }


def run_lengths(mask: Bits) -> list[int]:
    """Return COCO's run lengths of a mask, ``[height, width]``: column-major, starting with a run of zeros.

    Example:
        >>> run_lengths(np.array([[True, False], [True, True]]))
        [0, 2, 1, 1]
    """
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs: list[int] = np.diff([0, *changes, flat.size]).tolist()
    return [0, *runs] if flat[0] else runs


def make_scenes(
    folder: Path,
    /,
    train: int = 1000,
    val: int = 50,
    test: int = 100,
    height: int = 96,
    width: int = 128,
    most: int = 5,
    seed: int = 0,
) -> None:
    """Write scenes of handwritten digits on photographs as COCO JSON and PNG masks, with no download.

    Args:
        folder: Output folder; new, or holding scenes of the same settings.
        train: Training scenes.
        val: Validation scenes.
        test: Test scenes; their digits and backgrounds are in no other scene.
        height: Scene height in pixels.
        width: Scene width in pixels.
        most: Maximum number of digits in a scene.
        seed: Random seed.

    Raises:
        ValueError: If a number is out of range, or the folder holds something else.
    """
    write_scenes(folder, SceneSettings(train, val, test, height, width, most, seed))
