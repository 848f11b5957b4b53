"""Building what a file describes: first without memory and under bounds, then for good and without drawing weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Result = TypeVar("Result")
_MIB = 2**20
_CALLS, _CALLS_A_TENSOR = 5000, 50  # measured over timm's families and our detectors: at most 15 calls a tensor
_SPARE_BYTES = 256 * _MIB  # of one tensor beyond the file: masks of windows and the like are computed, not saved
_INIT = frozenset(  # what initialisation calls on a parameter
    [getattr(nn.init, f"{name}_") for name in ("constant", "kaiming_normal", "kaiming_uniform", "normal", "uniform")]
    + [getattr(Tensor, f"{name}_") for name in ("add", "clamp", "erfinv", "fill", "mul", "normal", "uniform", "zero")]
)


class _SkipInit(TorchFunctionMode):
    """Leaves parameters as they were allocated where they would be initialised: a file overwrites all of them."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _INIT and isinstance(parameter := args[0] if args else (kwargs or {}).get("tensor"), nn.Parameter):
            return parameter
        return func(*args, **(kwargs or {}))


class _Limits(TorchFunctionMode):
    """Ends a construction that calls PyTorch more often, or makes a larger tensor, than the model in a file can need."""

    def __init__(self, calls: int, nbytes: int) -> None:
        super().__init__()
        self.calls, self.nbytes = calls, nbytes

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.calls -= 1
        if self.calls < 0:
            raise ValueError("its model would have many more tensors than the file")
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.nbytes > self.nbytes:
            raise ValueError(f"its model would have a tensor of {made.nbytes / 1e9:.3g} GB, {list(made.shape)}")
        return made


def build_on_meta(build: Callable[[], Result], tensors: Mapping[str, Tensor]) -> Result:
    """Build a module on the meta device, and no more of it than a file with ``tensors`` can hold.

    Args:
        build: Returns the module.
        tensors: Of the file.

    Raises:
        ValueError: If the module would be larger than the file allows.

    Example:
        >>> build_on_meta(lambda: nn.Linear(2, 3), {}).weight.device.type
        'meta'
        >>> build_on_meta(lambda: nn.Linear(10**6, 10**6), {})
        Traceback (most recent call last):
        ValueError: its model would have a tensor of 4e+03 GB, [1000000, 1000000]
    """
    size = sum(tensor.nbytes for tensor in tensors.values())
    bounds = _Limits(_CALLS + _CALLS_A_TENSOR * len(tensors), 2 * size + _SPARE_BYTES)  # 2: halves become float32
    with torch.device("meta"), bounds, _SkipInit():
        return build()


def build_uninitialized(build: Callable[[], Result]) -> Result:
    """Build a module whose parameters hold whatever was in memory, which is faster than to draw them at random.

    Args:
        build: Returns the module.
    """
    with _SkipInit():
        return build()
