"""The parts of semantic segmentation."""

from flatten_transformer.data.segmentation_data import SegmentationData
from flatten_transformer.data.segmentation_preprocessing import SegmentationPreprocessing
from flatten_transformer.tasks.kinds import TaskSpec
from flatten_transformer.tasks.segmentation.build import build_segmenter
from flatten_transformer.tasks.segmentation.prediction import predict_files
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
