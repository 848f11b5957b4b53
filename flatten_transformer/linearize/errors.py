"""How far each attention of a student is from its teacher's, on the teacher's own inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from flatten_transformer.linearize.forms import is_linear
from flatten_transformer.linearize.mixer import LinearMixer
from flatten_transformer.linearize.tokens import patch_embedding

_LEAST = 1e-12  # of a mean square: an output of zeros has no relative error
Compare = Callable[[str, Tensor, Tensor], None]


@contextmanager
def compared(teacher: nn.Module, student: nn.Module, compare: Compare) -> Iterator[None]:
    """While the teacher runs, run each linear attention of the student on the inputs of the teacher's.

    Args:
        teacher: The softmax model.
        student: Its linear form.
        compare: Called with the name of an attention, the teacher's output and the student's, ``[B, N, C]``.

    Example:
        >>> import timm
        >>> from flatten_transformer.linearize import linearize
        >>> teacher = timm.create_model("vit_tiny_patch16_224", depth=2)
        >>> with compared(teacher, linearize(teacher, keep=[0]), lambda name, wanted, came: print(name, tuple(came.shape))):
        ...     _ = teacher(torch.randn(1, 3, 224, 224))
        blocks.1.attn (1, 197, 192)
    """

    def hook(name: str, linear: Any) -> Callable[..., None]:
        def run(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            with torch.set_grad_enabled(enabled):
                compare(name, first(output), first(linear(*args, **kwargs)))

        return run

    enabled = torch.is_grad_enabled()
    handles = [
        teacher.get_submodule(name).register_forward_hook(hook(name, part), with_kwargs=True)
        for name, part in student.named_modules()
        if is_linear(part)
    ]
    patches = patch_embedding(teacher)
    if patches is not None:  # the student's own is not run
        handles += [
            patches.register_forward_hook(seen) for seen in {m.seen for m in student.modules() if isinstance(m, LinearMixer)}
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def block_errors(teacher: nn.Module, student: nn.Module, images: Tensor) -> dict[str, float]:
    """Return the relative error of each linear attention by its name: ‖student − teacher‖² / ‖teacher‖², mean over the images.

    Args:
        teacher: The softmax model.
        student: Its linear form.
        images: Inputs of the teacher, such as ``[B, C, height, width]``.

    Returns:
        Error by name, as in ``teacher.named_modules()``; attentions that stayed softmax have none.

    Example:
        >>> import timm
        >>> from flatten_transformer.linearize import linearize
        >>> teacher = timm.create_model("vit_tiny_patch16_224", depth=2)
        >>> block_errors(teacher, linearize(teacher, "softmax"), torch.randn(1, 3, 224, 224))["blocks.0.attn"] < 1e-10
        True
    """
    errors: dict[str, float] = {}

    def compare(name: str, wanted: Tensor, came: Tensor) -> None:
        errors[name] = relative_error(wanted, came).item()

    modes = teacher.training, student.training
    try:
        with compared(teacher.eval(), student.eval(), compare):
            teacher(images)
    finally:
        teacher.train(modes[0]), student.train(modes[1])
    return errors


def relative_error(wanted: Tensor, came: Tensor) -> Tensor:
    """Return the mean over the samples of ‖came − wanted‖² / ‖wanted‖², a scalar.

    A mean of samples is the same on one device and on several, and where a batch is cut into pieces.

    Args:
        wanted: ``[B, …]``.
        came: ``[B, …]``.

    Example:
        >>> relative_error(torch.tensor([[2.0], [1.0]]), torch.tensor([[1.0], [1.0]]))
        tensor(0.1250)
    """
    wide = torch.promote_types(wanted.dtype, torch.float32)  # half precision overflows
    wanted, came = wanted.to(wide), came.to(wide)
    size = wanted.flatten(1).square().mean(1).clamp_min(_LEAST)
    return ((came - wanted).flatten(1).square().mean(1) / size).mean()


def first(output: Any) -> Tensor:
    """Return the output of an attention that may return its weights too."""
    return output[0] if isinstance(output, tuple) else output
