"""FLatten models; importing this package registers them with timm."""

from flatten_transformer.models.attention_choice import AttentionOptions
from flatten_transformer.models.flatten_cswin import FlattenCSwinTransformer
from flatten_transformer.models.flatten_deit import FlattenVisionTransformer
from flatten_transformer.models.flatten_pvt import FlattenPyramidVisionTransformer
from flatten_transformer.models.flatten_pvt_v2 import FlattenPyramidVisionTransformerV2
from flatten_transformer.models.flatten_swin import FlattenSwinTransformer

__all__ = [
    "AttentionOptions",
    "FlattenCSwinTransformer",
    "FlattenPyramidVisionTransformer",
    "FlattenPyramidVisionTransformerV2",
    "FlattenSwinTransformer",
    "FlattenVisionTransformer",
]
