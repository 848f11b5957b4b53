"""FLatten models; importing this package registers them with timm."""

from flatten_transformer.models.flatten_deit import FlattenVisionTransformer

__all__ = ["FlattenVisionTransformer"]
