"""Load the models of an analysis, from checkpoints of this library or by timm's names, each with its input image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flatten_transformer.data.preprocessing import read_image
from flatten_transformer.tasks.building import cures_of_options
from flatten_transformer.tasks.classification.model import build_model, weights_args
from flatten_transformer.tasks.classification.preprocessing import Preprocessing

_MAX_MODELS = 7  # as many as there are colours
_SEED = 0  # for untrained weights


@dataclass(frozen=True)
class AnalyzedModel:
    """A model and its input image.

    Args:
        label: Short name in pictures and tables.
        about: Name of the model and source of its weights.
        network: The model, for inference.
        pixels: Its input, ``[1, channels, height, width]``, normalised.
        image: The same input for display, ``[height, width, channels]``, 0 to 1.
    """

    label: str
    about: str
    network: nn.Module
    pixels: Tensor
    image: Tensor


def load_models(
    image: Path,
    *,
    checkpoint: str | None = None,
    model: str | None = None,
    attention: str | None = None,
    model_args: Mapping[str, Any] | None = None,
    pretrained_file: Path | None = None,
    img_size: int | None = None,
) -> list[AnalyzedModel]:
    """Return the models named by the arguments, each with its input image.

    Args:
        image: An image file.
        checkpoint: Files ``model.safetensors`` of trainings, separated by commas.
        model: timm's names, separated by commas.
        attention: Attentions to build the FLatten models among ``model`` with, one at a time.
        model_args: Further arguments of ``timm.create_model`` for ``model``, such as ``{"class_token": True}``.
        pretrained_file: Weights of ``model``, which is then a single one.
        img_size: Side of the image in pixels, instead of the model's.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If no model is named, too many are, or one does not exist.
    """
    files, names, attentions = (_split(text) for text in (checkpoint, model, attention))
    if not files and not names:
        raise ValueError("nothing to analyze: give --checkpoint the model.safetensors of a training, or --model a name of timm's")
    if not names and (attentions or pretrained_file or model_args):
        raise ValueError(
            "--attention, --model_args and --pretrained_file belong to --model: a checkpoint says what it is; leave them out"
        )
    args = dict(model_args or {})
    if taken := sorted({"attention", "img_size"} & args.keys()):
        raise ValueError(f"model_args must not hold {taken[0]}: give --{taken[0]}")
    if pretrained_file is not None and (len(names) > 1 or len(attentions) > 1):
        raise ValueError("--pretrained_file holds the weights of one model: give one --model and one --attention at most")
    if img_size is not None and img_size < 1:
        raise ValueError(f"img_size must be at least 1 pixel, got {img_size}")
    count = len(files) + len(names) * max(1, len(attentions))
    if count > _MAX_MODELS:
        raise ValueError(f"{count} models side by side cannot be told apart: choose {_MAX_MODELS} at most")
    picture = read_image(image)
    loaded = [_from_checkpoint(file, picture, img_size) for file in files]
    loaded += [
        _from_timm(name, chosen, args, pretrained_file, picture, img_size, len(names) == 1)
        for name in names
        for chosen in (attentions or (None,))
    ]
    return _number_labels(loaded)


def _split(text: str | None) -> list[str]:
    return list(dict.fromkeys(word.strip() for word in (text or "").split(",") if word.strip()))


def _from_checkpoint(file: str, picture: Any, img_size: int | None) -> AnalyzedModel:
    from flatten_transformer.tasks.model_file import load_model

    model, info = load_model(file)
    path = Path(file)
    label = "/".join(path.parts[-4:-2]) if path.parent.name == "checkpoints" and len(path.parts) >= 4 else path.stem
    return _analyzed(label, f"{info.name}, weights of {path}", model, info.preprocessing, picture, img_size)


def _from_timm(
    name: str,
    attention: str | None,
    model_args: Mapping[str, Any],
    file: Path | None,
    picture: Any,
    img_size: int | None,
    alone: bool,
) -> AnalyzedModel:
    from timm.data import resolve_model_data_config

    args = dict(model_args) if attention is None else {**model_args, "attention": attention}
    if img_size is not None:
        args["img_size"] = img_size
    args |= weights_args(file or False)
    cures = cures_of_options("--model_args", "model_args.pretrained", "--pretrained_file")
    with torch.random.fork_rng(devices=[]), cures:
        torch.manual_seed(_SEED)
        model = build_model(name, args, 1000, 3)
    config = resolve_model_data_config(model)
    preprocessing = Preprocessing(config["input_size"][1], config["input_size"][0], config["mean"], config["std"])
    weights = f"untrained weights, seed {_SEED}" if file is None else f"weights of {file}"
    label = name if attention is None else attention if alone else f"{name}, {attention}"
    about = f"{name}{'' if attention is None else f', attention {attention}'}, {weights}"
    return _analyzed(label, about, model, preprocessing, picture, img_size)


def _analyzed(
    label: str, about: str, model: nn.Module, preprocessing: Preprocessing, picture: Any, img_size: int | None
) -> AnalyzedModel:
    if img_size is not None:
        preprocessing = replace(preprocessing, img_size=img_size)
    pixels = preprocessing(picture)
    std, mean = (torch.tensor(values)[:, None, None] for values in (preprocessing.std, preprocessing.mean))
    return AnalyzedModel(label, about, model.eval(), pixels[None], (pixels * std + mean).clamp(0, 1).movedim(0, 2))


def _number_labels(models: Sequence[AnalyzedModel]) -> list[AnalyzedModel]:
    """Return the models with numbers after repeated labels."""
    seen: Counter[str] = Counter()
    numbered = []
    for model in models:
        seen[model.label] += 1
        count = seen[model.label]
        numbered.append(model if count == 1 else replace(model, label=f"{model.label} ({count})"))
    return numbered
