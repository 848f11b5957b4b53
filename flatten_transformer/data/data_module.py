"""What every data module shares: batches whose size does not depend on how many devices there are."""

# n images of a split.

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from PIL import Image
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from flatten_transformer.data.contents import Contents
from flatten_transformer.data.signals import leave_signals_to_parent
from flatten_transformer.data.source import LeftOut, Split


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

    A subclass sets ``class_names`` and ``preprocessing``, and makes its loaders by :meth:`loader`.

    Args:
        batch_size: Images of one optimizer step, over all devices; the last of an epoch may hold fewer.
        device_batch_size: Images that one device takes at once; what is left of its share follows before the optimizer
            steps. None for its whole share.
        num_workers: Processes a device that load images besides the main one.

    Raises:
        ValueError: If a number is out of range.
    """

    class_names: Sequence[str]
    preprocessing: Any  # a dataclass, kept in the file of a model
    left_out: Sequence[LeftOut] = ()
    counted = "images"  # what ``counts`` counts

    def __init__(self, batch_size: int, device_batch_size: int | None, num_workers: int) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("device_batch_size", device_batch_size, 1),
            ("num_workers", num_workers, 0),
        ):
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        self.batch_size = batch_size
        self.device_batch_size = device_batch_size
        self.num_workers = num_workers
        self.seed = torch.initial_seed() % 2**31
        self.first_epoch = 0
        self.first_batch = 0

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

    @abstractmethod
    def names(self, batch: Any) -> list[str]:
        """Return what an error calls the images of a training batch: their files."""

    @abstractmethod
    def image(self, split: Split, index: int) -> Image.Image:
        """Return an image of a split that is open, as it is in its file."""

    @abstractmethod
    def skipped(self, split: Split) -> list[str]:
        """Return the names of the images of a split that could not be read and were skipped so far."""

    @abstractmethod
    def count(self, split: Split) -> int:
        """Return how many images a split has that is open."""

    def counts(self, split: Split) -> Sequence[int] | None:
        """Return how many images each class has in a split that is open, objects in detection; None where it is unknown."""
        return None

    def contents(self, *splits: Split) -> Contents:
        """Return what splits that are open hold, and what is left out: what a training prints before it starts.

        Args:
            splits: Such as ``"train"`` and ``"val"``.

        Example:
            >>> from flatten_transformer.data.image_data import ImageData
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

    def loader(
        self,
        dataset: Dataset[Any],
        *,
        train: bool,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        drop_last: bool = False,
    ) -> DataLoader[Any]:
        """Return this device's batches: shuffled anew each epoch for training, else in order, each image once.

        The order of an epoch follows from the seed and its number alone, and a step sees the same images however many
        devices share them.

        Args:
            dataset: n images.
            train: Shuffle.
            collate_fn: As of DataLoader.
            drop_last: Leave out what does not fill a batch in training, for models that take statistics over it.
        """
        assert isinstance(dataset, Sized)
        rank = self.trainer.global_rank if self.trainer else 0
        options: dict[str, Any] = {"batch_size": self.share.images, "num_workers": self.num_workers, "collate_fn": collate_fn}
        options["worker_init_fn"] = leave_signals_to_parent
        if train:
            order = EpochSampler(dataset, self._world_size, rank, self.seed, self.first_epoch)
            # A process that lives on would draw other augmentations than one started anew after a resume.
            loader = EpochLoader(dataset, sampler=order, generator=order.generator, drop_last=drop_last, **options)
            loader.first_batch = self.first_batch
            return loader
        in_turn = range(rank, len(dataset), self._world_size)
        return DataLoader(dataset, sampler=in_turn, persistent_workers=self.num_workers > 0, **options)
