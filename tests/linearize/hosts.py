"""Small softmax Transformers of other libraries, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from flatten_transformer.linearize import linearize

SMALL: dict[str, Any] = {"img_size": 64, "depth": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 3}
DYNAMIC = {**SMALL, "dynamic_img_size": True}


class Host(NamedTuple):
    """A softmax model.

    Args:
        build: Makes it.
        shape: Shape of an input.
        other: Shape of an input with another grid; the same where the model takes no other.
        options: Arguments of linearize.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    other: tuple[int, ...]
    options: dict[str, Any] = {}  # noqa: RUF012

    def teacher(self) -> nn.Module:
        """Return the model in float64, with weights none of which is zero, in evaluation mode."""
        torch.manual_seed(0)
        model = self.build().double().eval()
        for parameter in model.parameters():
            if parameter.ndim < 2 or not parameter.any():  # biases, and the heads that timm begins at zero
                nn.init.normal_(parameter, std=0.2)
        for name, parameter in model.named_parameters():
            if name.endswith(("qkv.weight", "in_proj_weight", "q.weight", "kv.weight", "q_proj.weight", "k_proj.weight")):
                nn.init.normal_(parameter, std=0.5)  # attention that is far from uniform
            if name.endswith("relative_position_bias_table"):
                nn.init.zeros_(parameter)  # has no linear counterpart
        return model

    def student(self, teacher: nn.Module, *args: Any, **options: Any) -> nn.Module:
        """Return its linear form."""
        return linearize(teacher, *args, **{**self.options, **options})

    def inputs(self) -> tuple[Tensor, Tensor]:
        """Return two inputs, of two grids."""
        return torch.randn(self.shape, dtype=torch.float64), torch.randn(self.other, dtype=torch.float64)


def of_timm(name: str, side: int = 64, /, **args: Any) -> Host:
    """Return a model of timm at any size."""
    return Host(lambda: timm.create_model(name, **args), (2, 3, side, side), (2, 3, side // 2, side * 3 // 2))


def of_torchvision() -> Host:
    """Return torchvision's ViT, which has one size."""

    def build() -> nn.Module:
        return VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=3)

    return Host(build, (2, 3, 32, 32), (2, 3, 32, 32))


def of_torch() -> Host:
    """Return an encoder of sequences."""

    def build() -> nn.Module:
        layer = nn.TransformerEncoderLayer(d_model=32, nhead=2, dim_feedforward=64, dropout=0.0, batch_first=True)
        return nn.TransformerEncoder(layer, num_layers=2)

    return Host(build, (2, 15, 32), (2, 11, 32), {"grid_size": (15,), "num_prefix_tokens": 0})


def of_transformers(name: str, **args: Any) -> Host:
    """Return a vision model of Hugging Face transformers, at any size where it has the switch."""
    small: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    any_size = {} if "DINOv3" in name else {"interpolate_pos_encoding": True}

    def build() -> nn.Module:
        import transformers

        config = getattr(transformers, f"{name}Config")(**small, image_size=64, patch_size=16, **args)
        model = getattr(transformers, f"{name}Model")(config)
        return _Pooled(model, any_size)

    return Host(build, (2, 3, 64, 64), (2, 3, 32, 96))


class _Pooled(nn.Module):
    """A model of transformers that returns its last tokens."""

    def __init__(self, model: nn.Module, options: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.options = model, options

    def forward(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.model(images, **self.options).last_hidden_state
        return tokens


SWIN: dict[str, Any] = {
    "img_size": 56,
    "depths": (1, 2),
    "num_heads": (2, 4),
    "embed_dim": 32,
    "num_classes": 3,
    "strict_img_size": False,
}
PVT: dict[str, Any] = {"depths": (1, 1, 1, 1), "embed_dims": (16, 16, 32, 32), "num_heads": (1, 1, 2, 2), "num_classes": 3}
HOSTS = {
    "vit": of_timm("vit_tiny_patch16_224", **DYNAMIC),
    "deit with distillation token": of_timm("deit_tiny_distilled_patch16_224", **DYNAMIC),
    "vit with registers and normed queries": of_timm("vit_little_patch16_reg4_gap_256", **DYNAMIC, qk_norm=True),
    "clip": of_timm("vit_base_patch16_clip_224", **DYNAMIC),
    "siglip": of_timm("vit_base_patch16_siglip_224", **DYNAMIC),
    "eva02": of_timm("eva02_tiny_patch14_224", 56, **{**DYNAMIC, "img_size": 56}),
    "dinov3": of_timm("vit_small_patch16_dinov3", **DYNAMIC),
    "vit with rope": of_timm("vit_base_patch16_rope_mixed_224", **DYNAMIC),
    "swin": of_timm("swin_tiny_patch4_window7_224", 56, **SWIN),
    "pvt_v2": of_timm("pvt_v2_b0", **PVT),
    "flatten_deit softmax": of_timm("flatten_deit_tiny_patch16_224", **SMALL, attn_types="S"),
    "transformers vit": of_transformers("ViT"),
    "transformers dinov2": of_transformers("Dinov2WithRegisters", num_register_tokens=2),
    "transformers dinov3": of_transformers("DINOv3ViT", num_register_tokens=4),
    "transformers clip": of_transformers("CLIPVision"),
    "transformers siglip": of_transformers("SiglipVision"),
    "torchvision": of_torchvision(),
    "torch": of_torch(),
}
