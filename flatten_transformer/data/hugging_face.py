"""Hugging Face data sets, from the Hub or a local folder, loaded by `datasets`."""

# n images.

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from flatten_transformer.data.image_files import decode_image
from flatten_transformer.data.source import Format, LeftOut, Source, Split, Splits, Subset
from flatten_transformer.data.split_names import STANDARD_NAMES, split_of


class HuggingFaceImages(Source):
    """The images of one split.

    Args:
        rows: ``datasets.Dataset`` of n rows.
        image: Image column, not decoded.
        label: Class column.
        title: Display name of the split.
    """

    def __init__(self, rows: Any, image: str, label: str, title: str) -> None:
        self.rows = rows
        self.image = image
        self.labels = list(rows.select_columns(label)[:][label])
        self._title = title

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        cell = self.rows[index][self.image]  # bytes, or the path of a file
        file = Path(cell["path"]) if cell["bytes"] is None else BytesIO(cell["bytes"])
        return decode_image(file, self.name(index)), self.labels[index]

    def name(self, index: int) -> str:
        """Return the index, split and, if known, file of an image."""
        path = self.rows[index][self.image]["path"]
        return f"image {index} of {self._title}" + (f" ({path})" if path else "")


def open_hugging_face(name: str, cache: Path | None) -> Splits:
    """Open a data set of the Hugging Face Hub.

    Images come from the first image column, classes from the first class-label column. Splits are train, validation and
    test, or close variants of these names; other splits and unlabelled images are left out. A data set's own code is never run.

    Args:
        name: Hub name, such as ``uoft-cs/cifar10``, or a folder that ``datasets.load_dataset`` can read.
        cache: Cache folder; None for Hugging Face's own.

    Raises:
        ValueError: If `datasets` is not installed, or the data set is missing or has no labelled images.
    """
    try:
        import datasets
    except ImportError:
        raise ValueError(f"hfds/{name} needs the library datasets: pip install 'flatten-transformer[hub]'") from None
    try:
        found = datasets.load_dataset(name, cache_dir=None if cache is None else str(cache))
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"hfds/{name} cannot be opened ({reason}): check its name") from None
    splits = _splits(list(found))
    if "train" not in splits:
        raise ValueError(f"hfds/{name} has no split train, only {', '.join(found)}: choose another data set")
    features = found[splits["train"]].features
    image = _column(name, features, datasets.Image)
    label = _column(name, features, datasets.ClassLabel)
    found = found.cast_column(image, datasets.Image(decode=False))  # decoded later, so that a damaged image raises our error
    left_out = [LeftOut("split that is not used", [title]) for title in found if title not in splits.values()]
    sources: dict[Split, Source | None] = {}
    for split, title in splits.items():
        images = HuggingFaceImages(found[title], image, label, f"hfds/{name} ({title})")
        sources[split], withheld = _labelled(images, len(features[label].names))
        left_out += [LeftOut(f"without a label, in {title}", withheld)] if withheld else []
    train = sources["train"]
    if train is None:
        raise ValueError(f"hfds/{name} has no training image with a label: choose another data set")
    return Splits(features[label].names, train, sources.get("val"), sources.get("test"), left_out)


def _splits(titles: list[str]) -> dict[Split, str]:
    """Map our splits to the data set's split names, standard names first."""
    found = {split: title for split, names in STANDARD_NAMES.items() for title in names if title in titles}
    for title in titles:
        split = split_of(title)
        if split:
            found.setdefault(split, title)
    return found


def _labelled(images: HuggingFaceImages, classes: int) -> tuple[Source | None, list[str]]:
    """Return the labelled images of a split, None if there are none, and the names of the unlabelled ones."""
    indices = [index for index, label in enumerate(images.labels) if label is not None and 0 <= label < classes]
    if len(indices) == len(images):
        return (images if indices else None), []
    rest = sorted(set(range(len(images))) - set(indices))
    return (Subset(images, indices) if indices else None), [f"image {index}" for index in rest]


def _column(name: str, features: Any, kind: type) -> str:
    found = [column for column, feature in features.items() if isinstance(feature, kind)]
    if not found:
        raise ValueError(f"hfds/{name} has no column of the kind {kind.__name__}, only {', '.join(features)}")
    return str(found[0])


FORMAT = Format(("hfds/<name>",), True, lambda request: open_hugging_face(request.rest, request.root))
