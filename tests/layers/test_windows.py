"""Windows: what is cut comes back, padding is known, and shifted windows know which tokens are neighbours."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from flatten_transformer.layers.windows import Windows

sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


@st.composite
def shifted_windows(draw: st.DrawFn) -> Windows:
    grid, window = draw(sizes), draw(sizes)
    height, width = (draw(st.integers(0, min(pair) - 1)) for pair in zip(grid, window, strict=True))
    return Windows(grid, window, (height, width))


def places(windows: Windows) -> torch.Tensor:
    """Return where each token comes from, ``[W, N, 2]``, counted from 1; padding is 0."""
    rows, columns = (torch.arange(1, size + 1) for size in windows.grid_size)
    return windows.split(torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=2)[None])


@given(shifted_windows())
def test_what_is_cut_comes_back(windows: Windows) -> None:
    x = torch.randn(2, *windows.grid_size, 3)
    assert torch.equal(windows.join(windows.split(x)), x)


@given(shifted_windows())
def test_each_token_is_a_key_once_and_padding_never(windows: Windows) -> None:
    tokens = windows.split(torch.ones(2, *windows.grid_size, 1))
    mask = windows.key_mask(tokens)
    inside = torch.ones_like(tokens[:, None, None, :, 0]) if mask is None else mask.float()
    assert torch.equal(inside[:, 0, 0], tokens[:, :, 0])
    assert mask is None or bool(mask.any(dim=3).all())  # no window is all padding


@given(shifted_windows())
def test_pairs_attend_where_the_shift_left_them_neighbours(windows: Windows) -> None:
    mask, came = windows.pair_mask(torch.device("cpu")), places(windows)
    height, width = windows.window_size
    rows, columns = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
    now = torch.stack((rows, columns), dim=1)
    kept = (came[:, :, None] - came[:, None]) == (now[:, None] - now[None])  # as far apart as before the roll
    real = came[:, :, 0] > 0
    pairs = real[:, :, None] & real[:, None]
    allowed = torch.ones_like(pairs) if mask is None else mask
    assert torch.equal(allowed & pairs, kept.all(dim=3) & pairs)
    assert not bool((allowed & ~real[:, None]).any())  # padding is no key
    assert bool(allowed.any(dim=2).all())  # every query has a key, or softmax would give NaN
