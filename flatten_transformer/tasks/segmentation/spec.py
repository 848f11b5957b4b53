"""Components of semantic segmentation."""

from flatten_transformer.tasks.registry import TaskSpec
from flatten_transformer.tasks.segmentation.data import SegmentationData
from flatten_transformer.tasks.segmentation.model import build_segmenter
from flatten_transformer.tasks.segmentation.predict import predict_files
from flatten_transformer.tasks.segmentation.preprocessing import SegmentationPreprocessing
from flatten_transformer.tasks.segmentation.task import SegmentationTask

spec = TaskSpec(
    task=SegmentationTask,
    data=SegmentationData,
    build=build_segmenter,
    preprocessing=SegmentationPreprocessing,
    monitor="val/miou",
    does="segments images",
    options=("output",),
    predict=predict_files,
)
