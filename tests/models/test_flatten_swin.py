"""FLatten-Swin: exact padding, any size, timm's model where all is softmax, official files, timm's contract."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import group_parameters
from timm.models.swin_transformer import SwinTransformerBlock, WindowAttention
from torch import Tensor, nn

from flatten_transformer.layers import FocusedLinearAttention, create_attention
from flatten_transformer.layers.windows import Windows
from flatten_transformer.models.checkpoint import checkpoint_filter_fn
from flatten_transformer.models.flatten_swin import LinearWindowBlock, SoftmaxWindowBlock
from tests.helpers import relative_error

SMALL: dict[str, Any] = {
    "img_size": 64,
    "embed_dim": 16,
    "depths": (2, 2, 2, 1),
    "num_heads": (1, 2, 4, 4),
    "num_classes": 5,
    "drop_path_rate": 0.0,
    "window_size": 6,
    "softmax_window_size": 3,
}
FOCUSED = partial(create_attention, "focused")
LAYOUTS = [{}, {"window_size": 56}, {"attn_types": "LSLS"}, {"attn_types": "L"}, {"attn_types": "S"}]


def create(**kwargs: Any) -> Any:
    return timm.create_model("flatten_swin_tiny_patch4_224", **(SMALL | kwargs)).eval()


def small(**kwargs: Any) -> Any:
    """Return a small model, every tensor of it drawn at random."""
    return draw(create(**kwargs))


def draw(module: Any) -> Any:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.2)
    return module


def official(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of the model by the names the authors' files hold, with a buffer that theirs hold."""
    renamed = {"layers.0.blocks.1.attn_mask": torch.zeros(1), "layers.3.blocks.0.attn.relative_position_index": torch.zeros(1)}
    for name, value in model.state_dict().items():
        name = re.sub(r"^layers\.(\d)\.downsample", lambda found: f"layers.{int(found[1]) - 1}.downsample", name)
        renamed[name.replace("head.fc.", "head.")] = value
    return renamed


def cropped(grid: Tensor, size: tuple[int, int], crop: tuple[int, int]) -> Tensor:
    """Return the top left corner of tokens on a grid, ``[1, tokens, C]``."""
    return grid.unflatten(1, size)[:, : crop[0], : crop[1]].flatten(1, 2)


def without_padding(attn: nn.Module, tokens: Tensor, window: tuple[int, int], crop: tuple[int, int]) -> Tensor:
    """Attend in the top left corner of each window alone, ``[B, tokens of the corner, C]``."""
    state, corner = attn.state_dict(), cropped(tokens, window, crop)
    if isinstance(attn, FocusedLinearAttention):
        state["positional_encoding"] = cropped(state["positional_encoding"], window, crop)
        linear = FocusedLinearAttention(8, 2, crop, dtype=torch.float64)
        linear.load_state_dict(state)
        return linear(corner)
    # the offsets of a smaller window lie around the middle of the larger one's
    (height, width), (rows, columns) = window, crop
    table = state["relative_position_bias_table"].unflatten(0, (2 * height - 1, 2 * width - 1))
    state["relative_position_bias_table"] = table[
        height - rows : height + rows - 1, width - columns : width + columns - 1
    ].flatten(0, 1)
    softmax = WindowAttention(8, 2, window_size=crop, dtype=torch.float64)
    softmax.load_state_dict(state)
    out: Tensor = softmax(corner)
    return out


@pytest.mark.parametrize("kind", ["linear", "softmax"])
def test_a_padded_window_gives_what_a_smaller_window_gives(kind: str) -> None:
    window, feat_size = (4, 3), (6, 7)
    host = SwinTransformerBlock(8, feat_size, num_heads=2, window_size=window, dtype=torch.float64)
    linear = LinearWindowBlock(host, feat_size, window, False, FOCUSED)
    block = draw(linear if kind == "linear" else SoftmaxWindowBlock(host, feat_size, False))
    x = torch.randn(2, *feat_size, 8, dtype=torch.float64)
    windows = block.windows(feat_size)
    assert windows == Windows(feat_size, window)
    out = windows.join(block.attend(windows.split(x), windows))
    for top in (0, 4):
        for left in (0, 3, 6):
            part = x[:, top : top + 4, left : left + 3]
            size = (part.shape[1], part.shape[2])
            padded = torch.zeros(2, *window, 8, dtype=torch.float64)
            padded[:, : size[0], : size[1]] = part
            wanted = without_padding(block.attn, padded.flatten(1, 2), window, size)
            assert relative_error(out[:, top : top + 4, left : left + 3].flatten(1, 2), wanted) < 1e-13  # measured: 1e-15


def test_a_shifted_linear_block_is_the_block_on_the_rolled_map() -> None:
    host = SwinTransformerBlock(8, (8, 4), num_heads=2)
    shifted, plain = (draw(LinearWindowBlock(host, (8, 4), (4, 4), on, FOCUSED)) for on in (True, False))
    plain.load_state_dict(shifted.state_dict())
    x = torch.randn(1, 8, 4, 8)
    torch.testing.assert_close(shifted(x), plain(x.roll(-2, 1)).roll(2, 1))  # one window wide: rolled in height alone


@pytest.mark.parametrize("size", [(64, 64), (96, 96)])
def test_the_softmax_twin_is_timms_model(size: tuple[int, int]) -> None:
    options = {key: value for key, value in SMALL.items() if "window" not in key}
    options |= {"img_size": size, "softmax_window_size": 4}
    twin = draw(timm.create_model("flatten_swin_tiny_patch4_224", attn_types="S", **options).eval())
    options["window_size"] = options.pop("softmax_window_size")
    host = timm.create_model("swin_tiny_patch4_window7_224", **options).eval()
    host.load_state_dict(twin.state_dict())
    images = torch.randn(2, 3, *size)
    if size == (64, 64):  # every map is a multiple of its window
        torch.testing.assert_close(twin(images), host(images))
    else:  # timm attends to its padding as if it were image
        assert not torch.allclose(twin(images), host(images), rtol=1e-3)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_any_size_passes_and_leaves_the_training_size_as_it_was(layout: dict[str, Any]) -> None:
    model = small(**layout)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = model(images)
        for size in [(32, 48), (53, 91), (3, 7), (96, 136)]:
            assert model(torch.randn(1, 3, *size)).isfinite().all()
        assert torch.equal(model(images), before)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_model_called_at_a_size_is_the_model_built_for_it(layout: dict[str, Any]) -> None:
    built = small(**layout)
    called = create(**layout, img_size=(128, 96))
    if "S" in called.attn_types:  # a map smaller than the window has a smaller table of position biases
        built, called = small(**layout, img_size=96), create(**layout, img_size=(128, 96))
    called.load_state_dict(built.state_dict())
    images = torch.randn(1, 3, 128, 96)
    torch.testing.assert_close(called(images), built(images))


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("flatten_swin_tiny_patch4_224", 29.19),
        ("flatten_swin_small_patch4_224", 50.51),
        ("flatten_swin_base_patch4_224", 88.97),
        ("flatten_swin_base_patch4_384", 91.43),
    ],
)
def test_parameters_count_as_published(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_official_files_load_by_all_routes(layout: dict[str, Any], tmp_path: Path) -> None:
    trained = small(**layout, num_classes=1000)
    file = tmp_path / "official.pth"
    torch.save({"model": official(trained), "epoch": 300}, file)
    images = torch.randn(2, 3, 50, 70)
    for route in ({"pretrained": True, "pretrained_cfg_overlay": {"file": str(file)}}, {"checkpoint_path": str(file)}):
        assert torch.equal(create(**layout, num_classes=1000, **route)(images), trained(images))
    model = create(**layout, num_classes=1000)
    model.load_state_dict(official(trained))
    assert torch.equal(model(images), trained(images))


def test_weights_of_one_size_load_into_another_size_other_classes_and_channels(tmp_path: Path) -> None:
    trained = small(num_classes=1000, window_size=56)
    file = tmp_path / "official.pth"
    torch.save({"model": official(trained)}, file)
    route: dict[str, Any] = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(file)}, "window_size": 56}
    larger = create(**route, num_classes=1000, img_size=96, softmax_window_size=5)
    assert larger(torch.randn(1, 3, 96, 96)).shape == (1, 1000)
    back = create(num_classes=1000, window_size=56)
    back.load_state_dict(larger.state_dict())  # resized both ways: near, not equal
    encoding = "layers.0.blocks.0.attn.positional_encoding"
    assert back.state_dict()[encoding].shape == trained.state_dict()[encoding].shape
    assert create(**route, num_classes=3)(torch.randn(1, 3, 64, 64)).shape == (1, 3)
    assert create(**route, num_classes=1000, in_chans=1)(torch.randn(1, 1, 64, 64)).shape == (1, 1000)


def test_the_384_model_is_the_224_model_with_windows_that_grew() -> None:
    with torch.device("meta"):
        model = timm.create_model("flatten_swin_tiny_patch4_224")
        model.set_input_size((384, 384))
        wanted = timm.create_model("flatten_swin_tiny_patch4_224", img_size=384, window_size=96)  # softmax windows of 12
    assert {name: value.shape for name, value in model.state_dict().items()} == {
        name: value.shape for name, value in wanted.state_dict().items()
    }


def test_encodings_resized_for_good_give_what_resizing_at_each_call_gives() -> None:
    model = small(attn_types="L", window_size=56)
    images = torch.randn(1, 3, 96, 70)
    before = model(images)
    model.set_input_size((96, 72), window_size=56)
    torch.testing.assert_close(model(images), before)


def test_a_window_set_alone_leaves_the_other_as_it_is() -> None:
    model = small()
    model.set_input_size(window_size=5)
    assert [stage.blocks[0].windows((32, 32)).window_size for stage in model.layers] == [(5, 5), (5, 5), (3, 3), (2, 2)]
    model.set_input_size(softmax_window_size=(2, 1))
    assert [stage.blocks[0].windows((32, 32)).window_size for stage in model.layers] == [(5, 5), (5, 5), (2, 1), (2, 1)]
    assert model(torch.randn(1, 3, 64, 64)).isfinite().all()


def test_a_checkpoint_of_another_layout_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="not of FlattenSwinTransformer in this size"):
        checkpoint_filter_fn(official(small(attn_types="S")), small())
    with pytest.raises(RuntimeError, match="scale"):
        small().load_state_dict(official(small(attn_types="S")))


def test_every_stage_hands_out_its_features_rounded_up() -> None:
    model = small(features_only=True)
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    levels = model(torch.randn(1, 3, 50, 70))
    assert [tuple(level.shape[1:]) for level in levels] == [(16, 13, 18), (32, 7, 9), (64, 4, 5), (128, 2, 3)]
    assert small(features_only=True, out_indices=(1,)).feature_info.reduction() == [8]


def test_recomputed_blocks_give_the_same_gradients() -> None:
    model, gradients = small().train(), []
    images = torch.randn(2, 3, 64, 64)
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        gradients.append(torch.autograd.grad(model(images).square().sum(), list(model.parameters())))
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_gradients_stay_finite_where_windows_are_padded() -> None:
    model = small(attn_types="LSLS").train()
    model(torch.randn(2, 3, 53, 91)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_layers_are_grouped_and_position_biases_do_not_decay() -> None:
    model = small()
    groups = list(group_parameters(model, model.group_matcher()).values())
    assert len(groups) == 1 + 7 + 1  # stem, blocks, classifier
    tables = {name for name, _ in model.named_parameters() if "relative_position_bias_table" in name}
    assert model.no_weight_decay() == tables
    assert tables


@pytest.mark.parametrize(
    "option",
    [
        {"drop_rate": 0.5},
        {"proj_drop_rate": 0.5},
        {"attn_drop_rate": 0.5},
        {"drop_path_rate": 0.5},
        {"focusing_factor": 4.0},
        {"attn_types": "SSSS"},
    ],
    ids=str,
)
def test_every_option_changes_the_result(option: dict[str, Any]) -> None:
    plain, other = small(), small(**option)
    other.load_state_dict(plain.state_dict(), strict="attn_types" not in option)
    images = torch.randn(4, 3, 64, 64)
    assert not torch.allclose(plain.train()(images), other.train()(images))


@pytest.mark.parametrize("option", [{"window_size": 4}, {"softmax_window_size": 2}, {"kernel_size": 3}], ids=str)
def test_windows_and_kernels_change_the_shape_of_what_is_learned(option: dict[str, Any]) -> None:
    shapes = [{name: value.shape for name, value in small(**which).state_dict().items()} for which in ({}, option)]
    assert shapes[0] != shapes[1]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"attn_types": "LLX"}, "attn_types must be"),
        ({"attn_types": "LLLX"}, "attn_types must be"),
        ({"window_size": 0}, "window_size must be a side"),
        ({"window_size": (7, 7, 7)}, "window_size must be a side"),
        ({"softmax_window_size": (7, -1)}, "softmax_window_size must be a side"),
        ({"kernel_size": 4}, "kernel_size must be odd"),
        ({"focusing_factor": 0.5}, "focusing_factor must be"),
        ({"head_dim": 8}, "head_dim has no meaning"),
        ({"strict_img_size": True}, "strict_img_size can only be False"),
        ({"always_partition": True}, "always_partition can only be False"),
        ({"attn_types": "L", "attn_drop_rate": 0.1}, "attn_drop_rate acts on"),
    ],
    ids=str,
)
def test_an_option_out_of_range_is_refused_in_words(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**option)
