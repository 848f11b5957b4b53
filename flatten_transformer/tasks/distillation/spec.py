"""Components of distillation."""

from flatten_transformer.tasks.classification.model import build_model
from flatten_transformer.tasks.classification.predict import predict_files
from flatten_transformer.tasks.classification.preprocessing import Preprocessing
from flatten_transformer.tasks.distillation.data import DistillationData
from flatten_transformer.tasks.distillation.task import DistillationTask
from flatten_transformer.tasks.registry import TaskSpec

spec = TaskSpec(
    task=DistillationTask,
    data=DistillationData,
    build=build_model,
    preprocessing=Preprocessing,
    monitor="val/agreement",
    does="classifies images as its teacher does",
    options=("top_k", "csv"),
    predict=predict_files,
)
