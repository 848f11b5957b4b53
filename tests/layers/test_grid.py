"""Resizing what was learned on a grid: bicubic, untouched at the learned size."""

import pytest
import torch
import torch.nn.functional as F

from flatten_transformer.layers.grid import resize_grid


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("grid", [(7,), (5, 7), (3, 4, 5)], ids=str)
def test_the_same_grid_returns_the_same_tensor(grid: tuple[int, ...], dtype: torch.dtype) -> None:
    tokens = torch.randn(1, torch.Size(grid).numel(), 8).to(dtype)
    assert resize_grid(tokens, grid, list(grid)) is tokens


@pytest.mark.parametrize(
    ("grid", "new_grid", "smooth", "mode"),
    [
        ((7,), (12,), True, "linear"),
        ((7,), (12,), False, "linear"),
        ((5, 7), (9, 4), True, "bicubic"),
        ((5, 7), (9, 4), False, "bilinear"),
        ((3, 4, 5), (5, 2, 8), True, "trilinear"),
        ((3, 4, 5), (5, 2, 8), False, "trilinear"),
    ],
)
def test_each_kind_of_grid_has_its_interpolation(
    grid: tuple[int, ...], new_grid: tuple[int, ...], smooth: bool, mode: str
) -> None:
    count, new_count = torch.Size(grid).numel(), torch.Size(new_grid).numel()
    tokens = torch.randn(2, count, 8, dtype=torch.float64)
    image = tokens.reshape(2, *grid, 8).movedim(-1, 1)
    wanted = F.interpolate(image, size=new_grid, mode=mode, align_corners=False)
    came = resize_grid(tokens, grid, new_grid, smooth=smooth)
    assert torch.equal(came, wanted.movedim(1, -1).reshape(2, new_count, 8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_resized_in_float32(dtype: torch.dtype) -> None:
    tokens = torch.randn(1, 35, 8).to(dtype)
    came = resize_grid(tokens, (5, 7), (9, 4))
    assert came.dtype == dtype
    assert torch.equal(came, resize_grid(tokens.float(), (5, 7), (9, 4)).to(dtype))


def test_constants_stay_constant_at_any_size() -> None:
    for new_grid in [(1, 1), (3, 50), (31, 20)]:
        torch.testing.assert_close(
            resize_grid(torch.ones(1, 35, 2), (5, 7), new_grid), torch.ones(1, new_grid[0] * new_grid[1], 2)
        )
