from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flatten_transformer.data.module import fit_batch, share_batch
from flatten_transformer.tasks.classification.data import ImageData


def loaders(world_size: int, **options: Any) -> list[ImageData]:
    found = []
    for rank in range(world_size):
        torch.manual_seed(options.pop("seed", 0))
        data = ImageData("digits", img_size=8, **options)
        data.trainer = SimpleNamespace(world_size=world_size, global_rank=rank)  # type: ignore[assignment]
        data.setup("fit")
        data.setup("test")
        found.append(data)
    return found


def numbers(loader: Any) -> list[list[int]]:
    return [indices.tolist() for _, _, indices in loader]


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_evaluation_counts_each_image_once_however_many_devices_there_are(world_size: int) -> None:
    seen = [i for data in loaders(world_size, batch_size=7 * 3 * 2) for batch in numbers(data.test_dataloader()) for i in batch]
    assert sorted(seen) == list(range(360))


@pytest.mark.parametrize("device_batch_size", [None, 5])
def test_a_step_sees_the_same_images_on_one_device_and_on_two(device_batch_size: int | None) -> None:
    (one,) = loaders(1, batch_size=20)
    wanted = [sorted(batch) for batch in numbers(one.train_dataloader())[:10]]
    two = loaders(2, batch_size=20, device_batch_size=device_batch_size)
    pieces = two[0].share.micro_batches
    assert two[0].share.images * pieces == 10
    halves = [numbers(data.train_dataloader()) for data in two]
    steps = [[i for half in halves for piece in half[step * pieces : (step + 1) * pieces] for i in piece] for step in range(10)]
    assert [sorted(step) for step in steps] == wanted


def test_the_order_follows_from_the_seed_and_the_epoch() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        torch.manual_seed(seed)
        (data,) = loaders(1, batch_size=64, seed=seed)
        loader: Any = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        return numbers(loader)

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1) != order(1, 1)


def test_the_processes_of_a_loader_draw_the_same_augmentations_in_the_same_epoch_and_others_in_the_next() -> None:
    def first_batch(epoch: int) -> torch.Tensor:
        (data,) = loaders(1, batch_size=4, num_workers=1)
        torch.rand(epoch + 1)  # whatever was drawn before does not matter
        loader: Any = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        loader.sampler.shuffle = False
        images: torch.Tensor = next(iter(loader))[0]
        return images

    assert torch.equal(first_batch(0), first_batch(0))
    assert not torch.equal(first_batch(0), first_batch(1))


@pytest.mark.parametrize(
    ("batch", "devices", "message"),
    [
        (
            30,
            4,
            "a batch of 30 images cannot be divided evenly among 4 devices: make data.batch_size a multiple of 4, such as 32",
        ),
        (2, 4, "a batch of 2 images cannot be divided evenly among 4 devices: make data.batch_size a multiple of 4, such as 4"),
    ],
)
def test_a_batch_that_cannot_be_divided_is_refused(batch: int, devices: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        share_batch(batch, devices, None)


@pytest.mark.parametrize(("name", "least"), [("batch_size", 1), ("device_batch_size", 1), ("num_workers", 0)])
def test_numbers_below_the_least_are_refused(name: str, least: int) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least {least}, got {least - 1}"):
        loaders(1, **{name: least - 1})


@pytest.mark.parametrize(
    ("images", "devices", "at_once", "wanted"),
    [(16, 1, None, 16), (12, 1, None, 12), (13, 1, 8, 8), (13, 1, 4, 12), (13, 2, None, 12), (3, 2, 8, 2), (1, 1, None, 1)],
)
def test_a_batch_shrinks_to_the_images_there_are(images: int, devices: int, at_once: int | None, wanted: int) -> None:
    batch = fit_batch(16, images, devices, at_once)
    share = share_batch(batch, devices, at_once)
    assert batch == wanted == share.images * share.micro_batches * devices
    assert share.images == min(at_once or batch, batch // devices)  # no smaller pieces than must be


def test_fewer_images_than_devices_are_refused() -> None:
    with pytest.raises(ValueError, match=r"3 training images cannot be divided among 4 devices: lower trainer\.devices"):
        fit_batch(16, 3, 4, None)
