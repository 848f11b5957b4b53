"""Linear layers, alone and in an MLP, that take the quicker of PyTorch's two CPU libraries where no gradient is wanted."""

from __future__ import annotations

import torch
from timm.layers import Mlp
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor as _is_functorch_wrapped_tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode


class Projection(nn.Linear):
    """``nn.Linear``, the same parameters and numbers; float32 inference on a CPU runs in oneDNN instead of MKL.

    Both come with PyTorch. MKL does not use the wide vectors of some AMD processors: oneDNN is more than twice as
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
            return _project(input, self, "none")
        return super().forward(input)


class ProjectionMlp(Mlp):
    """timm's ``Mlp``, the same parameters and numbers; float32 inference on a CPU applies GELU in the first matrix product.

    What is hooked, trained, compiled, exported or traced runs step by step as in timm.

    Args: as ``timm.layers.Mlp``.

    Example:
        >>> mlp = ProjectionMlp(8, 32).eval()
        >>> with torch.no_grad():
        ...     mlp(torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[..., out_features]`` of ``[..., in_features]``."""
        if self._is_one_product() and not torch.compiler.is_compiling() and _fits_onednn(x, self.fc1.weight):
            return self.fc2(_project(x, self.fc1, "gelu"))
        return super().forward(x)

    def _is_one_product(self) -> bool:
        skipped = (self.fc1, self.act, self.drop1, self.norm)
        return (
            not self.training
            and isinstance(self.fc1, nn.Linear)
            and type(self.act) is nn.GELU
            and self.act.approximate == "none"
            and isinstance(self.norm, nn.Identity)
            and not any(module._forward_hooks or module._forward_pre_hooks for module in skipped)
        )


def use_projections(model: nn.Module) -> None:
    """Make every ``nn.Linear`` in ``model`` a Projection and every ``Mlp`` a ProjectionMlp, parameters kept; subclasses stay.

    Example:
        >>> mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        >>> use_projections(mlp)
        >>> type(mlp[0]).__name__
        'Projection'
    """
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                setattr(parent, name, _as_projection(child))
            elif type(child) is Mlp:
                child.__class__ = ProjectionMlp


def _as_projection(linear: nn.Linear) -> Projection:
    projection = Projection(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
    projection.weight, projection.bias = linear.weight, linear.bias
    return projection.train(linear.training)


def _project(x: Tensor, linear: nn.Linear, then: str) -> Tensor:
    projected: Tensor = torch.ops.mkldnn._linear_pointwise(x, linear.weight, linear.bias, then, [], "none")
    return projected


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
