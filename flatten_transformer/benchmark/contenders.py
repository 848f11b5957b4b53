"""Contenders of `flatten benchmark op`: attentions on one packed projection, as in a layer."""

# B batch, N tokens, C = H heads × D channels per head.

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatten_transformer.benchmark.race import FORWARD
from flatten_transformer.benchmark.released import released_attention
from flatten_transformer.benchmark.report import ATTENTION, RELEASED
from flatten_transformer.benchmark.timing import Run
from flatten_transformer.ops import focused_linear_attention
from flatten_transformer.ops.checks import Arguments
from flatten_transformer.ops.dispatch import Backend, BackendError, choose_backend

OURS = "ours"
KERNEL_SIZE = 5
_SOFTMAX = {
    "softmax-math": SDPBackend.MATH,
    "softmax-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "softmax-flash": SDPBackend.FLASH_ATTENTION,
    "softmax-cudnn": SDPBackend.CUDNN_ATTENTION,
}


class Shape(NamedTuple):
    """Sizes of one attention over a plane of tokens."""

    batch: int
    height: int
    width: int
    channels: int  # of all heads
    heads: int

    @property
    def name(self) -> str:
        """Name in reports, whatever the sizes."""
        return ATTENTION

    @property
    def tokens(self) -> int:
        """Tokens N of one sample."""
        return self.height * self.width

    def sizes(self) -> dict[str, int]:
        """Return all sizes, by their names in reports."""
        return {**self._asdict(), "tokens": self.tokens}

    def elements(self) -> int:
        """Return the number of elements of q, k, v or the output: B·N·C."""
        return self.batch * self.tokens * self.channels

    def scores(self) -> int:
        """Return the number of elements of the attention matrix, which some softmax kernels store: B·H·N²."""
        return self.batch * self.heads * self.tokens**2

    def __str__(self) -> str:
        return f"{self.batch}x{self.height}x{self.width}x{self.channels}x{self.heads}"


class Inputs(NamedTuple):
    """Inputs of one call; contenders without encoding, temperature or convolution ignore those."""

    packed: Tensor  # [B, N, 3C], sliced into q, k and v
    encoding: Tensor  # [1, N, C]
    scale: Tensor  # [1, 1, C]; the temperature is softplus(scale)
    conv_weight: Tensor  # [D, 1, 5, 5]
    conv_bias: Tensor  # [D]


Attention = Callable[[Inputs, Shape], Tensor]  # -> [B, N, C]


def draw_inputs(shape: Shape, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Inputs:
    """Draw inputs of the magnitudes of a trained model.

    Example:
        >>> draw_inputs(Shape(2, 3, 4, 32, 2), torch.float32, torch.device("cpu")).packed.shape
        torch.Size([2, 12, 96])
    """
    generator = torch.Generator(device).manual_seed(seed)
    draw = partial(torch.randn, generator=generator, device=device, dtype=dtype)
    side = KERNEL_SIZE
    per_head = shape.channels // shape.heads
    return Inputs(
        draw(shape.batch, shape.tokens, 3 * shape.channels),
        draw(1, shape.tokens, shape.channels) * 0.2,
        draw(1, 1, shape.channels) * 0.2,
        draw(per_head, 1, side, side) / side,
        draw(per_head) * 0.1,
    )


def released(inputs: Inputs, shape: Shape) -> Tensor:
    """Attend by the released form, ``[B, N, C]``."""
    query, key, value = inputs.packed.chunk(3, dim=2)
    return released_attention(
        query,
        key,
        value,
        num_heads=shape.heads,
        positional_encoding=inputs.encoding,
        temperature=F.softplus(inputs.scale),
        conv_weight=inputs.conv_weight,
        conv_bias=inputs.conv_bias,
        grid_size=(shape.height, shape.width),
    )


def ours(inputs: Inputs, shape: Shape, backend: Backend | None = None) -> Tensor:
    """Attend by this library, as its layer does, ``[B, N, C]``."""
    out = focused_linear_attention(*_heads(inputs.packed, shape), **_options(inputs, shape), backend=backend)
    return out.transpose(1, 2).flatten(2)


def relu_linear(inputs: Inputs, shape: Shape) -> Tensor:
    """Attend by ReLU linear attention on our kernel, ``[B, N, C]``: no focusing, encoding or convolution."""
    out = focused_linear_attention(*_heads(inputs.packed, shape), focusing_factor=1)
    return out.transpose(1, 2).flatten(2)


def softmax(inputs: Inputs, shape: Shape) -> Tensor:
    """Attend by softmax, ``[B, N, C]``, on the kernel that is enabled."""
    query, key, value = _heads(inputs.packed, shape)
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def _heads(packed: Tensor, shape: Shape) -> list[Tensor]:
    """Return q, k and v, ``[B, H, N, D]`` each, as views of the projection."""
    return [x.unflatten(2, (shape.heads, -1)).transpose(1, 2) for x in packed.chunk(3, dim=2)]


def _options(inputs: Inputs, shape: Shape) -> dict[str, Any]:
    """Return the options of our attention, by name."""
    scale = inputs.scale if inputs.scale.element_size() >= 4 else inputs.scale.float()
    return {
        "temperature": F.softplus(scale).reshape(shape.heads, -1),
        "key_encoding": inputs.encoding.unflatten(2, (shape.heads, -1)).transpose(1, 2)[0],
        "conv_weight": inputs.conv_weight,
        "conv_bias": inputs.conv_bias,
        "grid_size": (shape.height, shape.width),
    }


@dataclass(frozen=True)
class Contender:
    """A contender and its known properties."""

    name: str
    attention: Attention
    focused: bool = True  # computes the same function as the released form
    stores_scores: bool = False  # writes the N × N matrix
    kernel: SDPBackend | None = None
    compiled: bool = False
    left_out: str | None = None

    def setting(self, direction: str) -> Callable[[], AbstractContextManager[object]]:
        """Return the context manager of its calls."""
        return partial(_setting, self.kernel, direction == FORWARD)

    def needs_mib(self, shape: Shape, dtype: torch.dtype, direction: str) -> float:
        """Estimate the memory of one call, in MiB, generously: float32 copies and what autograd saves."""
        copies, scores = (10, 2) if direction == FORWARD else (30, 4)
        elements = copies * shape.elements() + scores * shape.scores() * self.stores_scores
        return elements * max(4, dtype.itemsize) / 2**20


@contextmanager
def _setting(kernel: SDPBackend | None, no_gradients: bool) -> Iterator[None]:
    with torch.no_grad() if no_gradients else nullcontext(), sdpa_kernel(kernel) if kernel else nullcontext():
        yield


def contenders(inputs: Inputs, shape: Shape, *, compiled: bool = True) -> list[Contender]:
    """Return all contenders; a backend that cannot run these inputs has the reason in ``left_out``.

    Args:
        inputs: Device and dtype decide which backends can run.
        shape: Sizes of the inputs.
        compiled: Include the released form and our portable backend under torch.compile.
    """
    reasons = {f"{OURS}-{backend}": _unavailable(backend, inputs, shape) for backend in get_args(Backend)}
    return [replace(each, left_out=reasons.get(each.name)) for each in _all_contenders(compiled)]


def names(*, compiled: bool = True) -> list[str]:
    """Return the names of all contenders.

    Example:
        >>> names()[:5]
        ['ours', 'ours-portable', 'ours-cpp', 'ours-triton', 'released']
    """
    return [each.name for each in _all_contenders(compiled)]


def _all_contenders(compiled: bool) -> list[Contender]:
    result = [Contender(OURS, ours)]
    result += [Contender(f"{OURS}-{backend}", partial(ours, backend=backend)) for backend in get_args(Backend)]
    result.append(Contender(RELEASED, released))
    if compiled:
        result.append(Contender(f"{RELEASED}-compiled", released, compiled=True))
        result.append(Contender(f"{OURS}-portable-compiled", partial(ours, backend="portable"), compiled=True))
    result.append(Contender("relu-linear", relu_linear, focused=False))
    for name, kernel in _SOFTMAX.items():
        stores = kernel == SDPBackend.MATH
        result.append(Contender(name, softmax, focused=False, stores_scores=stores, kernel=kernel))
    return result


def _unavailable(backend: Backend, inputs: Inputs, shape: Shape) -> str | None:
    """Return a backend's reason not to run these inputs, or None."""
    query, key, value = _heads(inputs.packed, shape)
    try:
        choose_backend(backend, Arguments(query, key, value, **_options(inputs, shape)))
    except BackendError as error:
        return str(error).partition(";")[0]
    return None


class Task(NamedTuple):
    """The task of all contenders of a race."""

    shape: Shape
    direction: str  # "forward" or "forward+backward"
    inputs: Sequence[Inputs]  # one set or more, used in turn
    upstream: Tensor  # [B, N, C], the gradient of the output


def make_run(contender: Contender, task: Task) -> Run:
    """Return the timed call: forward, or forward and the gradients of all inputs."""
    attention, shape = contender.attention, task.shape
    if contender.compiled:
        attention = torch.compile(partial(_call, attention), dynamic=False, fullgraph=True)
    setting = contender.setting(task.direction)
    if task.direction == FORWARD:
        return Run(lambda turn: (attention(task.inputs[turn % len(task.inputs)], shape),), setting)
    leaves = [Inputs(*(x.detach().requires_grad_() for x in one)) for one in task.inputs]

    def step(turn: int) -> tuple[Tensor, ...]:
        inputs = leaves[turn % len(leaves)]
        out = attention(inputs, shape)
        gradients = torch.autograd.grad(out, inputs, task.upstream, allow_unused=True)
        return (out.detach(), *(gradient for gradient in gradients if gradient is not None))

    return Run(step, setting)


def _call(attention: Attention, inputs: Inputs, shape: Shape) -> Tensor:
    return attention(inputs, shape)
