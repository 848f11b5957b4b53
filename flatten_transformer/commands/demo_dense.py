"""`flatten demo-dense`: find digits on photographs by a small FLatten Mask R-CNN and a FLatten Semantic FPN."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from flatten_transformer.commands.demo import predict
from flatten_transformer.commands.demo_runs import Run, run_recipes
from flatten_transformer.models.cost import count_parameters
from flatten_transformer.tasks.detection.plots import draw_detections, draw_truth
from flatten_transformer.tasks.overlays import side_by_side
from flatten_transformer.tasks.segmentation.plots import draw_comparison
from flatten_transformer.utils.atomic_file import write_png

RECIPES = {"Mask R-CNN": "scenes/mask_rcnn_flatten_pvt_v2", "Semantic FPN": "scenes/semantic_fpn_flatten_pvt_v2"}
_FIGURES = {"test/box_ap50": "AP50 of boxes", "test/mask_ap50": "AP50 of masks", "test/miou": "mIoU", "test/macc": "mAcc"}
_TITLES = ("objects: truth", "objects found by Mask R-CNN", "pixels: truth", "pixels found by Semantic FPN")
_SCALE = 3  # enlargement of the pictures


def demo_dense(scenes: int = 4, max_epochs: int | None = None, resume: bool = True) -> None:
    """Train a small Mask R-CNN and a small Semantic FPN on scenes of handwritten digits, test them, and draw their results.

    Args:
        scenes: Number of test scenes in the picture.
        max_epochs: Epochs of both runs, instead of the recipes'.
        resume: Take trainings that an earlier start with the same options, versions and code has finished, and go on with one
            that was stopped; false trains anew, into other folders.
    """
    console = Console()
    detector, segmenter = run_recipes(console, RECIPES, max_epochs, resume=resume).values()
    console.print(_results(detector, segmenter))
    folder = segmenter.model_file.parent
    draw_scenes(detector, segmenter, scenes, folder / "scenes.png")
    console.print(f"Truth and findings, objects on the left, pixels on the right: {folder / 'scenes.png'}", soft_wrap=True)
    image = folder / "test_scene_0.png"
    write_png(image, detector.data.image("test", 0))
    for run in (detector, segmenter):
        predict(console, image, run.model_file, "--output", str(run.model_file.parent / "predictions"))


def _results(*runs: Run) -> Table:
    table = Table("model", title="Digits on photographs: test scenes of digits and backgrounds that no training saw")
    for heading in (*_FIGURES.values(), "parameters", "training time"):
        table.add_column(heading, justify="right")
    for name, run in zip(RECIPES, runs, strict=True):
        figures = (f"{run.metrics[key]:.2f}" if key in run.metrics else "" for key in _FIGURES)
        table.add_row(name, *figures, f"{count_parameters(run.model):,}", run.training_time)
    return table


@torch.inference_mode()
def draw_scenes(detector: Run, segmenter: Run, count: int, path: Path) -> None:
    """Draw the first test scenes, one per row: true and detected objects, true and predicted pixel classes.

    Args:
        detector: Detection run.
        segmenter: Segmentation run.
        count: Number of scenes.
        path: PNG file.
    """
    rows = [_row(detector, segmenter, index) for index in range(min(count, segmenter.data.count("test")))]
    side_by_side(_TITLES, rows, path)


def _row(detector: Run, segmenter: Run, index: int) -> list[Image.Image]:
    image, names = detector.data.image("test", index), detector.data.class_names
    detections = detector.task([detector.data.preprocessing(image)])[0]
    truth = draw_truth(image, detector.data.entry("test", index), names, _SCALE)
    mask = segmenter.data.mask("test", index)
    classes = segmenter.task.classes(segmenter.data.preprocessing(image), *mask.shape)
    pixels = draw_comparison(image, mask, classes, segmenter.data.class_names)
    return [truth, draw_detections(image, detections, names, threshold=0.5, scale=_SCALE), *pixels]
