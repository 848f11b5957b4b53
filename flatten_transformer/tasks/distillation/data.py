"""Data module of distillation: labelled images, or images alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flatten_transformer.data.by_name import DataSet
from flatten_transformer.data.unlabelled import open_images
from flatten_transformer.tasks.classification.data import ImageData

UNLABELLED = "images"


class DistillationData(ImageData):
    """Images to distil on: those of a classification, or a folder of images without labels.

    Args:
        dataset: ``"images"``, all images below ``root``, without labels; or a data set of :class:`ImageData`.
        classes: Names of the teacher's outputs, or their number, where there are no labels; None with labels.
        **options: Further arguments of :class:`ImageData`.

    Raises:
        ValueError: If ``classes`` are missing, or given with labels; otherwise as :class:`ImageData`.

    Example:
        >>> from PIL import Image
        >>> root = getfixture("tmp_path")
        >>> for name in "abc":
        ...     Image.new("RGB", (40, 30)).save(root / f"{name}.png")
        >>> data = DistillationData(root=root, classes=1000, img_size=32)
        >>> data.labelled, data.num_classes
        (False, 1000)
    """

    def __init__(self, dataset: str = UNLABELLED, *, classes: int | list[str] | None = None, **options: Any) -> None:
        self.labelled = dataset != UNLABELLED
        if self.labelled and classes is not None:
            raise ValueError(f"the classes are those of {dataset}: leave classes out")
        if not self.labelled and not classes:
            raise ValueError(
                "images without labels do not say what the teacher tells apart: give --data.classes, names or a number"
            )
        self._classes = [f"class {number}" for number in range(classes)] if isinstance(classes, int) else classes
        super().__init__(dataset, **options)

    def _data_set(self, dataset: str, root: str | Path | None, **options: Any) -> DataSet:
        if self._classes is None:
            return super()._data_set(dataset, root, **options)
        return DataSet(self._classes, open_images(None if root is None else Path(root), options["val_share"]))

    def counts(self, split: Any) -> Sequence[int] | None:  # type: ignore[override]
        """Return the number of images per class, or None without labels."""
        return super().counts(split) if self.labelled else None
