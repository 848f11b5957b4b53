"""Scenes by the handful, where data modules would make a thousand."""

from functools import partial
from pathlib import Path

import pytest

from flatten_transformer.data.scenes import SceneSettings, write_scenes
from flatten_transformer.tasks.detection import data as coco_data
from flatten_transformer.tasks.segmentation import data as segmentation_data


def few_scenes(folder: Path, monkeypatch: pytest.MonkeyPatch, count: int = 16) -> Path:
    """Have data modules make so many scenes to learn from, and two to judge by; return the folder they are to be told."""
    few = SceneSettings(train=count, val=2, test=2)
    for module in (coco_data, segmentation_data):
        monkeypatch.setattr(module, "write_scenes", partial(write_scenes, settings=few))
    return folder
