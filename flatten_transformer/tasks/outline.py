"""Build untrusted models cheaply: on the meta device under limits, then without initialising weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Result = TypeVar("Result")
_MIB = 2**20
_CALLS, _CALLS_A_TENSOR = 5000, 50  # measured over timm's families and our detectors: at most 15 calls per tensor
_SPARE_BYTES = 256 * _MIB  # for one tensor beyond the file: window masks and the like are computed, not saved
_INIT = frozenset(  # functions that initialise a parameter
    [getattr(nn.init, f"{name}_") for name in ("constant", "kaiming_normal", "kaiming_uniform", "normal", "uniform")]
    + [getattr(Tensor, f"{name}_") for name in ("add", "clamp", "erfinv", "fill", "mul", "normal", "uniform", "zero")]
)


class _SkipInit(TorchFunctionMode):
    """Skip the initialisation of parameters, which a file will overwrite."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _INIT and isinstance(parameter := args[0] if args else (kwargs or {}).get("tensor"), nn.Parameter):
            return parameter
        return func(*args, **(kwargs or {}))


class _Limits(TorchFunctionMode):
    """Abort a construction with more PyTorch calls or larger tensors than the model of a file can need."""

    def __init__(self, calls: int, nbytes: int) -> None:
        super().__init__()
        self.calls, self.nbytes = calls, nbytes

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.calls -= 1
        if self.calls < 0:
            raise ValueError("its model would have many more tensors than the file")
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.nbytes > self.nbytes:
            raise ValueError(f"its model would have a tensor of {result.nbytes / 1e9:.3g} GB, {list(result.shape)}")
        return result


def build_on_meta(build: Callable[[], Result], tensors: Mapping[str, Tensor]) -> Result:
    """Build a module on the meta device, limited to the size of a file with ``tensors``.

    Args:
        build: Returns the module.
        tensors: Tensors of the file.

    Raises:
        ValueError: If the module exceeds the limits.

    Example:
        >>> build_on_meta(lambda: nn.Linear(2, 3), {}).weight.device.type
        'meta'
        >>> build_on_meta(lambda: nn.Linear(10**6, 10**6), {})
        Traceback (most recent call last):
        ValueError: its model would have a tensor of 4e+03 GB, [1000000, 1000000]
    """
    size = sum(tensor.nbytes for tensor in tensors.values())
    bounds = _Limits(_CALLS + _CALLS_A_TENSOR * len(tensors), 2 * size + _SPARE_BYTES)  # 2: float16 becomes float32
    with torch.device("meta"), bounds, _SkipInit():
        return build()


def build_uninitialized(build: Callable[[], Result]) -> Result:
    """Build a module with uninitialised parameters, which is faster than random ones."""
    with _SkipInit():
        return build()
