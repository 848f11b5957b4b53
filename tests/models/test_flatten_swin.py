"""FLatten-Swin: exact padding, timm's model where all is softmax, windows that grow with the image."""

from functools import partial
from typing import Any

import pytest
import timm
import torch
from timm.models import get_model_args
from timm.models.swin_transformer import SwinTransformerBlock, WindowAttention
from torch import Tensor, nn

from flatten_transformer.layers import FocusedLinearAttention, create_attention
from flatten_transformer.layers.windows import Windows
from flatten_transformer.models.cures import LayoutError
from flatten_transformer.models.fit_weights import checkpoint_filter_fn
from flatten_transformer.models.flatten_swin import LinearWindowBlock, SoftmaxWindowBlock
from tests.helpers import relative_error
from tests.models.families import FAMILIES, MIXED, create, draw, layouts, official, small

FOCUSED = partial(create_attention, "focused")


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
    options = {key: value for key, value in FAMILIES["swin"].sizes.items() if "window" not in key}
    options |= {"num_classes": 5, "img_size": size, "softmax_window_size": 4}
    twin = draw(timm.create_model("flatten_swin_tiny_patch4_224", attn_types="S", **options).eval())
    options["window_size"] = options.pop("softmax_window_size")
    host = timm.create_model("swin_tiny_patch4_window7_224", **options).eval()
    host.load_state_dict(twin.state_dict())
    images = torch.randn(2, 3, *size)
    if size == (64, 64):  # every map is a multiple of its window
        torch.testing.assert_close(twin(images), host(images))
    else:  # timm attends to its padding as if it were image
        assert not torch.allclose(twin(images), host(images), rtol=1e-3)


@layouts("swin")
def test_a_model_called_at_a_size_is_the_model_built_for_it(family: str, layout: dict[str, Any]) -> None:
    built = small(family, **layout)
    called = create(family, **layout, img_size=(128, 96))
    if "S" in layout.get("attn_types", "LLSS"):  # a map smaller than the window has a smaller table of position biases
        built, called = small(family, **layout, img_size=96), create(family, **layout, img_size=(128, 96))
    called.load_state_dict(built.state_dict())
    images = torch.randn(1, 3, 128, 96)
    torch.testing.assert_close(called(images), built(images))


def test_the_384_model_is_the_224_model_with_windows_that_grew() -> None:
    with torch.device("meta"):
        model = timm.create_model("flatten_swin_tiny_patch4_224")
        model.set_input_size((384, 384))
        wanted = timm.create_model("flatten_swin_tiny_patch4_224", img_size=384, window_size=96)  # softmax windows of 12
    assert {name: value.shape for name, value in model.state_dict().items()} == {
        name: value.shape for name, value in wanted.state_dict().items()
    }


def test_encodings_resized_for_good_give_what_resizing_at_each_call_gives() -> None:
    model = small("swin", attn_types="L", window_size=56)
    images = torch.randn(1, 3, 96, 70)
    before = model(images)
    model.set_input_size((96, 72), window_size=56)
    torch.testing.assert_close(model(images), before)


def test_a_window_set_alone_leaves_the_other_as_it_is() -> None:
    model = small("swin")
    model.set_input_size(window_size=5)
    assert [stage.blocks[0].windows((32, 32)).window_size for stage in model.layers] == [(5, 5), (5, 5), (3, 3), (2, 2)]
    model.set_input_size(softmax_window_size=(2, 1))
    assert [stage.blocks[0].windows((32, 32)).window_size for stage in model.layers] == [(5, 5), (5, 5), (2, 1), (2, 1)]
    assert model(torch.randn(1, 3, 64, 64)).isfinite().all()


def test_windows_of_both_kinds_in_a_stage_grow_with_the_image_and_are_told_to_whoever_rebuilds_the_model() -> None:
    model = small("swin", attn_types=MIXED["swin"], window_size=8, softmax_window_size=2)
    assert [[block.shifted for block in stage.blocks] for stage in model.layers] == [[False, True]] * 3 + [[False]]
    model.set_input_size((128, 128))
    assert [
        [block.window_size_on((64, 64)) for block in stage.blocks if isinstance(block, kind)][:1]
        for stage in model.layers
        for kind in (LinearWindowBlock, SoftmaxWindowBlock)
    ] == [[(16, 16)], [(4, 4)]] * 2 + [[(16, 16)], [], [], [(4, 4)]]
    rebuilt = timm.create_model("flatten_swin_tiny_patch4_224", **get_model_args(model)).eval()
    rebuilt.load_state_dict(model.state_dict())
    images = torch.randn(1, 3, 128, 128)
    assert torch.equal(rebuilt(images), model(images))
    model.set_input_size(window_size=5)  # the other stays as it has grown
    assert [block.windows((64, 64)).window_size for block in model.layers[0].blocks] == [(4, 4), (5, 5)]


def test_windows_can_be_set_where_a_feature_extractor_has_cut_stages_off() -> None:
    extractor = create("swin", features_only=True, out_indices=(0, 1), feature_cls="getter")
    extractor.model.set_input_size((96, 96))
    extractor.model.set_input_size(window_size=5)
    assert [stage.blocks[0].windows((32, 32)).window_size for stage in extractor.model.layers] == [(5, 5), (5, 5)]


def test_a_checkpoint_of_another_layout_is_refused_in_words() -> None:
    with pytest.raises(LayoutError, match="4 blocks are linear in the weights and softmax in this model"):
        checkpoint_filter_fn(official("swin", small("swin")), small("swin", attn_types="S"))
    with pytest.raises(RuntimeError, match="scale"):
        small("swin").load_state_dict(official("swin", small("swin", attn_types="S")))
