"""The backend ``"triton"``: a PyTorch operator whose kernels are loaded at their first call."""

# B batch, H heads, N queries, M keys, D key channels, E value channels per head.

from __future__ import annotations

import os
from importlib.util import find_spec

import torch
from torch import Tensor

from flatten_transformer.ops.checks import Arguments
from flatten_transformer.ops.fused import Saved, define_operator

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_CHANNELS = range(8, 129)
_MIN_CAPABILITY = (8, 0)
_INSTALLED = find_spec("triton") is not None  # looked up once: it takes as long as launching a kernel


def why_not(a: Arguments) -> str | None:
    """Return why the kernels cannot compute this attention here, or None if they can.

    Example:
        >>> x = torch.rand(1, 2, 5, 16, dtype=torch.float64)
        >>> why_not(Arguments(x, x, x))
        'query is torch.float64 and value torch.float64; it takes torch.float16, torch.bfloat16 and torch.float32'
    """
    query, value = a.query, a.value
    if query.dtype not in _DTYPES or value.dtype not in _DTYPES:
        return f"query is {query.dtype} and value {value.dtype}; it takes {', '.join(map(str, _DTYPES[:-1]))} and {_DTYPES[-1]}"
    key_channels, value_channels = query.shape[3], value.shape[3]
    if key_channels not in _CHANNELS or value_channels not in _CHANNELS:
        return f"heads have {key_channels} key and {value_channels} value channels; it takes {_CHANNELS[0]} to {_CHANNELS[-1]}"
    if len(a.grid_size) > 2:
        return f"it convolves grids of one or two axes, not {tuple(a.grid_size)}"
    if not _INSTALLED:
        return "Triton is not installed: pip install triton"
    if query.device.type == "cuda":
        capability = torch.cuda.get_device_capability(query.device)
        if torch.version.hip is None and capability < _MIN_CAPABILITY:
            return f"Triton needs compute capability {_MIN_CAPABILITY}, this GPU has {capability}"
        return None
    if query.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return None
    return f"the tensors are on {query.device}, not on a CUDA device (on a CPU it runs under TRITON_INTERPRET=1, to be tested)"


def _forward(a: Arguments, saved: Saved) -> Tensor:
    from flatten_transformer.ops.triton.launch import forward  # Triton is optional

    return forward(a, saved)


def _backward(grad: Tensor, a: Arguments, saved: Saved) -> tuple[Tensor, ...]:
    from flatten_transformer.ops.triton.launch import backward

    return backward(grad, a, saved)


attend = define_operator("triton_attention", _forward, _backward, norm_numbers=4, widens=True)
