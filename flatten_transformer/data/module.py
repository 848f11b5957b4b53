"""What every data module shares: batches whose size does not depend on how many devices there are."""

# n images of a split.

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from PIL import Image
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from flatten_transformer.data.contents import Contents
from flatten_transformer.data.reading import OnBadImage, Reading
from flatten_transformer.data.source import LeftOut, Split
from flatten_transformer.data.worker_signals import leave_signals_to_parent

SPLITS: Mapping[str, Sequence[Split]] = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}  # by stage


class Share(NamedTuple):
    """What one device does for one optimizer step."""

    images: int  # at once
    times: int  # before the optimizer steps


def share_batch(batch_size: int, devices: int, device_batch_size: int | None) -> Share:
    """Divide the images of one optimizer step among devices, in pieces of one size.

    Args:
        batch_size: Images a step, over all devices.
        devices: How many there are.
        device_batch_size: Images that a device can hold at once; None for any number.

    Raises:
        ValueError: If the images cannot be divided evenly among the devices.

    Example:
        >>> share_batch(1024, devices=8, device_batch_size=None)
        Share(images=128, times=1)
        >>> share_batch(1024, devices=1, device_batch_size=96)
        Share(images=64, times=16)
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


class EpochSampler(DistributedSampler[Any]):
    """Shuffles so that an epoch's order follows from seed and epoch alone, and so do the random numbers of its loader.

    Args:
        dataset: n images.
        devices: How many share them.
        rank: Which device this is.
        seed: Of the run.
        epoch: The one to begin with.
    """

    def __init__(self, dataset: Dataset[Any], devices: int, rank: int, seed: int, epoch: int) -> None:
        super().__init__(dataset, devices, rank, shuffle=True, seed=seed)
        self.generator = torch.Generator()  # by which a DataLoader seeds its processes
        self.set_epoch(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next."""
        super().set_epoch(epoch)
        self.generator.manual_seed(epoch_seed(self.seed, epoch, self.rank))


class EpochLoader(DataLoader[Any]):
    """Begins its first epoch behind the batches that a resumed training has seen; they are drawn, as they were, and dropped."""

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
        """Do what must be done between the batches that were seen and the others; a training sets it."""


def epoch_seed(seed: int, epoch: int, rank: int) -> int:
    """Return a seed for one epoch on one device.

    Example:
        >>> len({epoch_seed(seed, epoch, rank) for seed in (0, 1) for epoch in (0, 1) for rank in (0, 1)})
        8
    """
    return int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1)[0])


class DataModule(LightningDataModule):
    """Images for training, validation and test.

    A subclass sets ``class_names`` and ``preprocessing``, and opens splits in :meth:`_open`. It passes the arguments below on as
    ``**shared: Any``: jsonargparse finds them here, with their defaults, which it would lose to an ``Unpack[TypedDict]``.

    Args:
        on_bad_image: What is done with an image, or its mask, that cannot be used: ``"raise"`` stops with its name, ``"skip"``
            takes the next one in its place; a line at the end of the epoch says which. A detector is judged without it, all
            else with the image in its place, so repair or remove the file before you publish a number.
        mean: Subtracted from the values in 0 … 1, one number a channel; None for the data set's own, or ImageNet's.
        std: Divides the difference, one number a channel; None as for ``mean``.
        batch_size: Images of one optimizer step, over all devices.
        device_batch_size: Images that one device takes at once; what is left of its share follows before the optimizer
            steps. None for its whole share. Lower it when memory runs out: the training stays the same.
        num_workers: Processes a device that load images besides the main one; 0 is best for data that lie in memory.

    Raises:
        ValueError: If a number is out of range.
    """

    class_names: Sequence[str]
    preprocessing: Any  # a dataclass, kept in the file of a model
    left_out: Sequence[LeftOut] = ()
    counted = "images"  # what ``counts`` counts
    drop_last = False  # leave out what does not fill a batch in training, for models that take statistics over it

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
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("device_batch_size", device_batch_size, 1),
            ("num_workers", num_workers, 0),
        ):
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
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
        """Return the images of a split, as its loader takes them."""

    def setup(self, stage: str) -> None:
        """Open the splits that ``stage`` (fit, validate, test) needs."""
        for split in SPLITS.get(stage, ()):
            if split not in self._datasets:
                self._datasets[split] = self._open(split)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training must draw its images by."""
        assert self.trainer
        loop: Any = self.trainer.fit_loop
        return {"seed": self.seed, "epoch": loop.epoch_progress.current.processed, "batch": self.batches_seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Draw images as the training did that is resumed."""
        self.seed, self.first_epoch = state_dict["seed"], state_dict["epoch"]
        self.first_batch = state_dict.get("batch", 0)

    @property
    def batches_seen(self) -> int:
        """Batches of an epoch that has begun and not ended; 0 between two."""
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
        """Return what an error calls the images of a training batch: their files, where they have any."""
        source = self._datasets["train"].source
        return [source.name(int(index)) for index in batch[2]]

    def image(self, split: Split, index: int) -> Image.Image:
        """Return an image of a split that is open, as it is in its file."""
        image: Image.Image = self._datasets[split].source[index][0]
        return image

    def skipped(self, split: Split) -> list[str]:
        """Return the names of the images of a split that could not be used and were skipped so far."""
        return self._datasets[split].skipped_names() if split in self._datasets else []

    def count(self, split: Split) -> int:
        """Return how many images a split has that is open."""
        return len(self._datasets[split])

    def counts(self, split: Split) -> Sequence[int] | None:
        """Return how many images each class has in a split that is open, objects in detection; None where it is unknown."""
        return None

    def contents(self, *splits: Split) -> Contents:
        """Return what splits that are open hold, and what is left out: what a training prints before it starts.

        Args:
            splits: Such as ``"train"`` and ``"val"``.

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
        """What each device does for one optimizer step."""
        return share_batch(self.batch_size, self._world_size, self.device_batch_size)

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    def train_dataloader(self) -> DataLoader[Any]:
        """Return this device's shuffled, augmented batches.

        The order of an epoch follows from the seed and its number alone, and a step sees the same images however many
        devices share them.
        """
        dataset, options = self._loading("train")
        order = EpochSampler(dataset, self._world_size, self._rank, self.seed, self.first_epoch)
        # A process that lives on would draw other augmentations than one started anew after a resume.
        loader = EpochLoader(dataset, sampler=order, generator=order.generator, drop_last=self.drop_last, **options)
        loader.first_batch = self.first_batch
        return loader

    def val_dataloader(self) -> DataLoader[Any]:
        """Return this device's validation batches, in order, each image once."""
        return self._in_turn("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Return this device's test batches, in order, each image once."""
        return self._in_turn("test")

    def _in_turn(self, split: Split) -> DataLoader[Any]:
        dataset, options = self._loading(split)
        in_turn = range(self._rank, len(dataset), self._world_size)
        return DataLoader(dataset, sampler=in_turn, persistent_workers=self.num_workers > 0, **options)

    def _loading(self, split: Split) -> tuple[Reading, dict[str, Any]]:
        """Return the images of a split, and the options that all loaders share."""
        dataset: Reading = self._datasets[split]
        options = {"batch_size": self.share.images, "num_workers": self.num_workers, "collate_fn": dataset.collate}
        return dataset, {**options, "worker_init_fn": leave_signals_to_parent}
