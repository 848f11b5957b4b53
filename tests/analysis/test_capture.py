"""What is seen of a model is what its attentions compute: matrices, convolutions and all, in every design and family."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from flatten_transformer.analysis import CapturedAttention, capture
from flatten_transformer.analysis.capture import CapturedGrid, CapturedSoftmax
from flatten_transformer.layers import GridAttention, list_attentions
from tests.helpers import randomise, relative_error
from tests.models.families import FAMILIES

DEIT = {"img_size": 40, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
PYRAMID = {"img_size": 64, "depths": (1, 1, 1, 1), "num_classes": 3}
OURS: dict[str, dict[str, Any]] = {
    "flatten_deit_tiny_patch16_224": {**DEIT, "class_token": True, "reg_tokens": 1, "attn_types": "LS"},
    "flatten_pvt_tiny": {**PYRAMID, "embed_dims": (8, 8, 8, 16), "num_heads": (1, 1, 2, 2), "sr_ratios": (2, 1, 2, 1)},
    "flatten_pvt_v2_b0": {**PYRAMID, "embed_dims": (8, 8, 8, 16), "num_heads": (1, 1, 2, 2), "attn_types": "LLSS"},
    "flatten_swin_tiny_patch4_224": {**PYRAMID, "depths": (2, 1, 2, 1), "embed_dim": 8, "num_heads": (1, 2, 2, 2)}
    | {"window_size": 5, "softmax_window_size": 3, "attn_types": "L-L-SL-S"},
    "flatten_cswin_tiny_224": {**PYRAMID, "embed_dim": 8, "num_heads": (2, 2, 2, 2), "split_sizes": 6, "attn_types": "LLSS"},
}
SOFTMAX: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {**DEIT},
    "vit_base_patch16_clip_224": {**DEIT, "qk_norm": True},
    "swin_tiny_patch4_window7_224": {
        **PYRAMID,
        "depths": (2, 1, 1, 1),
        "embed_dim": 8,
        "num_heads": (1, 2, 2, 2),
        "window_size": 4,
    },
    "pvt_v2_b0": {"depths": (1, 1, 1, 1), "embed_dims": (8, 8, 8, 16), "num_heads": (1, 1, 2, 2)},
}


def test_every_family_is_here() -> None:
    assert OURS.keys() == {family.name for family in FAMILIES.values()}


def create(name: str, **options: Any) -> nn.Module:
    model: nn.Module = timm.create_model(name, **{**OURS.get(name, SOFTMAX.get(name, {})), **options})
    randomise(model)
    return model.double().eval()


def captured(name: str, **options: Any) -> list[CapturedAttention]:
    size = 40 if "patch16" in name else 64
    return capture(create(name, **options), torch.randn(2, 3, size, size))


def by_matrices(attention: CapturedAttention) -> Tensor:
    """Return the output, all matrices written out: a channel's own, times its values, plus its bias, times the gate."""
    parts = attention.decompose()
    matrices = attention.equivalent(range(attention.output.shape[2]), parts)  # [B, C, N, M]
    out = torch.einsum("bcnm,bmc->bnc", matrices, parts.value.transpose(1, 2).flatten(2))
    if isinstance(attention, CapturedGrid):
        bias = attention.module.restore(torch.zeros_like(parts.value), attention.layout, attention.x)
        out = out if bias is None else out + bias
    return out if parts.gate is None else out * parts.gate


@pytest.mark.parametrize("design", list_attentions())
def test_the_equivalent_matrix_times_the_values_is_the_output_of_the_block(design: str) -> None:
    agents = {"attention_args": {"num_agents": 4}} if design == "agent" else {}
    attentions = captured("flatten_deit_tiny_patch16_224", attention=design, **agents)
    assert [type(attention) for attention in attentions] == [CapturedGrid, CapturedSoftmax]
    for attention in attentions:
        assert attention.output.dtype == torch.float64
        assert relative_error(attention.decompose().output(), attention.output) < 1e-10
        assert relative_error(by_matrices(attention), attention.output) < 1e-10


@pytest.mark.parametrize("name", [*OURS, *SOFTMAX])
def test_so_it_is_in_every_family_with_its_windows_stripes_and_reductions(name: str) -> None:
    attentions = captured(name)
    assert len(attentions) >= 2
    for attention in attentions:
        assert relative_error(by_matrices(attention), attention.output) < 1e-10, attention.name


def test_kernels_predicted_for_each_window_are_matrices_too() -> None:
    attentions = captured("flatten_swin_tiny_patch4_224", attention="inline")
    assert attentions[1].windows == 16
    for attention in attentions:
        assert relative_error(by_matrices(attention), attention.output) < 1e-10, attention.name


@pytest.mark.parametrize("name", ["flatten_deit_tiny_patch16_224", "vit_tiny_patch16_224"])
def test_the_output_is_what_the_model_itself_projects(name: str) -> None:
    model, images = create(name), torch.randn(2, 3, 40, 40, dtype=torch.float64)
    projected: list[Tensor] = []
    for block in model.blocks:  # type: ignore[union-attr]
        block.attn.proj.register_forward_pre_hook(lambda _, args: projected.append(args[0]))
    with torch.no_grad():
        model(images)
    seen = list(projected)
    attentions = capture(model, images)
    for attention, wanted in zip(attentions, seen, strict=True):
        assert relative_error(attention.output, wanted) < 1e-10


def test_layers_are_named_as_in_the_model_and_told_their_grids() -> None:
    attentions = captured("flatten_pvt_v2_b0")
    assert [attention.name for attention in attentions] == [f"stages.{stage}.blocks.0.attn" for stage in range(4)]
    assert [attention.grid_size for attention in attentions] == [(16, 16), (8, 8), (4, 4), (2, 2)]
    assert [(attention.queries, attention.keys) for attention in attentions] == [(256, 256), (64, 64), (16, 4), (4, 4)]
    deit = captured("flatten_deit_tiny_patch16_224")
    assert [(attention.grid_size, attention.num_prefix_tokens, attention.windows) for attention in deit] == [((5, 5), 2, 1)] * 2
    assert {attention.windows for attention in captured("flatten_cswin_tiny_224")[:2]} == {3}


def test_looking_leaves_the_model_as_it_is() -> None:
    model = create("flatten_deit_tiny_patch16_224", attention="relu").float().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attentions = capture(model, torch.randn(1, 3, 40, 40))
    assert attentions[0].output.dtype == torch.float64
    for module in model.modules():
        assert not module._forward_pre_hooks
        assert not module._forward_hooks
        assert not (isinstance(module, GridAttention) and "attend" in vars(module))
        assert module.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_copy_runs_in_the_dtype_asked_for() -> None:
    attentions = capture(create("flatten_deit_tiny_patch16_224"), torch.randn(1, 3, 40, 40), dtype=torch.float32)
    assert {attention.output.dtype for attention in attentions} == {torch.float32}


def test_a_model_whose_softmax_is_not_fused_is_seen_too() -> None:
    model = create("vit_tiny_patch16_224")
    for block in model.blocks:  # type: ignore[union-attr]
        block.attn.fused_attn = False
    assert len(capture(model, torch.randn(1, 3, 40, 40))) == 2
    assert not model.blocks[0].attn.fused_attn  # type: ignore[index, union-attr]


def test_a_model_without_attention_is_refused_with_those_that_work() -> None:
    with pytest.raises(ValueError, match="no attention of ResNet can be seen: take a FLatten model, or one that calls"):
        capture(timm.create_model("resnet10t", num_classes=2), torch.randn(1, 3, 64, 64))


def test_causal_and_grouped_softmax_are_matrices_too() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(0.3))

        def forward(self, x: Tensor) -> Tensor:
            q, kv = x[:, :, :, :6] * self.scale, x[:, :2, :, 6:12]
            options: dict[str, Any] = {"is_causal": True, "scale": 0.7, "enable_gqa": True}
            return nn.functional.scaled_dot_product_attention(q, kv, x[:, :2, :, 12:], **options)

    attention = capture(Odd(), torch.randn(2, 4, 9, 18))[0]
    assert attention.name == "the model itself"
    assert relative_error(attention.decompose().output(), attention.output) < 1e-10
    assert attention.decompose().matrix.triu(1).abs().max() == 0


def test_another_power_shows_what_focusing_does() -> None:
    attention = captured("flatten_deit_tiny_patch16_224")[0]
    assert isinstance(attention, CapturedGrid)
    own, plain = attention.decompose().matrix, attention.refocused(1).decompose().matrix
    assert torch.equal(attention.refocused(3).decompose().matrix, own)
    assert relative_error(plain, own) > 0.01
    relu = captured("flatten_deit_tiny_patch16_224", attention="softmax")[0]
    assert isinstance(relu, CapturedGrid)
    with pytest.raises(ValueError, match=r"blocks.0.attn is SoftmaxAttention, which has no focusing_factor"):
        relu.refocused(1)


def test_attention_without_a_convolution_has_no_convolution_matrix() -> None:
    for attention in captured("flatten_deit_tiny_patch16_224", attention_args={"rank_restoration": False}):
        assert attention.convolution([0]) is None


def test_padding_of_a_window_has_no_weight_in_the_convolution_either() -> None:
    attention = captured("flatten_swin_tiny_patch4_224")[0]
    assert isinstance(attention, CapturedGrid)
    assert attention.layout.attn_mask is not None
    hidden = ~attention.layout.attn_mask.expand(-1, 1, attention.queries, -1)
    assert hidden.any()
    assert attention.equivalent([3])[hidden].abs().max() == 0
