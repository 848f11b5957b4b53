"""What one attention of a model was given and handed on, and the matrices that it never formed."""

# B images, or windows of images; N queries, M keys, C channels = H heads × D channels per head, G groups of value channels.

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from flatten_transformer.layers import FocusedLinearAttention, GridAttention
from flatten_transformer.layers.attention.layout import Decomposition, Layout
from flatten_transformer.layers.rank_restoration import is_depthwise

_LARGEST_CHUNK = 2**24  # elements of the impulses that are convolved at once

Grid = tuple[int, ...]


@dataclass(frozen=True)
class Look:
    """One attention of a model at work: from :func:`flatten_transformer.analysis.capture`.

    Args:
        name: Of the module in its model, such as ``blocks.3.attn``.
        design: What it is: the class of the attention.
        heads: Heads H.
        windows: Windows that an image was cut into; 1: the whole image.
        num_prefix_tokens: Class and register tokens before the others.
        grid_size: The grid of the queries; None where it cannot be told.
        context_grid_size: That of the keys, likewise.
        output: What it handed to the output projection, ``[B, N, C]``.
    """

    name: str
    design: str
    heads: int
    windows: int
    num_prefix_tokens: int
    grid_size: Grid | None
    context_grid_size: Grid | None
    output: Tensor

    @property
    def queries(self) -> int:
        """The number of queries N."""
        return self.output.shape[1]

    @property
    def head_dim(self) -> int:
        """Channels of a head D."""
        return self.output.shape[2] // self.heads

    @property
    def keys(self) -> int:
        """The number of keys M."""
        raise NotImplementedError

    def decompose(self) -> Decomposition:
        """Return the matrix ``[B, G, N, M]`` and what else the output is made of; quadratic."""
        raise NotImplementedError

    def convolution(self, channels: Sequence[int]) -> Tensor | None:
        """Return rank restoration as matrices, ``M_DWC`` of FLatten eq. (11): one for each channel, without the bias.

        Args:
            channels: Of the C channels of all heads.

        Returns:
            ``[B, len(channels), N, M]``, or None where the attention has no convolution. For channel c of head h,
            ``(matrix[g] + convolution) @ value`` is its output (eq. 12) but for bias and gate, g the group of c.
        """
        return None

    def equivalent(self, channels: Sequence[int], parts: Decomposition | None = None) -> Tensor:
        """Return the matrices that the values of some channels are multiplied by, convolution included.

        Args:
            channels: Of the C channels of all heads.
            parts: From :meth:`decompose`, where it is at hand.

        Returns:
            ``[B, len(channels), N, M]``.
        """
        matrix = (self.decompose() if parts is None else parts).matrix
        chosen = matrix[:, self.groups(channels, matrix.shape[1])]
        convolution = self.convolution(channels)
        return chosen if convolution is None else chosen + convolution

    def groups(self, channels: Sequence[int], count: int) -> list[int]:
        """Return which of ``count`` groups each channel belongs to."""
        return [channel * count // self.output.shape[2] for channel in channels]


@dataclass(frozen=True)
class GridLook(Look):
    """A GridAttention at work, with or without projections of its own.

    Args:
        attention: The module.
        query: Projected tokens ``[B, N, C]``.
        key: ``[B, M, C]``.
        value: ``[B, M, C]``.
        layout: Where they lie.
        x: The tokens that were projected, ``[B, N, C]``.
    """

    attention: GridAttention
    query: Tensor
    key: Tensor
    value: Tensor
    layout: Layout
    x: Tensor | None

    @property
    def keys(self) -> int:
        """The number of keys M."""
        return self.key.shape[1]

    @torch.no_grad()
    def decompose(self) -> Decomposition:
        """Return the matrix ``[B, G, N, M]`` and what else the output is made of; quadratic."""
        return self.attention.decompose_projected(self.query, self.key, self.value, self.layout, self.x)

    @torch.no_grad()
    def convolution(self, channels: Sequence[int]) -> Tensor | None:
        """Return rank restoration as matrices, see :meth:`Look.convolution`: the answers to an impulse at each token."""
        dwc = self.attention.dwc
        plain = dwc is not None and is_depthwise(dwc) and not _restores_itself(self.attention)
        restore = self._restore_some if plain else self._restore_all
        batch, channel_count = self.output.shape[0], self.output.shape[2]
        bias = restore(torch.zeros(batch, 1, self.keys).to(self.output), channels)
        if bias is None:
            return None
        columns = []
        for impulses in torch.eye(self.keys).to(self.output).split(max(1, _LARGEST_CHUNK // (batch * self.keys * channel_count))):
            answers = restore(impulses.expand(batch, -1, -1), channels)
            assert answers is not None
            columns.append(answers - bias)  # [B, J, N, channels]
        matrix = torch.cat(columns, dim=1).permute(0, 3, 2, 1)
        hidden = self.layout.attn_mask
        return matrix if hidden is None else matrix.masked_fill(~hidden, 0)

    def _restore_all(self, values: Tensor, channels: Sequence[int]) -> Tensor | None:
        """Return some channels of the convolution, ``[B, J, N, channels]``, of values ``[B, J, M]`` that all channels share."""
        count = values.shape[1]
        mask, x = (None if t is None else t.repeat_interleave(count, 0) for t in (self.layout.attn_mask, self.x))
        v = values.flatten(0, 1)[:, None, :, None].expand(-1, self.heads, -1, self.head_dim)  # [B·J, H, M, D]
        restored = self.attention.restore(v, self.layout._replace(attn_mask=mask), x)
        return None if restored is None else restored[..., list(channels)].unflatten(0, (-1, count))

    def _restore_some(self, values: Tensor, channels: Sequence[int]) -> Tensor | None:
        """Return the same where ``dwc`` is all there is: by the kernels of these channels alone, 50 times as fast."""
        dwc, count = self.attention.dwc, len(channels)
        assert isinstance(dwc, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        options: dict[str, Any] = {"padding": dwc.padding, "groups": count, "bias": False, "device": "meta"}
        narrow = type(dwc)(count, count, dwc.kernel_size, **options)  # type: ignore[arg-type]  # as many sides as axes
        narrow.weight = nn.Parameter(dwc.weight[[channel % dwc.weight.shape[0] for channel in channels]])
        v = values.flatten(0, 1)[:, None, :, None].expand(-1, -1, -1, len(channels))  # [B·J, 1, M, channels]
        restored = _changed(self.attention, dwc=narrow).restore(v, self.layout, None)
        return None if restored is None else restored.unflatten(0, values.shape[:2])

    def refocused(self, focusing_factor: float) -> GridLook:
        """Return the same look with another power p, which shows what focusing does; 1 is plain ReLU linear attention.

        ``output`` stays that of the model.

        Raises:
            ValueError: If this is no focused linear attention.
        """
        if not isinstance(self.attention, FocusedLinearAttention):
            raise ValueError(f"{self.name} is {self.design}, which has no focusing_factor: choose a focused linear attention")
        return replace(self, attention=_changed(self.attention, focusing_factor=focusing_factor))


def _restores_itself(attention: GridAttention) -> bool:
    return type(attention).restore is not GridAttention.restore


def _changed(attention: GridAttention, **attributes: object) -> GridAttention:
    """Return a module around the same parameters, with other attributes."""
    other = copy.copy(attention)
    other._modules, other._parameters = dict(attention._modules), dict(attention._parameters)
    for name, value in attributes.items():
        setattr(other, name, value)
    return other


@dataclass(frozen=True)
class SoftmaxLook(Look):
    """A call of ``F.scaled_dot_product_attention``, as timm's models attend.

    Args:
        query: ``[B, H, N, D]``.
        key: ``[B, H, M, D]``.
        value: ``[B, H, M, E]``.
        bias: Added to the scores, -inf where a pair is masked: broadcast to ``[B, H, N, M]``; or None.
        scale: Of the scores.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    bias: Tensor | None
    scale: float

    @property
    def keys(self) -> int:
        """The number of keys M."""
        return self.key.shape[2]

    @torch.no_grad()
    def decompose(self) -> Decomposition:
        """Return the matrix ``[B, H, N, M]`` and the values; there is nothing else."""
        scores = self.query @ self.key.transpose(2, 3) * self.scale
        matrix = (scores if self.bias is None else scores + self.bias).softmax(dim=3)
        return Decomposition(matrix, self.value, None, None)
