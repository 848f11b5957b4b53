"""Which layer, head and query is looked at; what does not exist is refused with what does."""

import pytest
import timm
import torch

from flatten_transformer.analysis import CapturedAttention, capture
from flatten_transformer.analysis.plots import view_matrix, view_query
from flatten_transformer.analysis.selection import check_index, finest_grid, parse_query, select_layer, select_query, token_at


def pyramid() -> list[CapturedAttention]:
    options = {"embed_dims": (8, 8, 8, 16), "num_heads": (1, 1, 2, 2), "depths": (1, 1, 1, 1), "img_size": (64, 96)}
    return capture(timm.create_model("flatten_pvt_v2_b0", **options, sr_ratios=(1, 2, 1, 1)), torch.randn(1, 3, 64, 96))


def test_a_block_that_does_not_exist_is_refused_with_those_that_do() -> None:
    attentions = pyramid()
    assert select_layer(attentions, -1) is attentions[3]
    for block in (4, -5):
        with pytest.raises(ValueError, match=rf"there is no block {block}: choose one of 0 stages.0.blocks.0.attn, 1 stages.1"):
            select_layer(attentions, block)


def test_an_index_that_does_not_exist_is_refused_with_those_that_do() -> None:
    check_index("head", 1, 2)
    for head in (-1, 2):
        with pytest.raises(ValueError, match=f"there is no head {head}: head must be 0 to 1"):
            check_index("head", head, 2)


@pytest.mark.parametrize("text", ["3", "3,x", "-1,2", "1,2,3", ""])
def test_a_query_is_row_and_column(text: str) -> None:
    assert parse_query(" 3, 12") == (3, 12)
    with pytest.raises(ValueError, match="query must be ROW,COLUMN of a token"):
        parse_query(text)


def test_a_query_is_the_one_asked_for_or_where_there_is_something_to_see() -> None:
    grey = torch.zeros(1, 8, 12)
    grey[0, 5, 11] = 1
    assert select_query(None, grey, (4, 6)) == (2, 5)
    assert select_query(None, grey.expand(3, -1, -1), (4, 6)) == (2, 3)
    assert select_query((3, 5), grey, (4, 6)) == (3, 5)
    for query in ((4, 0), (0, 6)):
        with pytest.raises(ValueError, match="rows are 0 to 3, columns 0 to 5"):
            select_query(query, grey, (4, 6))


def test_a_query_lies_at_the_same_place_of_the_image_on_every_grid() -> None:
    attentions = pyramid()
    grid = finest_grid(attentions)
    assert grid == (16, 24)
    assert [token_at(attention, (9, 23), grid) for attention in attentions] == [9 * 24 + 23, 4 * 12 + 11, 2 * 6 + 5, 1 * 3 + 2]


def test_a_view_is_the_row_of_the_query_on_the_grid_of_the_keys() -> None:
    for attention in pyramid():
        view = view_query(attention, (9, 23), (16, 24), head=0, channels=2)
        assert view is not None
        assert view.restored is not None
        assert attention.context_grid_size is not None
        assert tuple(view.attention.shape) == attention.context_grid_size
        token = view.token[0] * view.grid_size[1] + view.token[1]
        assert torch.equal(view.attention.flatten(), attention.decompose().matrix[0, 0, token])
        channels = [attention.head_dim // 4, 3 * attention.head_dim // 4]
        torch.testing.assert_close(view.restored.flatten(), attention.equivalent(channels)[0, :, token].mean(0))


def test_prefix_tokens_are_no_place_on_the_map() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2)
    attention = capture(model, torch.randn(1, 3, 32, 32))[0]
    view = view_query(attention, (1, 2), (4, 4), head=1)
    assert view is not None
    assert torch.equal(view.attention.flatten(), attention.decompose().matrix[0, 1, 1 + 6, 1:])
    assert view.restored is None


def test_a_layer_of_windows_has_a_matrix_but_no_view_of_the_image() -> None:
    model = timm.create_model("swin_tiny_patch4_window7_224", img_size=32, window_size=4, embed_dim=8, num_heads=(1, 1, 1, 1))
    attention = capture(model, torch.randn(1, 3, 32, 32))[0]
    assert view_query(attention, (0, 0), (4, 4), head=0) is None
    assert view_matrix(attention, head=0).attention.shape == (16, 16)
