"""A segmenter, scenes and a trainer small enough to train in tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from flatten_transformer.data import scenes
from flatten_transformer.tasks.segmentation.data import SegmentationData
from flatten_transformer.tasks.segmentation.task import SegmentationTask

PVT: dict[str, Any] = {"depths": [1, 1, 1, 1], "embed_dims": [16, 16, 32, 32], "num_heads": [1, 1, 2, 2], "img_size": 64}
TINY: dict[str, Any] = {"backbone": "flatten_pvt_v2_b0", "backbone_args": PVT, "decoder_channels": 128}
MakeSegmenter = Callable[..., SegmentationTask]
FitScenes = Callable[..., Trainer]


@pytest.fixture(scope="session")
def scene_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    scenes.write_scenes(folder, scenes.SceneSettings(train=4, val=2, test=2, height=64, width=64, most=2))
    return folder


@pytest.fixture(scope="session")
def make_segmenter() -> MakeSegmenter:
    def make(name: str = "semantic_fpn", **changes: Any) -> SegmentationTask:
        torch.manual_seed(0)
        arguments: dict[str, Any] = {"model_args": TINY, "num_classes": 11, "in_chans": 3}
        return SegmentationTask(name, **(arguments | changes))

    return make


@pytest.fixture(scope="session")
def fit_scenes(tmp_path_factory: pytest.TempPathFactory, scene_folder: Path) -> FitScenes:
    folder = tmp_path_factory.mktemp("runs")

    def run(task: SegmentationTask, *, still: bool = False, data: dict[str, Any] | None = None, **options: Any) -> Trainer:
        torch.manual_seed(0)
        trainer = Trainer(
            **({"max_epochs": 1} | options),
            default_root_dir=folder,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        same: dict[str, Any] = {"scale": (1.0, 1.0), "max_share": 1.0, "distortion": False} if still else {}
        settings: dict[str, Any] = {"root": scene_folder, "batch_size": 4, "crop_size": 64} | same | (data or {})
        trainer.fit(task, datamodule=SegmentationData("folder", **settings))
        return trainer

    return run
