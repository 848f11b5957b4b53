"""The data module of image classification: data sets by name, timm's augmentation."""

# B batch, C channels.

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flatten_transformer.data.by_name import image_defaults, open_data_set
from flatten_transformer.data.module import DataModule
from flatten_transformer.data.preprocessing import channel_statistics
from flatten_transformer.data.reading import Transformed
from flatten_transformer.data.source import Split, check_val_share
from flatten_transformer.tasks.classification.augmentation import Augmentation
from flatten_transformer.tasks.classification.preprocessing import Preprocessing


class ImageData(DataModule):
    """Images for training, validation and test: batches ``[B, C, img_size, img_size]``, classes ``[B]``, numbers ``[B]``.

    The numbers tell which images of their data set they are, for messages.

    Args:
        dataset: ``"digits"``, scikit-learn's, embedded; ``"folder"``, your images; ``"wds"``, your tar files, or of them
            ``"wds/<beginning of their names>"``; ``"hfds/<name>"``, of the Hugging Face Hub or a folder it can read; or
            ``"torch/<name>"``, torchvision's by timm's name, such as ``"torch/fashion_mnist"``.
        root: Folder of the data: images in ``root/<class>/``, or in ``root/train/<class>/`` and, if you like,
            ``root/val/<class>/`` and ``root/test/<class>/``; without the last, validation images are the test images.
            ``left_out`` says what in it is in no split, and why.
            Tar files say their split by their names, see ``open_shards``. For torchvision's, where they lie or are
            downloaded to; for Hugging Face's, where they are kept. None for the digits, for Hugging Face's own cache, and
            for Fashion-MNIST where Debian's package dataset-fashion-mnist is installed.
        download: Fetch what ``root`` lacks, for torchvision's data sets.
        val_share: Share of the training images of each class that is kept for validation, at random but always the
            same, where the data set has no validation images.
        img_size: Side of the square the model sees, in pixels; None for 32 with the digits, 28 with MNIST and
            Fashion-MNIST, 224 with all others.
        in_chans: 1 for grey, 3 for colour; images are converted. None for grey with these three, colour with all others.
        crop_pct: Share of the resized image's side that is kept, from its centre, outside training.
        batch_size: Images of one optimizer step, over all devices; the last of an epoch may hold fewer, no image is left out.
        augmentation: What is done to the training images besides.
        **shared: Further arguments of :class:`DataModule`.

    Raises:
        ValueError: If the data set is unknown or not as it should be, or a number is out of range.
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
        found = open_data_set(dataset, root, download=download, val_share=val_share, img_size=size)
        self.class_names, self._sources, self.left_out = found
        self._train_transform = augmentation.transform(self.preprocessing)

    def _open(self, split: Split) -> Transformed:
        """Return the images of a split: augmented to learn from, preprocessed to judge by."""
        transform = self._train_transform if split == "train" else self.preprocessing
        return Transformed(self._sources[split], transform, self.in_chans, self.on_bad_image)

    def counts(self, split: Split) -> list[int]:
        """Return how many images each class has in a split."""
        found = Counter(self._sources[split].labels)
        return [found[label] for label in range(self.num_classes)]


def fill_in(
    dataset: str, img_size: int | None, in_chans: int | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Preprocessing:
    """Return the preprocessing of a data set, with its own numbers wherever None is given.

    The digits are 32 pixels wide and grey, MNIST and Fashion-MNIST 28 and grey, with their own mean and deviation;
    everything else is 224 and in colour, with those of ImageNet. For another number of channels, each gets the average.

    Args:
        dataset: Name of the data set.
        img_size: Side in pixels.
        in_chans: 1 for grey, 3 for colour.
        mean: One number a channel.
        std: One number a channel.

    Raises:
        ValueError: If a number is out of range or ``mean`` and ``std`` do not fit ``in_chans``.

    Example:
        >>> fill_in("torch/mnist", None, 3, None, (0.5, 0.5, 0.5))
        Preprocessing(img_size=28, in_chans=3, mean=(0.1307, 0.1307, 0.1307), std=(0.5, 0.5, 0.5), crop_pct=1.0)
    """
    own = image_defaults(dataset)
    size, channels = own.img_size if img_size is None else img_size, own.in_chans if in_chans is None else in_chans
    return Preprocessing(size, channels, *channel_statistics(channels, mean, std, (own.mean, own.std)))
