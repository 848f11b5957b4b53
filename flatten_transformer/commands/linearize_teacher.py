"""The teacher of `flatten linearize`: what its file, timm and the images say of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from torch import nn

from flatten_transformer.data.reading import OnBadImage
from flatten_transformer.tasks.building import check_name, cures_of_options
from flatten_transformer.tasks.classification.preprocessing import Preprocessing
from flatten_transformer.tasks.distillation.data import UNLABELLED, DistillationData
from flatten_transformer.tasks.distillation.task import build_teacher
from flatten_transformer.tasks.model_file import MAX_SIDE_PX, describes_itself, load_model


@dataclass(frozen=True)
class Images:
    """Images to learn from.

    Args:
        root: Folder of images, in any folders; with --data.dataset folder, one folder of images a class.
        dataset: images: without labels; or a data set with labels, as in flatten fit: folder, digits, torch/fashion_mnist.
        classes: Number of the teacher's classes, where neither its file nor labels say it.
        val_share: Share of the images held out for validation, where there are none for it.
        batch_size: Images per step, instead of the recipes'.
        num_workers: Loader processes, instead of the recipes'.
        on_bad_image: raise stops at an image that cannot be read, skip goes on without it.
    """

    root: Path | None = None
    dataset: str = UNLABELLED
    classes: int | None = None
    val_share: float = 0.05
    batch_size: int | None = None
    num_workers: int | None = None
    on_bad_image: OnBadImage = "raise"


@dataclass(frozen=True)
class Teacher:
    """A softmax classifier.

    Args:
        name: timm name.
        model_args: Its arguments.
        weights: Its file; True for published weights.
        classes: Names of its classes, or their number.
        preprocessing: What it sees of an image.
    """

    name: str
    model_args: Mapping[str, Any]
    weights: Path | bool
    classes: Sequence[str] | int
    preprocessing: Preprocessing

    @property
    def num_classes(self) -> int:
        """The number of its classes."""
        return self.classes if isinstance(self.classes, int) else len(self.classes)

    def build(self) -> nn.Module:
        """Return the model with its weights."""
        with cures_of_options("--model_args", "published weights", "--weights"):
            model = build_teacher(self.name, self.model_args, self.weights, self.num_classes, self.preprocessing.in_chans)
        return model.eval()

    def data_options(self, images: Images) -> dict[str, Any]:
        """Return the arguments of the data module."""
        sees = self.preprocessing
        options: dict[str, Any] = {"dataset": images.dataset, "root": None if images.root is None else str(images.root)}
        options |= {"img_size": sees.img_size, "in_chans": sees.in_chans, "crop_pct": sees.crop_pct}
        options |= {"mean": list(sees.mean), "std": list(sees.std), "batch_size": images.batch_size}
        options |= {"num_workers": images.num_workers, "val_share": images.val_share, "on_bad_image": images.on_bad_image}
        if images.dataset == UNLABELLED:
            options["classes"] = self.classes if isinstance(self.classes, int) else list(self.classes)
        return {name: value for name, value in options.items() if value is not None}

    def data(self, images: Images) -> DistillationData:
        """Open the images."""
        if images.classes not in (None, self.num_classes):
            raise ValueError(
                f"--data.classes is {images.classes}, and the teacher tells {self.num_classes} classes apart: leave it out"
            )
        data = DistillationData(**self.data_options(images))
        if data.num_classes != self.num_classes:
            raise ValueError(
                f"the images have {data.num_classes} classes and the teacher {self.num_classes}: fine-tune the teacher on them "
                "first, by flatten fit, or leave the labels out, --data.dataset images"
            )
        data.setup("fit")
        data.setup("test")
        return data


def find_teacher(
    model: str | None, weights: Path | None, model_args: Mapping[str, Any], images: Images, img_size: int | None
) -> Teacher:
    """Return what is known of a teacher.

    Args:
        model: timm name; None: the weights say it.
        weights: File of a training, which says everything itself, or any other file of weights; None: the published ones.
        model_args: Further arguments of ``timm.create_model``.
        images: What says the classes, if no file does.
        img_size: Side of the images in pixels; None: what the teacher was trained at.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the teacher is none, or nothing says which model it is.
    """
    if img_size is not None and img_size > MAX_SIDE_PX:
        raise ValueError(f"--img_size must be at most {MAX_SIDE_PX} pixels, got {img_size}")
    if weights is not None and not weights.is_file():
        raise FileNotFoundError(f"no file of weights {weights}: check --weights")
    if weights is not None and describes_itself(weights):
        return _of_file(weights, model, model_args, img_size)
    if model is None:
        raise ValueError("which model? Give --model, such as vit_small_patch16_224, or --weights model.safetensors of a training")
    check_name(model, "model")
    known = timm.get_pretrained_cfg(model)
    assert known is not None
    size = img_size or known.input_size[1]
    classes = images.classes
    if classes is None:
        classes = known.num_classes if images.dataset == UNLABELLED else _labelled(images)
    sees = Preprocessing(size, known.input_size[0], known.mean, known.std, known.crop_pct)
    return Teacher(model, _sized(model_args, img_size), weights or True, classes, sees)


def _of_file(weights: Path, model: str | None, model_args: Mapping[str, Any], img_size: int | None) -> Teacher:
    _, info = load_model(weights)
    if info.task != "classify":
        raise ValueError(f"{weights} {info.task}s: give the weights of a classifier")
    if info.model_args.get("linearize") not in (None, False):
        raise ValueError(f"{weights} is linear already: give the weights of its teacher")
    if model not in (None, info.name):
        raise ValueError(f"{weights} is {info.name}, not {model}: leave --model out")
    sees: Preprocessing = info.preprocessing
    if img_size is not None:
        sees = Preprocessing(img_size, sees.in_chans, sees.mean, sees.std, sees.crop_pct)
    return Teacher(info.name, _sized({**info.model_args, **model_args}, img_size), weights, list(info.class_names), sees)


def _sized(model_args: Mapping[str, Any], img_size: int | None) -> dict[str, Any]:
    return {**model_args} if img_size is None else {**model_args, "img_size": img_size}


def _labelled(images: Images) -> int:
    return DistillationData(images.dataset, root=images.root).num_classes
