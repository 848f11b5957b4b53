"""Data module of image classification: data sets by name, timm's augmentation."""

# B batch, C channels.

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flatten_transformer.data.by_name import DataSet, image_defaults, open_data_set
from flatten_transformer.data.module import DataModule
from flatten_transformer.data.preprocessing import channel_statistics
from flatten_transformer.data.reading import Transformed
from flatten_transformer.data.source import Split, check_val_share
from flatten_transformer.tasks.classification.augmentation import Augmentation
from flatten_transformer.tasks.classification.preprocessing import Preprocessing


class ImageData(DataModule):
    """Labelled images: batches of ``[B, C, img_size, img_size]``, classes ``[B]`` and indices ``[B]``.

    The indices of the images in their data set serve messages.

    Args:
        dataset: ``"digits"``, scikit-learn's, embedded; ``"folder"``, an image folder; ``"wds"``, tar files, or
            ``"wds/<file name prefix>"`` to select some; ``"hfds/<name>"``, from the Hugging Face Hub or a folder it can
            read; ``"torch/<name>"``, torchvision's by timm's name, such as ``"torch/fashion_mnist"``; or one of your own, from
            ``register_data_set``.
        root: Data folder: images in ``root/<class>/``, or in ``root/train/<class>/`` and optionally ``root/val/<class>/``
            and ``root/test/<class>/``; without the last, validation images serve as test images. Files in no split are
            listed in ``left_out``. Tar files name their split, see ``open_shards``. For torchvision, where the data are or
            will be downloaded; for Hugging Face, the cache. None for the digits, Hugging Face's default cache, and
            Fashion-MNIST from Debian's package dataset-fashion-mnist.
        download: Fetch missing files into ``root``; torchvision's data sets only.
        val_share: Share of the training images of each class held out for validation, drawn with a fixed seed, if the data
            set has no validation split.
        img_size: Input size of the model in pixels; None for 32 with the digits, 28 with MNIST and Fashion-MNIST, else 224.
        in_chans: 1 for grey, 3 for colour; images are converted. None for grey with these three, else colour.
        crop_pct: Share of the resized image's side kept by the centre crop outside training.
        batch_size: Images per optimizer step, over all devices; the last batch of an epoch may be smaller.
        augmentation: Training augmentation.
        **shared: Further arguments of :class:`DataModule`.

    Raises:
        ValueError: If the data set is unknown or malformed, or a number is out of range.
        FileNotFoundError: If ``root`` is missing.

    Example:
        >>> data = ImageData("digits", img_size=32, batch_size=64)
        >>> data.setup("fit")
        >>> images, labels, indices = next(iter(data.train_dataloader()))
        >>> images.shape, labels.shape, data.num_classes
        (torch.Size([64, 1, 32, 32]), torch.Size([64]), 10)
    """

    def __init__(
        self,
        dataset: str = "digits",
        *,
        root: str | Path | None = None,
        download: bool = False,
        val_share: float = 0.2,
        img_size: int | None = None,
        in_chans: int | None = None,
        crop_pct: float = 1.0,
        batch_size: int = 64,
        augmentation: Augmentation = Augmentation(),  # noqa: B008  # frozen
        **shared: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, **shared)
        check_val_share(val_share)
        self.preprocessing = replace(fill_in(dataset, img_size, in_chans, self.mean, self.std), crop_pct=crop_pct)
        size = self.preprocessing.img_size
        data_set = self._data_set(dataset, root, download=download, val_share=val_share, img_size=size)
        self.class_names, self._sources, self.left_out = data_set
        self._train_transform = augmentation.transform(self.preprocessing)

    def _data_set(self, dataset: str, root: str | Path | None, **options: Any) -> DataSet:
        return open_data_set(dataset, root, **options)

    def _open(self, split: Split) -> Transformed:
        """Return the images of a split, augmented for training, else preprocessed."""
        transform = self._train_transform if split == "train" else self.preprocessing
        return Transformed(self._sources[split], transform, self.in_chans, self.on_bad_image)

    @property
    def has_test_images(self) -> bool:
        """Whether test images are others than the validation images."""
        return self._sources["test"] is not self._sources["val"]

    def counts(self, split: Split) -> list[int]:
        """Return the number of images per class in a split."""
        counts = Counter(self._sources[split].labels)
        return [counts[label] for label in range(self.num_classes)]


def fill_in(
    dataset: str, img_size: int | None, in_chans: int | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Preprocessing:
    """Return the preprocessing of a data set, with its defaults in place of None.

    Defaults are 32 pixels and grey for the digits, 28 and grey for MNIST and Fashion-MNIST, with their own statistics, and 224
    and colour with ImageNet's for all others. Statistics are averaged if the number of channels differs.

    Args:
        dataset: Name of the data set.
        img_size: Side in pixels.
        in_chans: 1 for grey, 3 for colour.
        mean: One number per channel.
        std: One number per channel.

    Raises:
        ValueError: If a number is out of range or ``mean`` and ``std`` do not fit ``in_chans``.

    Example:
        >>> fill_in("torch/mnist", None, 3, None, (0.5, 0.5, 0.5))
        Preprocessing(img_size=28, in_chans=3, mean=(0.1307, 0.1307, 0.1307), std=(0.5, 0.5, 0.5), crop_pct=1.0)
    """
    own = image_defaults(dataset)
    size, channels = own.img_size if img_size is None else img_size, own.in_chans if in_chans is None else in_chans
    return Preprocessing(size, channels, *channel_statistics(channels, mean, std, (own.mean, own.std)))
