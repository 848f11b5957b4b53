"""Base data module: batches of a fixed total size, whatever the number of devices."""

# n images of a split.

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from flatten_transformer.data.contents import Contents
from flatten_transformer.data.reading import OnBadImage, Reading
from flatten_transformer.data.source import LeftOut, Split
from flatten_transformer.data.worker_signals import leave_signals_to_parent

SPLITS: Mapping[str, Sequence[Split]] = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}  # by stage


class Share(NamedTuple):
    """One device's part of an optimizer step."""

    images: int  # per micro-batch
    micro_batches: int  # per optimizer step


def share_batch(batch_size: int, devices: int, device_batch_size: int | None) -> Share:
    """Split the batch of an optimizer step over devices into micro-batches of equal size.

    Args:
        batch_size: Images per step, over all devices.
        devices: Number of devices.
        device_batch_size: Images that fit on a device at once; None for no limit.

    Raises:
        ValueError: If the batch cannot be divided evenly among the devices.

    Example:
        >>> share_batch(1024, devices=8, device_batch_size=None)
        Share(images=128, micro_batches=1)
        >>> share_batch(1024, devices=1, device_batch_size=96)
        Share(images=64, micro_batches=16)
    """
    each, rest = divmod(batch_size, devices)
    if rest or not each:
        raise ValueError(
            f"a batch of {batch_size} images cannot be divided evenly among {devices} devices: "
            f"make data.batch_size a multiple of {devices}, such as {math.ceil(batch_size / devices) * devices}"
        )
    most = min(device_batch_size or each, each)
    images = next(size for size in range(most, 0, -1) if each % size == 0)
    return Share(images, each // images)


def fit_batch(batch_size: int, images: int, devices: int, device_batch_size: int | None) -> int:
    """Return the batch of an optimizer step, lowered where there are fewer images: whole micro-batches on every device.

    Args:
        batch_size: Images per step, over all devices.
        images: Training images.
        devices: Number of devices.
        device_batch_size: Images that fit on a device at once; None for no limit.

    Raises:
        ValueError: If there is no image for each device.

    Example:
        >>> fit_batch(16, images=12, devices=1, device_batch_size=None)
        12
        >>> fit_batch(16, images=13, devices=2, device_batch_size=4)
        8
    """
    if images >= batch_size:
        return batch_size
    each = images // devices
    if not each:
        raise ValueError(f"{images} training images cannot be divided among {devices} devices: lower trainer.devices")
    return devices * (each - each % min(device_batch_size or each, each))


class EpochSampler(DistributedSampler[Any]):
    """Shuffle by seed and epoch alone; seed the loader's workers the same way.

    Args:
        dataset: n images.
        devices: Number of devices.
        rank: Rank of this device.
        seed: Seed of the run.
        epoch: First epoch.
    """

    def __init__(self, dataset: Dataset[Any], devices: int, rank: int, seed: int, epoch: int) -> None:
        super().__init__(dataset, devices, rank, shuffle=True, seed=seed)
        self.generator = torch.Generator()  # seeds the workers of a DataLoader
        self.set_epoch(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Set the next epoch."""
        super().set_epoch(epoch)
        self.generator.manual_seed(epoch_seed(self.seed, epoch, self.rank))


class EpochLoader(DataLoader[Any]):
    """Skip the batches that a resumed epoch has already seen; they are drawn and dropped, to keep the random state."""

    first_batch = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch promises its own iterator
        batches = super().__iter__()
        return self._rest(batches) if self.first_batch else batches

    def _rest(self, batches: Iterator[Any]) -> Iterator[Any]:
        for _ in range(self.first_batch):
            next(batches, None)
        self.first_batch = 0
        self.after_seen()
        yield from batches

    def after_seen(self) -> None:
        """Hook between skipped and new batches; training assigns it."""


def epoch_seed(seed: int, epoch: int, rank: int) -> int:
    """Return the seed of one epoch on one device.

    Example:
        >>> len({epoch_seed(seed, epoch, rank) for seed in (0, 1) for epoch in (0, 1) for rank in (0, 1)})
        8
    """
    return int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1)[0])


class DataModule(LightningDataModule):
    """Images for training, validation and test.

    A subclass sets ``class_names`` and ``preprocessing`` and opens splits in :meth:`_open`. It forwards the arguments below as
    ``**shared: Any``, which jsonargparse resolves with their defaults; it would lose those with an ``Unpack[TypedDict]``.

    Args:
        on_bad_image: Handling of unusable images and masks: ``"raise"`` stops and names the file, ``"skip"`` substitutes the
            next image and lists the skipped ones at the end of the epoch. Detection metrics omit a skipped image, all others
            count its substitute, so repair or remove the file before publishing a number.
        mean: Subtracted from values in 0 … 1, one number per channel; None for the data set's own, or ImageNet's.
        std: Divides the difference, one number per channel; None as for ``mean``.
        batch_size: Images per optimizer step, over all devices; lowered, with a message, where there are fewer images.
        device_batch_size: Micro-batch size of a device, whose gradients are accumulated over its share of the batch; None for
            the whole share. Lower it when memory runs out: training stays the same.
        num_workers: Loader processes per device; 0 is best for data held in memory.

    Raises:
        ValueError: If a number is out of range.
    """

    class_names: Sequence[str]
    preprocessing: Any  # a dataclass, saved in the model file
    left_out: Sequence[LeftOut] = ()
    counted = "images"  # unit of ``counts``
    drop_last = False  # drop the last partial training batch, for models with batch statistics

    def __init__(
        self,
        *,
        on_bad_image: OnBadImage = "raise",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        batch_size: int = 16,
        device_batch_size: int | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        if on_bad_image not in get_args(OnBadImage):
            raise ValueError(f"on_bad_image must be raise or skip, got {on_bad_image!r}")
        for name, value, minimum in (
            ("batch_size", batch_size, 1),
            ("device_batch_size", device_batch_size, 1),
            ("num_workers", num_workers, 0),
        ):
            if value is not None and value < minimum:
                raise ValueError(f"{name} must be at least {minimum}, got {value}")
        self.on_bad_image = on_bad_image
        self.mean = mean
        self.std = std
        self.batch_size = batch_size
        self.device_batch_size = device_batch_size
        self.num_workers = num_workers
        self.seed = torch.initial_seed() % 2**31
        self.first_epoch = 0
        self.first_batch = 0
        self._datasets: dict[Split, Any] = {}  # a :class:`Reading` each

    @abstractmethod
    def _open(self, split: Split) -> Reading:
        """Return the data set of a split."""

    def setup(self, stage: str) -> None:
        """Open the splits that ``stage`` (fit, validate, test) needs."""
        for split in SPLITS.get(stage, ()):
            if split not in self._datasets:
                self._datasets[split] = self._open(split)
        if stage == "fit":
            self._fit_batch()

    def _fit_batch(self) -> None:
        """Lower the batch size to the number of training images, if there are fewer."""
        images, wanted = self.count("train"), self.batch_size
        self.batch_size = fit_batch(wanted, images, self._world_size, self.device_batch_size)
        if self.batch_size < wanted:
            rank_zero_info(f"{images} training images do not fill a batch of {wanted}: each step sees {self.batch_size}")

    def state_dict(self) -> dict[str, Any]:
        """Return the state a resumed training needs to draw the same images."""
        assert self.trainer
        loop: Any = self.trainer.fit_loop
        return {"seed": self.seed, "epoch": loop.epoch_progress.current.processed, "batch": self.batches_seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the image order of the resumed training."""
        self.seed, self.first_epoch = state_dict["seed"], state_dict["epoch"]
        self.first_batch = state_dict.get("batch", 0)

    @property
    def batches_seen(self) -> int:
        """Batches seen in the current epoch; 0 between epochs."""
        assert self.trainer
        loop: Any = self.trainer.fit_loop
        epochs, batches = loop.epoch_progress.current, loop.epoch_loop.batch_progress.current.processed
        return batches if epochs.started > epochs.processed and batches < self.trainer.num_training_batches else 0

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def in_chans(self) -> int:
        """Channels of the images."""
        return int(self.preprocessing.in_chans)

    def names(self, batch: Any) -> list[str]:
        """Return the names of the images in a training batch, for error messages."""
        source = self._datasets["train"].source
        return [source.name(int(index)) for index in batch[2]]

    def image(self, split: Split, index: int) -> Image.Image:
        """Return an image of an open split, as stored in its file."""
        image: Image.Image = self._datasets[split].source[index][0]
        return image

    def skipped(self, split: Split) -> list[str]:
        """Return the names of the images of a split skipped so far."""
        return self._datasets[split].skipped_names() if split in self._datasets else []

    def count(self, split: Split) -> int:
        """Return the number of images in an open split."""
        return len(self._datasets[split])

    def counts(self, split: Split) -> Sequence[int] | None:
        """Return images (objects in detection) per class in an open split; None if unknown."""
        return None

    def contents(self, *splits: Split) -> Contents:
        """Return the contents of open splits and the files left out, as printed before training.

        Args:
            splits: Split names, such as ``"train"`` and ``"val"``.

        Example:
            >>> from flatten_transformer.tasks.classification.data import ImageData
            >>> digits = ImageData("digits")
            >>> digits.setup("fit")
            >>> contents = digits.contents("train", "val")
            >>> contents.images, contents.counts["val"][:3]
            ({'train': 1257, 'val': 180}, [18, 18, 18])
        """
        counts = {split: numbers for split in splits if (numbers := self.counts(split)) is not None}
        images = {split: self.count(split) for split in splits}
        return Contents(self.class_names, images, counts, self.counted, self.left_out)

    @property
    def share(self) -> Share:
        """This device's part of an optimizer step."""
        return share_batch(self.batch_size, self._world_size, self.device_batch_size)

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    def train_dataloader(self) -> DataLoader[Any]:
        """Return this device's shuffled, augmented batches.

        The order depends on seed and epoch alone, and a step sees the same images whatever the number of devices.
        """
        dataset, options = self._loading("train")
        order = EpochSampler(dataset, self._world_size, self._rank, self.seed, self.first_epoch)
        # no persistent workers: they would draw other augmentations than those restarted by a resume
        loader = EpochLoader(dataset, sampler=order, generator=order.generator, drop_last=self.drop_last, **options)
        loader.first_batch = self.first_batch
        return loader

    def val_dataloader(self) -> DataLoader[Any]:
        """Return this device's validation batches, in order, each image once."""
        return self._sequential("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Return this device's test batches, in order, each image once."""
        return self._sequential("test")

    def _sequential(self, split: Split) -> DataLoader[Any]:
        dataset, options = self._loading(split)
        sampler = range(self._rank, len(dataset), self._world_size)
        return DataLoader(dataset, sampler=sampler, persistent_workers=self.num_workers > 0, **options)

    def _loading(self, split: Split) -> tuple[Reading, dict[str, Any]]:
        """Return the data set of a split and the options common to all loaders."""
        dataset: Reading = self._datasets[split]
        options = {"batch_size": self.share.images, "num_workers": self.num_workers, "collate_fn": dataset.collate}
        return dataset, {**options, "worker_init_fn": leave_signals_to_parent}
