"""FLatten-DeiT: sizes and names of the paper, any image size, and everything timm offers a VisionTransformer."""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from flatten_transformer import FocusedLinearAttention
from flatten_transformer.layers.grid import resize_grid
from tests.helpers import layer_by_the_book, randomise, relative_error

TINY = "flatten_deit_tiny_patch16_224"
NAMES = [TINY, "flatten_deit_small_patch16_224", "flatten_deit_base_patch16_224"]


def make_model(**options: Any) -> Any:
    """Return a tiny model of two blocks with noise in its parameters, in eval mode."""
    model = timm.create_model(TINY, **{"depth": 2, "num_classes": 10, **options}).eval()
    randomise(model)
    return model


def image(height: int = 224, width: int = 224, batch: int = 1, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, height, width)


# The paper's sizes and names --------------------------------------------------------------------------------------


BLOCK = {
    "norm1.weight": [192],
    "norm1.bias": [192],
    "attn.scale": [1, 1, 192],
    "attn.positional_encoding": [1, 196, 192],
    "attn.qkv.weight": [576, 192],
    "attn.qkv.bias": [576],
    "attn.dwc.weight": [64, 1, 5, 5],
    "attn.dwc.bias": [64],
    "attn.proj.weight": [192, 192],
    "attn.proj.bias": [192],
    "norm2.weight": [192],
    "norm2.bias": [192],
    "mlp.fc1.weight": [768, 192],
    "mlp.fc1.bias": [768],
    "mlp.fc2.weight": [192, 768],
    "mlp.fc2.bias": [192],
}
AROUND = {
    "pos_embed": [1, 196, 192],
    "patch_embed.proj.weight": [192, 3, 16, 16],
    "patch_embed.proj.bias": [192],
    "fc_norm.weight": [192],
    "fc_norm.bias": [192],
    "head.weight": [1000, 192],
    "head.bias": [1000],
}


def test_names_and_shapes_of_the_state_dict_are_pinned() -> None:
    with torch.device("meta"):
        model = timm.create_model(TINY)
    blocks = {f"blocks.{block}.{name}": shape for block in range(12) for name, shape in BLOCK.items()}
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == {**AROUND, **blocks}


# Any image size ---------------------------------------------------------------------------------------------------


def test_one_image_in_a_batch_is_the_image_alone() -> None:
    model = make_model().double()
    inputs = image(96, 128, batch=3).double()
    torch.testing.assert_close(model(inputs)[1:2], model(inputs[1:2]))


PREFIXES: dict[str, dict[str, Any]] = {
    "plain": {},
    "with prefix": {"class_token": True, "reg_tokens": 4, "global_pool": "token"},
    "prefix without encoding": {"class_token": True, "reg_tokens": 4, "no_embed_class": True},
    "no position encoding": {"class_token": True, "pos_embed": "none"},
}


@pytest.mark.parametrize("height", [224, 160])
@pytest.mark.parametrize("options", PREFIXES)
def test_the_first_block_is_by_the_book(options: str, height: int) -> None:
    """Patches in row order, encodings, prefix tokens first, and the layer told its own grid."""
    model = make_model(**PREFIXES[options]).double()
    inputs = image(height, 96).double()
    grid = (height // 16, 6)
    patches = model.patch_embed.proj(inputs).flatten(2).transpose(1, 2)
    prefix = [token for token in (model.cls_token, model.reg_token) if token is not None]
    x = torch.cat([*prefix, patches], dim=1)
    if model.pos_embed is not None:
        encoded = model.pos_embed.shape[1] - 196  # prefix tokens that have an encoding
        x[:, :encoded] += model.pos_embed[:, :encoded]
        x[:, x.shape[1] - patches.shape[1] :] += resize_grid(model.pos_embed[:, encoded:], (14, 14), grid)
    block = model.blocks[0]
    x = x + layer_by_the_book(block.attn, dict(block.attn.named_parameters()), block.norm1(x), grid)
    x = x + block.mlp(block.norm2(x))
    hooked: list[Tensor] = []
    handle = block.register_forward_hook(lambda module, args, out: hooked.append(out))
    model(inputs)
    handle.remove()
    assert relative_error(hooked[0], x) < 1e-12


def test_set_input_size_resizes_position_and_key_encodings() -> None:
    model = make_model()
    inputs = image(160, 96)
    before = model(inputs)
    model.set_input_size(img_size=(160, 96))
    assert model.pos_embed.shape == (1, 60, 192)
    assert model.blocks[1].attn.grid_size == (10, 6)
    assert model.blocks[1].attn.positional_encoding.shape == (1, 60, 192)
    torch.testing.assert_close(model(inputs), before)
    assert model(image(217, 333)).isfinite().all()


# Options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "prefix"),
    [
        ({"class_token": True, "global_pool": "token"}, 1),
        ({"class_token": True}, 1),
        ({"reg_tokens": 4}, 4),
        ({"class_token": True, "reg_tokens": 2, "global_pool": "token"}, 3),
        ({"class_token": True, "reg_tokens": 2, "no_embed_class": True}, 3),
        ({"class_token": True, "pos_embed": "none"}, 1),
    ],
    ids=str,
)
def test_class_and_register_tokens_attend(options: dict[str, Any], prefix: int) -> None:
    model = make_model(**options)
    assert model.num_prefix_tokens == prefix
    assert {block.attn.num_prefix_tokens for block in model.blocks} == {prefix}
    for height, width in [(224, 224), (64, 96)]:
        tokens = model.forward_features(image(height, width))
        assert tokens.shape == (1, prefix + height * width // 256, 192)
        assert model(image(height, width)).isfinite().all()
    model(image(64, 96)).sum().backward()
    for name in ("cls_token", "reg_token"):
        token = getattr(model, name)
        assert token is None or token.grad.abs().max() > 0


@pytest.mark.parametrize(("attn_types", "wanted"), [("L", "LL"), ("S", "SS"), ("LS", "LS"), ("SL", "SL")])
def test_attn_types_choose_the_attention_of_each_block(attn_types: str, wanted: str) -> None:
    model = make_model(attn_types=attn_types)
    assert "".join("L" if isinstance(block.attn, FocusedLinearAttention) else "S" for block in model.blocks) == wanted
    assert model(image(64, 96)).isfinite().all()


def test_the_softmax_twin_is_timms_own_vision_transformer() -> None:
    twin = make_model(attn_types="S")
    plain = timm.create_model(
        "vit_tiny_patch16_224", depth=2, num_classes=10, class_token=False, global_pool="avg", fc_norm=True
    ).eval()
    plain.load_state_dict(twin.state_dict())
    inputs = image()
    torch.testing.assert_close(twin(inputs), plain(inputs))


def test_biases_and_dropout_reach_the_attention() -> None:
    model = make_model(qkv_bias=False, proj_drop_rate=0.25)
    for block in model.blocks:
        assert block.attn.qkv.bias is None
        assert block.attn.proj_drop.p == 0.25


@pytest.mark.parametrize("attn_types", ["L", "S"])
def test_weights_are_drawn_as_asked_in_either_attention(attn_types: str) -> None:
    glorot = (6 / (192 + 192)) ** 0.5  # the largest weight that timm's "jax" draws for the output projection
    model = timm.create_model(TINY, depth=2, attn_types=attn_types, weight_init="jax", fix_init=True)
    largest = [float(block.attn.proj.weight.detach().abs().max()) for block in model.blocks]
    assert largest == pytest.approx([glorot / 2**0.5, glorot / 4**0.5], rel=1e-2)
    default = timm.create_model(TINY, depth=1, attn_types=attn_types).blocks[0].attn.proj.weight
    assert float(default.detach().std()) == pytest.approx(0.02, rel=2e-2)


def test_padding_may_be_switched_off_for_sizes_that_fit() -> None:
    model = make_model(dynamic_img_pad=False)
    assert model(image(64, 96)).shape == (1, 10)
    with pytest.raises(AssertionError, match="65"):
        model(image(65, 96))


def test_unknown_options_and_causal_attention_are_refused() -> None:
    with pytest.raises(TypeError, match="focussing_factor"):
        make_model(focussing_factor=3)
    for method in ("__call__", "forward_features", "forward_intermediates"):
        with pytest.raises(ValueError, match="an image has no causal order"):
            getattr(make_model(), method)(image(), is_causal=True)


# What timm offers -------------------------------------------------------------------------------------------------


def test_forward_intermediates_ends_in_forward_features() -> None:
    model = make_model(class_token=True, reg_tokens=2)
    inputs = image(64, 96)
    final, maps = model.forward_intermediates(inputs, indices=[0, 1], norm=True)
    assert torch.equal(final, model.forward_features(inputs))
    assert [feature.shape for feature in maps] == [(1, 192, 4, 6)] * 2
    assert torch.equal(maps[1].flatten(2).transpose(1, 2), final[:, 3:])
    (sequence,) = model.forward_intermediates(inputs, indices=1, norm=True, output_fmt="NLC", intermediates_only=True)
    assert torch.equal(sequence, final[:, 3:])


def test_a_mask_of_patches_hides_them() -> None:
    model = make_model().double()
    inputs = image(64, 64).double()
    kept = torch.ones(1, 1, 1, 16, dtype=torch.bool)
    torch.testing.assert_close(model.forward_features(inputs, attn_mask=kept), model.forward_features(inputs))
    kept[..., 15] = False
    louder = inputs.clone()
    louder[:, :, 48:, 48:] *= 2
    visible = [model.forward_features(x, attn_mask=kept)[:, :15] for x in (louder, inputs)]
    torch.testing.assert_close(visible[0], visible[1])
    assert not torch.allclose(visible[0], model.forward_features(inputs)[:, :15])


# Compilers --------------------------------------------------------------------------------------------------------

SIZES = [(224, 224), (217, 333), (64, 64), (448, 224), (96, 160)]


@pytest.fixture
def _fresh_compiler() -> None:
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("options", [{"depth": 1}, {"class_token": True, "reg_tokens": 2, "attn_types": "LS"}], ids=str)
def test_compiled_whole_it_equals_eager_at_every_size(options: dict[str, Any]) -> None:
    model = make_model(**options).double()
    counter = CompileCounterWithBackend("eager")
    compiled: Any = torch.compile(model, fullgraph=True, backend=counter)
    with torch.no_grad():
        for height, width in SIZES:
            inputs = image(height, width).double()
            assert relative_error(compiled(inputs), model(inputs)) < 1e-12
    assert counter.frame_count <= 3  # static at 224, dynamic, dynamic that resizes


@pytest.mark.usefixtures("_fresh_compiler")
def test_compiled_gradients_equal_eager_ones() -> None:
    model = make_model(depth=1).double()
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    inputs = image(96, 64).double()
    results = []
    for module in (compiled, model):
        model.zero_grad()
        module(inputs).square().sum().backward()
        results.append([parameter.grad for parameter in model.parameters()])
    for came, wanted in zip(*results, strict=True):
        assert relative_error(came, wanted) < 1e-12


def test_one_exported_graph_serves_every_batch_height_and_width() -> None:
    model = make_model(depth=1).double()
    free = torch.export.Dim.DYNAMIC
    shapes = {"x": {0: free, 2: free, 3: free}}
    program = torch.export.export(model, (image(96, 144, batch=2).double(),), dynamic_shapes=shapes).module()
    for batch, height, width in [(1, 224, 224), (3, 217, 333), (2, 64, 48)]:
        inputs = image(height, width, batch=batch).double()
        assert relative_error(program(inputs), model(inputs)) < 1e-12
