"""Load classifier weights into the backbone of a detector or segmenter and report on every tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from flatten_transformer.linearize.build import create_model
from flatten_transformer.models.fit_weights import fit_checkpoint, with_grids_of
from flatten_transformer.models.read_weights import read_tensors
from flatten_transformer.utils.printable import printable

_SOURCES = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source")  # weight sources in timm's pretrained_cfg


class BackboneReport(NamedTuple):
    """Result of loading a file, by tensor names of the backbone."""

    loaded: list[str]
    missing: list[str]  # in the backbone only: left at their initial values
    misshapen: list[str]  # of another shape in the file: left at their initial values
    unused: list[str]  # in the file only, not counting the classifier

    def lines(self, path: Path) -> list[str]:
        """Return a summary of the loading from ``path``, then every tensor that was not loaded."""
        total = len(self.loaded) + len(self.missing) + len(self.misshapen)
        causes = {"not in the file, fresh": self.missing, "of another shape, fresh": self.misshapen, "not used": self.unused}
        details = [f"  {name}: {cause}" for cause, names in causes.items() for name in names]
        return [f"The backbone has {len(self.loaded)} of its {total} tensors from {path}", *details]


def load_backbone(features: nn.Module, name: str, args: Mapping[str, Any], path: str | Path) -> BackboneReport:
    """Load classifier weights into a backbone and print each tensor that did not fit.

    Args:
        features: Result of ``timm.create_model(name, features_only=True, **args)``, possibly inside a larger model.
        name: timm name of the model.
        args: Its other arguments, such as ``img_size``; those about features and weights are ignored.
        path: model.safetensors of ``flatten fit``, or a checkpoint with the names of the model or its authors. No code in it
            is executed.

    Returns:
        Which tensors were loaded and which were not.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a checkpoint, or no tensor of it fits.

    Example:
        >>> import timm
        >>> from safetensors.torch import save_file
        >>> args = {"depths": (1, 1, 1, 1), "embed_dims": (8, 8, 8, 8), "num_heads": (1, 1, 1, 1)}
        >>> path = getfixture("tmp_path") / "classifier.safetensors"
        >>> save_file(timm.create_model("flatten_pvt_tiny", num_classes=3, **args).state_dict(), path)
        >>> features = timm.create_model("flatten_pvt_tiny", features_only=True, **args)
        >>> report = load_backbone(features, "flatten_pvt_tiny", args, path)
        >>> len(report.loaded) == len(features.state_dict()), report.missing, report.unused
        (True, [], [])
    """
    path = Path(path)
    classifier = plain_model(name, args)
    fitting, misshapen, unused = _fit(classifier, read_tensors(path))
    names = {full: short for full in classifier.state_dict() if (short := feature_name(full, features.state_dict()))}
    tensors = {short: fitting[full] for full, short in names.items() if full in fitting}
    if not tensors:
        actual, expected = next(iter(read_tensors(path))), next(iter(names))
        raise ValueError(
            f"no tensor of {path} fits the backbone {name} (the file's first is {actual}, the model's {expected}): "
            f"is it a file of {name}, built with the same arguments?"
        )
    features.load_state_dict(with_grids_of(features, tensors), strict=False)
    wrong_shape = [names[full] for full in misshapen if full in names]
    missing = [short for short in names.values() if short not in tensors and short not in wrong_shape]
    report = BackboneReport(list(tensors), missing, wrong_shape, unused)
    for line in report.lines(path):
        rank_zero_info(printable(line))
    return report


def plain_model(name: str, args: Mapping[str, Any]) -> nn.Module:
    """Build the full model of a backbone, without classifier or pretrained weights.

    Args:
        name: timm name of the model.
        args: Its other arguments; those about features and weights are ignored.
    """
    ignored = ("features_only", "out_indices", "feature_cls", "num_classes")
    own = {key: value for key, value in without_weights(args).items() if key not in ignored}
    return create_model(name, num_classes=0, **own)


def without_weights(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of ``timm.create_model`` without those that select pretrained weights.

    Example:
        >>> without_weights({"depth": 1, "pretrained": True, "pretrained_cfg_overlay": {"file": "x", "num_classes": 3}})
        {'depth': 1, 'pretrained_cfg_overlay': {'num_classes': 3}}
    """
    kept = {key: value for key, value in args.items() if key not in ("pretrained", "checkpoint_path", "cache_dir")}
    for key in ("pretrained_cfg", "pretrained_cfg_overlay"):
        if isinstance(kept.get(key), Mapping):
            kept[key] = {name: value for name, value in kept[key].items() if name not in _SOURCES}
    return {key: value for key, value in kept.items() if value != {} or args[key] == {}}


def feature_name(full: str, features: Mapping[str, Any]) -> str | None:
    """Map a tensor name of the full model to its name in the backbone, or None if the backbone lacks it.

    timm's feature wrappers join the first two parts of some names, or add a prefix.

    Example:
        >>> feature_name("stages.0.norm", {"stages_0.norm": 1}), feature_name("head.bias", {"stages_0.norm": 1})
        ('stages_0.norm', None)
    """
    return next((name for name in (full, full.replace(".", "_", 1), f"model.{full}", f"body.{full}") if name in features), None)


def _fit(model: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Return the tensors that fit by name and shape, and the names of misshapen and unused ones."""
    actual = fit_checkpoint(tensors, model)
    expected, classifier = model.state_dict(), getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    heads = tuple(f"{head}." for head in ([classifier] if isinstance(classifier, str) else classifier))
    fitting = {name: value for name, value in actual.items() if name in expected and value.shape == expected[name].shape}
    misshapen = [name for name in actual if name in expected and name not in fitting]
    return fitting, misshapen, [name for name in actual if name not in expected and not name.startswith(heads)]
