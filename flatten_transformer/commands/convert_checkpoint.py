"""`flatten convert-checkpoint`."""

from flatten_transformer.models.files import convert_checkpoint

__all__ = ["convert_checkpoint"]
