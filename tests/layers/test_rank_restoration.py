"""Rank restoration: heads share one depthwise kernel set; values are stretched to the grid of the outputs."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flatten_transformer.layers.rank_restoration import DepthwiseConvolution, Stretch, depthwise_convolution, stretch_values
from flatten_transformer.ops.rank_restoration import restore_rank


def restore(convolution: DepthwiseConvolution, value: Tensor, grid: tuple[int, ...]) -> Tensor:
    return restore_rank(value, convolution.weight, convolution.bias, grid)


CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def by_hand(convolution: torch.nn.Module, image: Tensor, axes: int) -> Tensor:
    weight, bias = convolution.weight, convolution.bias
    assert isinstance(weight, Tensor)
    assert isinstance(bias, Tensor)
    return CONVOLVE[axes](image, weight, bias, padding=weight.shape[-1] // 2, groups=weight.shape[0])


@pytest.mark.parametrize("grid", [(7,), (5, 7), (3, 4, 5)], ids=str)
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_each_head_is_convolved_with_the_same_kernels(grid: tuple[int, ...], kernel_size: int) -> None:
    convolution = depthwise_convolution(4, kernel_size, len(grid), dtype=torch.float64)
    value = torch.randn(2, 3, torch.Size(grid).numel(), 4, dtype=torch.float64)
    restored = restore(convolution, value, grid)
    for head in range(3):
        image = value[:, head].reshape(2, *grid, 4).movedim(-1, 1)
        wanted = by_hand(convolution, image, len(grid)).movedim(1, -1).reshape(2, -1, 4)
        torch.testing.assert_close(restored[:, head], wanted)


def test_its_matrix_has_full_rank_where_that_of_linear_attention_has_not() -> None:
    convolution = depthwise_convolution(1, 5, 2, dtype=torch.float64)
    tokens = torch.eye(49, dtype=torch.float64)[:, None, :, None]  # [49, 1, M, 1]: the columns of the identity
    matrix = restore(convolution, tokens, (7, 7))[:, 0, :, 0] - convolution.bias  # type: ignore[operator]
    assert torch.linalg.matrix_rank(matrix) == 49


def test_values_are_stretched_along_the_grid() -> None:
    convolution = depthwise_convolution(4, 3, 2, dtype=torch.float64)
    value = torch.randn(2, 3, 12, 4, dtype=torch.float64)
    image = value.flatten(0, 1).reshape(6, 3, 4, 4).permute(0, 3, 1, 2)
    stretched = F.interpolate(image, size=(6, 9), mode="bilinear", align_corners=False)
    wanted = by_hand(convolution, stretched, 2).flatten(2).transpose(1, 2).reshape(2, 3, 54, 4)
    came = restore(convolution, stretch_values(value, (3, 4), (6, 9)), (6, 9))
    torch.testing.assert_close(came, wanted)


def test_values_may_be_stretched_along_the_tokens_as_the_released_code_does() -> None:
    convolution = depthwise_convolution(4, 3, 2, dtype=torch.float64)
    value = torch.randn(2, 3, 12, 4, dtype=torch.float64)
    sequence = F.interpolate(value.flatten(0, 1).transpose(1, 2), size=54, mode="linear", align_corners=False)
    wanted = by_hand(convolution, sequence.reshape(6, 4, 6, 9), 2).flatten(2).transpose(1, 2).reshape(2, 3, 54, 4)
    along: dict[Stretch, Tensor] = {
        stretch: restore(convolution, stretch_values(value, (3, 4), (6, 9), stretch=stretch), (6, 9))
        for stretch in ("tokens", "grid")
    }
    torch.testing.assert_close(along["tokens"], wanted)
    assert not torch.allclose(along["tokens"], along["grid"])


@pytest.mark.parametrize("kernel_size", [0, 2, 4, -3])
def test_kernels_that_move_the_tokens_are_refused(kernel_size: int) -> None:
    with pytest.raises(ValueError, match=f"kernel_size must be odd and positive.*got {kernel_size}"):
        depthwise_convolution(4, kernel_size, 2)
