"""Components of image classification."""

from flatten_transformer.tasks.classification.data import ImageData
from flatten_transformer.tasks.classification.model import build_model
from flatten_transformer.tasks.classification.predict import predict_files
from flatten_transformer.tasks.classification.preprocessing import Preprocessing
from flatten_transformer.tasks.classification.task import ClassificationTask
from flatten_transformer.tasks.registry import TaskSpec

spec = TaskSpec(
    task=ClassificationTask,
    data=ImageData,
    build=build_model,
    preprocessing=Preprocessing,
    monitor="val/accuracy",
    does="classifies images",
    options=("top_k", "csv"),
    predict=predict_files,
)
