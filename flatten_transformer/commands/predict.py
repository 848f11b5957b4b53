"""`flatten predict`."""

from flatten_transformer.tasks.prediction import predict

__all__ = ["predict"]
