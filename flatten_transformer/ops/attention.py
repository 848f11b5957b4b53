"""Focused linear attention as one function, on any backend."""

# B batch, H heads, N queries, M keys, D key channels, E value channels per head.

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from flatten_transformer.ops.checks import (
    Arguments,
    Norm,
    check_attention,
    check_convolution,
    check_mask,
    check_norm,
    check_options,
)
from flatten_transformer.ops.dispatch import Backend, choose_backend
from flatten_transformer.ops.empty import attend_to_nothing, is_empty
from flatten_transformer.ops.linear_attention import add_convolution
from flatten_transformer.ops.transforms import transformed


def focused_linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *,
    focusing_factor: float = 3.0,
    temperature: Tensor | None = None,
    norm: Norm = "joint",
    eps: float = 1e-6,
    key_encoding: Tensor | None = None,
    conv_weight: Tensor | None = None,
    conv_bias: Tensor | None = None,
    grid_size: Sequence[int] | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """Attend in O(N + M), in place of ``F.scaled_dot_product_attention(query, key, value)``.

    ``O = φ(Q) (φ(K)ᵀ V) / (φ(Q) Σφ(K)) + DWC(V)`` with ``φ(x) = f_p((ReLU(x) + eps) / temperature)``: eq. (4)-(6)
    and (10) of FLatten (arXiv 2308.00442) in the form of the authors' released code. There is no 1/√D. Sums run
    in float32 (float64 for float64 input) whatever the input dtype or autocast.

    Args:
        query: ``[B, H, N, D]``.
        key: ``[B, H, M, D]``.
        value: ``[B, H, M, E]``.
        attn_mask: Boolean, ``[B, 1, 1, M]`` or broadcastable to it; True where a key takes part, as in
            scaled_dot_product_attention. Masked keys and values never matter, not even NaN.
            A sample whose keys are all masked attends to nothing: zeros.
        focusing_factor: The power p, a real number from 1 to 2¹⁶. 3 is the paper's, 1 is ReLU linear attention.
        temperature: ``[H, D]``, positive; divides queries and keys (the released softplus(scale)). Others raise on
            a CPU, where checking is free; on a GPU, in graphs and under transforms they give NaN.
        norm: ``"joint"`` takes the norms of f_p over all heads of a token, as the official weights need;
            ``"per_head"`` over each head alone.
        eps: Added to ReLU(x) and to the normaliser; dimensionless, from 1e-30 to 1e30.
        key_encoding: ``[H, M, D]``, added to the keys.
        conv_weight: ``[E, 1, *kernel]`` with odd sides: adds rank restoration, a depthwise convolution of the values
            with one kernel set for all heads. Needs ``grid_size`` and as many queries as keys.
        conv_bias: ``[E]``, the bias of that convolution.
        grid_size: The grid of the tokens, one to three positive sizes, last axis fastest. Tokens before it are prefix tokens
            (class, register), which are not convolved.
        backend: ``"portable"`` (PyTorch operations, everywhere), ``"cpp"`` (a compiled kernel, CPU), ``"triton"`` (GPU);
            None chooses, or the environment variable ``FLATTEN_BACKEND`` does. Under transforms of ``torch.func``, with
            tangents and in second derivatives it is always the portable one.

    Query, key and value share one dtype, other tensors may have any no finer than the sums; all are on one device.

    Returns:
        ``[B, H, N, E]`` in ``query.dtype``. Zeros without keys or key channels.

    Raises:
        ValueError: If shapes, dtypes or options do not fit; for a mask over query-key pairs, which no
            linear-time attention can apply.
        BackendError: If the requested backend cannot run here; the message says why. It is a RuntimeError.

    Example:
        >>> q, k, v = torch.randn(3, 2, 4, 196, 32).unbind(0)
        >>> focused_linear_attention(q, k, v, focusing_factor=3).shape
        torch.Size([2, 4, 196, 32])
    """
    check_attention(query, key, value)
    check_norm(norm)
    check_mask(attn_mask, key)
    check_convolution(conv_weight, conv_bias, grid_size, query, value)
    if attn_mask is not None:  # once, for every backend: a masked NaN must not reach a sum, forward or backward
        hidden = ~attn_mask.transpose(2, 3)  # [B, 1, M, 1]
        key, value = key.masked_fill(hidden, 0), value.masked_fill(hidden, 0)
    a = Arguments(
        *(query, key, value, None, key_encoding, temperature, conv_weight, conv_bias),
        *(tuple(grid_size or ()), focusing_factor, norm == "joint", eps),
    )
    check_options(a)

    attend = choose_backend(backend, a, under_transforms=transformed(*a))
    if is_empty(query, key, value):
        out = attend_to_nothing(*a)
        return add_convolution(out, value, a) if value.numel() else out
    return attend(a, attn_mask)
