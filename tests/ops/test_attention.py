"""The whole attention, key encoding and rank restoration included: every backend equals the oracle."""

# B batch, H heads, M tokens, D key channels, E value channels per head.

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from flatten_transformer import focused_linear_attention
from flatten_transformer.ops import reference
from flatten_transformer.ops.checks import Norm
from tests.helpers import TOLERANCES, output_and_gradients, relative_error

NAMES = ("output", "query", "key", "value", "temperature", "key_encoding", "conv_weight", "conv_bias")


@dataclass(frozen=True)
class Whole:
    """Sizes and options of one attention over a grid, from which its tensors are drawn; its repr reproduces it."""

    seed: int
    batch: int
    heads: int
    grid: tuple[int, ...]
    kernel: tuple[int, ...]
    prefix: int = 0
    key_channels: int = 16
    value_channels: int = 16
    focusing_factor: float = 3.0
    norm: Norm = "joint"
    masked: bool = False

    @property
    def tokens(self) -> int:
        return self.prefix + math.prod(self.grid)

    def draw(self, *shape: int, step: int = 0) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(self.seed + step))

    def inputs(self, dtype: torch.dtype) -> list[Tensor]:
        """Return query, key and value, slices of one packed projection where their channels allow it, and the options."""
        head = 2 * self.key_channels + self.value_channels
        packed = self.draw(self.batch, self.tokens, self.heads, head).to(dtype).transpose(1, 2)
        query, key, value = packed.split([self.key_channels, self.key_channels, self.value_channels], dim=3)
        options = [
            self.draw(self.heads, self.key_channels, step=1).sigmoid() + 0.5,
            self.draw(self.heads, self.tokens, self.key_channels, step=2) / 2,
            self.draw(self.value_channels, 1, *self.kernel, step=3) / 5,
            self.draw(self.value_channels, step=4) / 5,
        ]
        return [query, key, value, *(option.to(dtype) for option in options)]

    def run(self, attention: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
        mask = self.draw(self.batch, 1, 1, self.tokens, step=5) < 1 if self.masked else None

        def call(query: Tensor, key: Tensor, value: Tensor, temperature: Tensor, encoding: Tensor, *conv: Tensor) -> Tensor:
            settings: dict[str, Any] = {"focusing_factor": self.focusing_factor, "norm": self.norm, "grid_size": self.grid}
            return attention(
                *(query, key, value, mask),
                temperature=temperature,
                key_encoding=encoding,
                conv_weight=conv[0],
                conv_bias=conv[1],
                **settings,
            )

        return output_and_gradients(call, inputs, self.draw(self.batch, self.heads, self.tokens, self.value_channels, step=6))


SIDES = st.integers(1, 12)
KERNELS = st.sampled_from([1, 3, 5, 7, 9])


@st.composite
def wholes(draw: st.DrawFn) -> Whole:
    axes = draw(st.integers(1, 2))
    return Whole(
        seed=draw(st.integers(0, 10**6)),
        batch=draw(st.integers(1, 2)),
        heads=draw(st.integers(1, 3)),
        grid=tuple(draw(SIDES) for _ in range(axes)),
        kernel=tuple(draw(KERNELS) for _ in range(axes)),
        prefix=draw(st.integers(0, 3)),
        key_channels=draw(st.sampled_from([8, 15, 16, 32, 33, 64])),
        value_channels=draw(st.sampled_from([8, 15, 16, 32, 33, 64])),
        focusing_factor=draw(st.sampled_from([1.0, 2.0, 3.0, 4.0, 2.5])),
        norm=draw(st.sampled_from(["joint", "per_head"])),
        masked=draw(st.booleans()),
    )


LONG = Whole(1, 2, 2, (27, 41), (5, 5), 2, 32, 32)  # more than one range of tokens to a thread


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@given(case=wholes().filter(lambda case: case.tokens >= 12))
@settings(max_examples=25)
@example(case=LONG)
@example(case=Whole(2, 1, 2, (14, 14), (5, 5), 0, 64, 64, masked=True))
@example(case=Whole(3, 1, 1, (1, 1), (5, 5), 0, 16, 16))
def test_output_and_every_gradient_equal_the_oracle(backend: str, dtype: torch.dtype, case: Whole) -> None:
    """Fewer tokens, whose gradients cancel, are test_linear_attention's; here a small one is measured by the values' too."""
    # Of 8 channels one draw in 50 has a token whose only positive one is near 0: its gradient cancels (float32: 1e-4, measured).
    assume(case.key_channels > 8 or dtype == torch.float64)
    inputs = case.inputs(dtype)
    came = case.run(focused_linear_attention, inputs)
    wanted = case.run(reference.focused_linear_attention, [tensor.double() for tensor in inputs])
    for name, one, other in zip(NAMES, came, wanted, strict=True):
        size = max(float(other.norm()), float(wanted[3].norm()) if name in NAMES[1:3] + NAMES[4:6] else 0.0)
        assert float((one.double() - other).norm()) <= TOLERANCES[dtype] * size, name


def test_three_axes_run_on_the_portable_backend() -> None:
    case = Whole(4, 2, 2, (3, 4, 5), (3, 1, 5), prefix=1)
    inputs = case.inputs(torch.float64)
    came = case.run(partial(focused_linear_attention, backend="portable"), inputs)
    wanted = case.run(reference.focused_linear_attention, inputs)
    for one, other in zip(came, wanted, strict=True):
        assert relative_error(one, other) < 1e-12


@pytest.mark.parametrize("option", ["key_encoding", "conv_weight", "conv_bias"])
def test_every_option_changes_the_output(backend: str, option: str) -> None:
    case = Whole(5, 1, 2, (5, 7), (3, 3))
    options = dict(zip(NAMES[4:], case.inputs(torch.float64)[3:], strict=True))
    query, key, value = case.inputs(torch.float64)[:3]
    changed = {**options, option: options[option] * 2}
    one = focused_linear_attention(query, key, value, grid_size=case.grid, **options)  # type: ignore[arg-type]
    other = focused_linear_attention(query, key, value, grid_size=case.grid, **changed)  # type: ignore[arg-type]
    assert relative_error(one, other) > 1e-4


def test_nothing_is_left_unwritten(backend: str) -> None:
    """In this mode PyTorch fills what nobody has written yet with NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        for case in (LONG, Whole(6, 2, 3, (5, 7), (3, 5), 1, 15, 33, masked=True)):
            for result in case.run(focused_linear_attention, case.inputs(torch.float32)):
                assert result.isfinite().all()
    finally:
        torch.use_deterministic_algorithms(False)


def test_the_number_of_threads_changes_no_bit(backend: str) -> None:
    if backend == "portable":
        pytest.skip("PyTorch's own operations promise nothing of the kind")
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(LONG.run(focused_linear_attention, LONG.inputs(torch.float32)))
    torch.set_num_threads(threads)
    for one, *others in zip(*results, strict=True):
        assert all(torch.equal(one, other) for other in others)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"key_encoding": torch.ones(2, 34, 16)}, r"key_encoding must be \[heads, keys, channels\] = \[2, 35, 16\].*\[2, 34, 16\]"),
    ({"grid_size": (5, 7)}, "conv_bias and grid_size belong to a convolution"),
    ({"conv_weight": torch.ones(16, 1, 3, 3)}, "conv_weight needs grid_size"),
    ({"conv_weight": torch.ones(16, 1, 4, 4), "grid_size": (5, 7)}, r"odd side for each of 2 axes\], got \[16, 1, 4, 4\]"),
    ({"conv_weight": torch.ones(16, 1, 3), "grid_size": (5, 7)}, r"odd side for each of 2 axes\], got \[16, 1, 3\]"),
    ({"conv_weight": torch.ones(8, 1, 3, 3), "grid_size": (5, 7)}, r"\[16, 1, odd side.*got \[8, 1, 3, 3\]"),
    ({"conv_weight": torch.ones(16, 1, 3, 3), "grid_size": (6, 6)}, r"grid_size \(6, 6\) has 36 tokens, there are 35 queries"),
    (
        {"conv_weight": torch.ones(16, 1, 3, 3), "conv_bias": torch.ones(8), "grid_size": (5, 7)},
        r"conv_bias must be \[16\], got \[8\]",
    ),
    ({"backend": "cuda"}, "backend must be one of portable, cpp.*got 'cuda'"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[message[:30] for _, message in BAD])
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    query, key, value = torch.randn(3, 1, 2, 35, 16).unbind(0)
    with pytest.raises(ValueError, match=message):
        focused_linear_attention(query, key, value, **options)
