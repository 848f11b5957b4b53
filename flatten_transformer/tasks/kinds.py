"""The kinds of tasks, and where the parts of each are found; nothing of them is loaded before it is used."""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal["classify", "detect", "segment"]
_HERE = "flatten_transformer.tasks"
_DATA = "flatten_transformer.data"


class Parts(NamedTuple):
    """Where the parts of a kind of task are, as ``"module:name"``."""

    task: str  # a Task
    data: str  # a DataModule
    build: str  # a function of name, model_args, num_classes and in_chans that returns the module
    preprocessing: str  # a dataclass: what is done to an image first
    monitor: str  # not a place: the metric whose best checkpoint is kept, the higher the better


KINDS: dict[Kind, Parts] = {
    "classify": Parts(
        task=f"{_HERE}.classification.task:ClassificationTask",
        data=f"{_DATA}.image_data:ImageData",
        build=f"{_HERE}.classification.build:build_model",
        preprocessing=f"{_DATA}.preprocessing:Preprocessing",
        monitor="val/accuracy",
    ),
    "detect": Parts(
        task=f"{_HERE}.detection.task:DetectionTask",
        data=f"{_DATA}.coco_data:CocoData",
        build=f"{_HERE}.detection.build:build_detector",
        preprocessing=f"{_DATA}.detection_preprocessing:DetectionPreprocessing",
        monitor="val/box_ap",
    ),
    "segment": Parts(
        task=f"{_HERE}.segmentation.task:SegmentationTask",
        data=f"{_DATA}.segmentation_data:SegmentationData",
        build=f"{_HERE}.segmentation.build:build_segmenter",
        preprocessing=f"{_DATA}.segmentation_preprocessing:SegmentationPreprocessing",
        monitor="val/miou",
    ),
}
