"""Folders of drawn images."""

from collections.abc import Callable, Mapping
from pathlib import Path

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
