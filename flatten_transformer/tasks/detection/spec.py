"""Components of object detection."""

from flatten_transformer.tasks.detection.data import CocoData
from flatten_transformer.tasks.detection.model import build_detector
from flatten_transformer.tasks.detection.predict import predict_files
from flatten_transformer.tasks.detection.preprocessing import DetectionPreprocessing
from flatten_transformer.tasks.detection.task import DetectionTask
from flatten_transformer.tasks.registry import TaskSpec

spec = TaskSpec(
    task=DetectionTask,
    data=CocoData,
    build=build_detector,
    preprocessing=DetectionPreprocessing,
    monitor="val/box_ap",
    does="detects objects",
    options=("output", "threshold"),
    predict=predict_files,
)
