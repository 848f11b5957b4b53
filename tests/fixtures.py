"""Folders of drawn images."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

DrawFolder = Callable[[Mapping[str, int]], Path]


@pytest.fixture
def draw_folder(tmp_path: Path) -> DrawFolder:
    """Draws as many images into each sub-folder as it is told, no two alike, and returns their folder."""

    def draw(counts: Mapping[str, int]) -> Path:
        root = tmp_path / "images"
        root.mkdir()
        for number, (folder, count) in enumerate(counts.items()):
            (root / folder).mkdir(parents=True)
            for index in range(count):
                Image.new("RGB", (12, 8), (10 * index, 40 * number, 99)).save(root / folder / f"{index:02}.png")
        return root

    return draw


@pytest.fixture
def mask_folder(tmp_path: Path) -> Path:
    """A folder of three training images with masks of two classes and of none, and one image for validation."""
    root = tmp_path / "photos"
    for split, count in (("train", 3), ("val", 1)):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (40, 30), (90 * index, 40, 99)).save(root / "images" / split / f"{index}.jpg")
            numbers = np.full((30, 40), 255, np.uint8)
            numbers[:10], numbers[10:25] = 0, 1
            Image.fromarray(numbers).save(root / "masks" / split / f"{index}.png")
    (root / "classes.txt").write_text("sky\nground\n")
    return root
