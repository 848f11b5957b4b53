"""FLatten-CSwin: exact stripes, and when two branches are one."""

from functools import partial
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from flatten_transformer.layers import create_attention
from flatten_transformer.layers.attention.layout import Layout
from flatten_transformer.layers.windows import Windows
from flatten_transformer.models.cures import LayoutError
from flatten_transformer.models.fit_weights import checkpoint_filter_fn
from flatten_transformer.models.flatten_cswin import SoftmaxStripes, attend_in_stripes, linear_stripes
from tests.helpers import relative_error
from tests.models.families import create, draw, official, small

FOCUSED = partial(create_attention, "focused", projections=False)


def softmax_by_hand(attn: SoftmaxStripes, image: Tensor) -> Tensor:
    """Attend within ``[B, height, width, 3 C]`` as CSwin's paper has it, ``[B, height, width, C]``."""
    query, key, value = (part.flatten(1, 2).unflatten(2, (attn.num_heads, -1)).transpose(1, 2) for part in image.chunk(3, dim=3))
    weights = (query @ key.transpose(2, 3) / query.shape[3] ** 0.5).softmax(dim=3)
    values = image.chunk(3, dim=3)[2]
    enhanced = attn.get_v(values.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return (weights @ value).transpose(1, 2).flatten(2).unflatten(1, image.shape[1:3]) + enhanced


def linear_by_hand(attn: Any, image: Tensor, window: tuple[int, int]) -> Tensor:
    """Attend within the top left corner of a window with the same corner of its encoding, unpadded."""
    height, width = image.shape[1:3]
    corner: Any = linear_stripes(FOCUSED, 8, 2, (height, width), dtype=torch.float64)
    state = attn.state_dict()
    state["positional_encoding"] = state["positional_encoding"].unflatten(1, window)[:, :height, :width].flatten(1, 2)
    corner.load_state_dict(state)
    query, key, value = image.flatten(1, 2).chunk(3, dim=2)
    out = corner.attend(query, key, value, Layout((height, width), (height, width))).unflatten(1, (height, width))
    enhanced = corner.get_v(image.chunk(3, dim=3)[2].permute(0, 3, 1, 2))
    return out + enhanced.permute(0, 2, 3, 1)


@pytest.mark.parametrize("window", [(5, 3), (2, 7)])
@pytest.mark.parametrize("kind", ["linear", "softmax"])
def test_a_padded_stripe_gives_what_a_narrower_stripe_gives(kind: str, window: tuple[int, int]) -> None:
    attn = draw(
        linear_stripes(FOCUSED, 8, 2, window, dtype=torch.float64)
        if kind == "linear"
        else SoftmaxStripes(8, 2, attn_drop=0.0, dtype=torch.float64)
    )
    qkv = torch.randn(2, 5, 7, 24, dtype=torch.float64)
    windows = Windows((5, 7), window)
    tokens = windows.split(qkv)
    out = windows.join(attn(tokens, windows) if kind == "softmax" else attend_in_stripes(attn, tokens[..., :8], tokens, windows))
    for top in range(0, 5, window[0]):
        for left in range(0, 7, window[1]):
            part = qkv[:, top : top + window[0], left : left + window[1]]
            wanted = softmax_by_hand(attn, part) if kind == "softmax" else linear_by_hand(attn, part, window)
            came = out[:, top : top + window[0], left : left + window[1]]
            assert relative_error(came, wanted) < 1e-13  # measured: 1e-15


def test_each_half_of_the_channels_attends_along_its_own_axis() -> None:
    block = small("cswin", attn_types="L", split_sizes=1).stages[0].blocks[0]
    x = torch.randn(1, 6, 6, 8, requires_grad=True)
    block.proj = nn.Identity()
    for half, reached in ((slice(0, 4), (6, 1)), (slice(4, 8), (1, 6))):
        (gradient,) = torch.autograd.grad(block._attend(x)[0, 2, 3, half].sum(), x)
        seen = gradient[0].abs().sum(dim=2) > 0
        assert (int(seen.any(dim=1).sum()), int(seen.any(dim=0).sum())) == reached


def test_two_stripes_of_the_whole_map_are_one_branch_with_all_heads() -> None:
    striped = small("cswin", attn_types="S", img_size=128, softmax_split_sizes=16)
    whole = create("cswin", attn_types="S", softmax_split_sizes=16)
    assert [len(stage.blocks[0].attns) for stage in striped.stages] == [2, 1, 1, 1]
    assert [len(stage.blocks[0].attns) for stage in whole.stages] == [1, 1, 1, 1]
    whole.load_state_dict(striped.state_dict())
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(whole(images), striped(images))
    back = create("cswin", attn_types="S", img_size=128, softmax_split_sizes=16)
    back.load_state_dict(whole.state_dict())
    assert all(torch.equal(value, striped.state_dict()[name]) for name, value in back.state_dict().items())


def test_stripes_as_wide_as_the_maps_are_the_default() -> None:
    with torch.device("meta"):
        default, spelled = (
            timm.create_model("flatten_cswin_tiny_224", attn_types="L", **option)
            for option in ({}, {"split_sizes": (56, 28, 14, 7)})
        )
    assert {name: value.shape for name, value in default.state_dict().items()} == {
        name: value.shape for name, value in spelled.state_dict().items()
    }


def test_a_checkpoint_of_another_layout_is_refused_in_words() -> None:
    with pytest.raises(LayoutError, match="3 blocks are linear in the weights and softmax in this model"):
        checkpoint_filter_fn(official("cswin", small("cswin")), small("cswin", attn_types="S"))
    with pytest.raises(RuntimeError, match="scale"):
        small("cswin").load_state_dict(official("cswin", small("cswin", attn_types="S")))
