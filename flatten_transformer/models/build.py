"""Builder of every family: timm's, with weights from the authors' links or from a file, read safely."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from timm.models import PretrainedCfg, build_model_with_cfg, list_pretrained, resolve_pretrained_cfg
from torch import Tensor, nn

from flatten_transformer.models.cures import LayoutError, NoWeightsError
from flatten_transformer.models.download import fetch_tensors
from flatten_transformer.models.fit_weights import StateDict, unwrap, with_square_grids
from flatten_transformer.models.read_weights import read_tensors

Model = TypeVar("Model", bound=nn.Module)


def default_cfg(link: str = "", *, first_conv: str, classifier: str, **changes: Any) -> dict[str, Any]:
    """Return timm's description of a model trained on ImageNet-1K at 224, as all of the paper's are.

    Args:
        link: Name of the authors' published file in its link; empty: no weights.
        first_conv: Name of the convolution that timm adapts to other input channels.
        classifier: Name of the layer that timm drops for other classes.
        changes: Entries that differ.
    """
    return {
        "url": link and f"https://cloud.tsinghua.edu.cn/f/{link}/?dl=1",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": first_conv,
        "classifier": classifier,
        "paper_ids": "arXiv:2308.00442",
        "paper_name": "FLatten Transformer: Vision Transformer using Focused Linear Attention",
        **changes,
    }


def build(
    model_class: type[Model],
    variant: str,
    pretrained: bool,
    *,
    filter_fn: Callable[..., Any],
    feature_cfg: Mapping[str, Any],
    pretrained_cfg: str | dict[str, Any] | None = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    cache_dir: str | Path | None = None,
    **kwargs: Any,
) -> Model:
    """Build a model as timm does, but read its weights without executing anything in their file.

    Args:
        model_class: The model.
        variant: Its name in timm's registry.
        pretrained: Load weights.
        filter_fn: The family's checkpoint filter.
        feature_cfg: Settings of ``features_only``; ``out_indices`` among ``kwargs`` take precedence.
        pretrained_cfg: As in timm.
        pretrained_cfg_overlay: As in timm; ``{"file": path}`` takes the weights from a file.
        cache_dir: Download folder; by default PyTorch's hub folder.
        kwargs: Arguments of the model.

    Raises:
        ValueError: If ``pretrained`` and no weights were published, or they do not fit this model; the message says what to do.
        OSError: If the file is missing, or the link cannot be reached.
    """
    features = {**feature_cfg, "out_indices": kwargs.pop("out_indices", feature_cfg["out_indices"])}
    overlay = dict(pretrained_cfg_overlay or {})
    kept = None
    if pretrained:
        cfg = resolve_pretrained_cfg(variant, pretrained_cfg, overlay)
        kept = _kept(variant, cfg, cache_dir)
        weights = _tensors(cfg, kept)
        if weights:
            # timm makes a plain dict of it, which loses the grids
            overlay["state_dict"] = dict(weights)
            filter_fn = partial(_filter, filter_fn, weights._metadata, published=kept is not None)
    try:
        model: Model = build_model_with_cfg(
            model_class,
            variant,
            pretrained,
            pretrained_cfg=pretrained_cfg,
            pretrained_cfg_overlay=overlay,
            pretrained_filter_fn=filter_fn,
            feature_cfg=features,
            cache_dir=cache_dir,
            **kwargs,
        )
    except ValueError as error:
        if kept is None or isinstance(error, LayoutError):
            raise
        raise ValueError(f"{error} (the weights lie in {kept}: delete it if they are not what was published)") from error
    described: Any = model.pretrained_cfg
    described.pop("state_dict", None)  # already in the model
    return model


def _filter(
    filter_fn: Callable[..., Any],
    metadata: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    model: nn.Module,
    *,
    published: bool,
) -> Any:
    """Filter a checkpoint with its grids: all published weights were trained on squares."""
    state_dict = StateDict(tensors, metadata)
    return filter_fn(with_square_grids(model, state_dict) if published else state_dict, model)


def _tensors(cfg: PretrainedCfg, kept: Path | None) -> StateDict:
    """Return the weights, downloaded or from a file; none where timm loads them itself."""
    if kept is not None:
        return fetch_tensors(cfg.url, kept)
    if cfg.file and not (cfg.source or cfg.state_dict or cfg.hf_hub_id):
        return read_tensors(Path(cfg.file))
    return unwrap(cfg.state_dict or {})


def _kept(variant: str, cfg: PretrainedCfg, cache_dir: str | Path | None) -> Path | None:
    """Return the file that keeps the download; None where weights come from elsewhere."""
    if cfg.source or cfg.state_dict or cfg.hf_hub_id or cfg.file:
        return None
    if not cfg.url:
        others = ", ".join(list_pretrained("flatten_*"))
        raise NoWeightsError(f"no weights were published for {variant}", f"choose one of {others}")
    folder = Path(cache_dir) if cache_dir else Path(torch.hub.get_dir()) / "checkpoints"
    return folder / f"{variant}.pth"  # the links end without a file name
