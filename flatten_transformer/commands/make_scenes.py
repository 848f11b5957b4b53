"""`flatten make-scenes`."""

from flatten_transformer.data.scenes import make_scenes

__all__ = ["make_scenes"]
