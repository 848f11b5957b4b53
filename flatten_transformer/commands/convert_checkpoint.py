"""`flatten convert-checkpoint`."""

from flatten_transformer.models.read_weights import convert_checkpoint

__all__ = ["convert_checkpoint"]
