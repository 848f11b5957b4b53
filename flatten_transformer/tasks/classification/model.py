"""Any timm model by name, with actionable errors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from flatten_transformer.linearize.build import create_model
from flatten_transformer.models.read_weights import one_line, read_tensors
from flatten_transformer.tasks.building import building, check_name
from flatten_transformer.utils.digest import check_whole


def weights_args(pretrained: bool | Path) -> dict[str, Any]:
    """Return the timm arguments that load published weights or those of a file; none for False.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is a damaged checkpoint.

    Example:
        >>> weights_args(True), weights_args(False)
        ({'pretrained': True}, {})
    """
    if isinstance(pretrained, bool):
        return {"pretrained": True} if pretrained else {}
    if not pretrained.is_file():
        raise FileNotFoundError(f"no file of weights {pretrained}: check the path, or take the published ones by true")
    check_whole(pretrained)
    return {"pretrained": True, "pretrained_cfg_overlay": {"file": str(pretrained)}}


def build_model(name: str, model_args: Mapping[str, Any], num_classes: int, in_chans: int) -> nn.Module:
    """Build a timm model.

    Args:
        name: Any name in ``timm.list_models()``, which includes the FLatten models.
        model_args: Further keyword arguments of ``timm.create_model``, such as ``img_size`` or ``depth``.
        num_classes: Outputs of the classifier.
        in_chans: Channels of the images.

    Returns:
        A module from ``[B, in_chans, height, width]`` to ``[B, num_classes]``.

    Raises:
        ValueError: If timm does not know the model, or the model does not know an argument.
        FileNotFoundError: If ``model_args`` hold a ``checkpoint_path`` that is not there.

    Example:
        >>> model = build_model("flatten_deit_tiny_patch16_224", {"depth": 1}, num_classes=2, in_chans=1)
        >>> model(torch.rand(3, 1, 224, 224)).shape
        torch.Size([3, 2])
    """
    _check(name, model_args)
    args = dict(model_args)
    path = None if _is_jax(args.get("checkpoint_path")) else args.pop("checkpoint_path", None)
    weights = read_tensors(Path(path)) if path else None
    overlay = args.get("pretrained_cfg_overlay")
    with building(name, "model_args", overlay.get("file") if isinstance(overlay, Mapping) else None):
        model = create_model(name, num_classes=num_classes, in_chans=in_chans, **args)
    if weights is not None:
        _load(model, weights, path, f"{name} with {num_classes} classes")
    return model


def _is_jax(path: object) -> bool:
    """Return whether a file is a JAX checkpoint, which timm reads for some models."""
    return str(path).endswith((".npz", ".npy"))


def _load(model: nn.Module, weights: Mapping[str, Tensor], path: object, what: str) -> None:
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"the weights {path} do not fit {what} ({one_line(error)[:200]}): for other classes, or to begin with weights of "
            f"softmax attention, give --model.pretrained {path} instead"
        ) from None


def _check(name: str, model_args: Mapping[str, Any]) -> None:
    check_name(name, "model")
    taken = sorted({"num_classes", "in_chans"} & model_args.keys())
    if taken:
        raise ValueError(f"model_args must not hold {' and '.join(taken)}: the data say it; leave it out")
    taken = sorted({"device", "dtype"} & model_args.keys())
    if taken:
        raise ValueError(f"model_args must not hold {' and '.join(taken)}: the trainer says it; leave it out")
    path = model_args.get("checkpoint_path")
    if path and not Path(path).is_file():
        raise FileNotFoundError(
            f"no weights {path} to begin with: give model.model_args.checkpoint_path, such as an earlier run's model.safetensors"
        )
