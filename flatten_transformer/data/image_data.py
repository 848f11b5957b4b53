"""The data module of image classification: data sets by name, timm's augmentation."""

# B batch, C channels.

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from flatten_transformer.data.augmentation import Augmentation
from flatten_transformer.data.data_module import DataModule
from flatten_transformer.data.data_sets import fill_in, open_data_set
from flatten_transformer.data.loading import OnBadImage, Transformed
from flatten_transformer.data.source import Split


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
        on_bad_image: What is done with an image that cannot be read: ``"raise"`` stops with its name, ``"skip"`` takes
            the next one in its place; a line at the end of the epoch says which. Model selection and test count the
            image in its place, so repair or remove the file before you publish a number.
        img_size: Side of the square the model sees, in pixels; None for 32 with the digits, 28 with MNIST and
            Fashion-MNIST, 224 with all others.
        in_chans: 1 for grey, 3 for colour; images are converted. None for grey with these three, colour with all others.
        mean: Subtracted from the values in 0 … 1, one number a channel; None for that of these three, or of ImageNet.
        std: Divides the difference, one number a channel; None as for ``mean``.
        crop_pct: Share of the resized image's side that is kept, from its centre, outside training.
        batch_size: Images of one optimizer step, over all devices; the last of an epoch may hold fewer, no image is left out.
        device_batch_size: Images that one device takes at once; what is left of its share follows before the optimizer
            steps. None for its whole share. Lower it when memory runs out: the training stays the same.
        num_workers: Processes a device that load images besides the main one; 0 is best for data that lie in memory.
        augmentation: What is done to the training images besides.

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
        on_bad_image: OnBadImage = "raise",
        img_size: int | None = None,
        in_chans: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        crop_pct: float = 1.0,
        batch_size: int = 64,
        device_batch_size: int | None = None,
        num_workers: int = 0,
        augmentation: Augmentation = Augmentation(),  # noqa: B008  # frozen
    ) -> None:
        super().__init__(batch_size, device_batch_size, num_workers)
        if not 0 < val_share < 1:
            raise ValueError(f"val_share must lie between 0 and 1, got {val_share}")
        if on_bad_image not in get_args(OnBadImage):
            raise ValueError(f"on_bad_image must be raise or skip, got {on_bad_image!r}")
        self.on_bad_image = on_bad_image
        self.preprocessing = replace(fill_in(dataset, img_size, in_chans, mean, std), crop_pct=crop_pct)
        size = self.preprocessing.img_size
        found = open_data_set(dataset, root, download=download, val_share=val_share, img_size=size)
        self.class_names, self._sources, self.left_out = found
        self._train_transform = augmentation.transform(self.preprocessing)
        self._datasets: dict[Split, Transformed] = {}

    def setup(self, stage: str) -> None:
        """Open the splits that ``stage`` (fit, validate, test) needs."""
        splits: dict[str, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
        for split in splits.get(stage, ()):
            if split not in self._datasets:
                transform = self._train_transform if split == "train" else self.preprocessing
                source = self._sources[split]
                self._datasets[split] = Transformed(source, transform, self.in_chans, self.on_bad_image)

    def names(self, batch: Sequence[Tensor]) -> list[str]:
        """Return the names of the images of a training batch: their files, where they have any."""
        source = self._datasets["train"].source
        return [source.name(index) for index in batch[2].tolist()]

    def image(self, split: Split, index: int) -> Image.Image:
        """Return an image of a split that is open, as it is in its file."""
        image, _ = self._datasets[split].source[index]
        return image

    def count(self, split: Split) -> int:
        """Return how many images a split has."""
        return len(self._sources[split])

    def counts(self, split: Split) -> list[int]:
        """Return how many images each class has in a split."""
        found = Counter(self._sources[split].labels)
        return [found[label] for label in range(self.num_classes)]

    def skipped(self, split: Split) -> list[str]:
        """Return the names of the images of a split that could not be read and were skipped so far."""
        return self._datasets[split].skipped_names() if split in self._datasets else []

    def train_dataloader(self) -> DataLoader[Any]:
        """Return shuffled, augmented batches."""
        return self.loader(self._datasets["train"], train=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the validation batches."""
        return self.loader(self._datasets["val"], train=False)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the test batches."""
        return self.loader(self._datasets["test"], train=False)
