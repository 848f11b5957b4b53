"""A linear layer that takes the quicker of PyTorch's two CPU libraries where no gradient is wanted."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor as _is_functorch_wrapped_tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode


class Projection(nn.Linear):
    """``nn.Linear``, the same parameters and numbers; float32 inference on a CPU runs in oneDNN instead of MKL.

    Both come with PyTorch. MKL does not use the wide vectors of AMD's processors: oneDNN is more than twice as
    fast there (docs/benchmarks.md). Compiling, exporting, tracing, training and counting operations see a plain nn.Linear.

    Args: as ``nn.Linear``.

    Example:
        >>> projection = Projection(8, 16)
        >>> with torch.no_grad():
        ...     projection(torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 16])
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # nn.Linear's name
        """Return ``[..., out_features]`` of ``[..., in_features]``."""
        if not torch.compiler.is_compiling() and _fits_onednn(input, self.weight):
            projected: Tensor = torch.ops.mkldnn._linear_pointwise(input, self.weight, self.bias, "none", [], "")
            return projected
        return super().forward(input)


def _fits_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        not torch.is_grad_enabled()
        and x.ndim > 1
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and type(x) is Tensor
        and not torch.is_autocast_enabled("cpu")
        and torch._C._get_tracing_state() is None
        and _get_current_dispatch_mode() is None
        and torch.backends.mkldnn.is_available()
        and not _is_functorch_wrapped_tensor(x)
    )
