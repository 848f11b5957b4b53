import numpy as np
import pytest
import torch
from torch import Tensor

from flatten_transformer.tasks.classification.mixing import Mixing


@pytest.fixture(autouse=True)
def _seed() -> None:
    np.random.seed(0)  # timm's mixing


def batch(size: int) -> tuple[Tensor, Tensor]:
    """Images whose every pixel says which image it is, each of its own class."""
    return torch.arange(size).reshape(size, 1, 1, 1).expand(size, 1, 8, 8).float().clone(), torch.arange(size)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8])
@pytest.mark.parametrize("mixing", [Mixing(0.8), Mixing(0.0, 1.0), Mixing(0.8, 1.0)], ids=["mixup", "cutmix", "both"])
def test_the_share_of_each_class_is_its_share_of_the_pixels(mixing: Mixing, size: int) -> None:
    images, labels = batch(size)
    mixed, targets = mixing(images, labels, num_classes=size)
    assert mixed.shape == images.shape
    torch.testing.assert_close(targets.sum(1), torch.ones(size))
    torch.testing.assert_close(mixed.mean((1, 2, 3)), targets @ torch.arange(size).float())


def test_the_last_image_of_an_odd_batch_stays_as_it_is() -> None:
    images, labels = batch(5)
    mixed, targets = Mixing(0.8)(images, labels, num_classes=5)
    torch.testing.assert_close(mixed[4], images[4])
    assert targets[4].tolist() == [0, 0, 0, 0, 1]
    assert not torch.equal(mixed[:4], images[:4])


@pytest.mark.parametrize("mixing", [Mixing(), Mixing(0.8, 1.0, prob=0.0)], ids=["both off", "never"])
def test_mixing_can_be_switched_off(mixing: Mixing) -> None:
    images, labels = batch(4)
    mixed, targets = mixing(images, labels, num_classes=4)
    torch.testing.assert_close(mixed, images)
    torch.testing.assert_close(targets, torch.eye(4))


def test_mixup_blends_and_cutmix_cuts() -> None:
    images, labels = batch(4)
    blended, _ = Mixing(mixup_alpha=0.8)(images, labels, num_classes=4)
    cut, _ = Mixing(cutmix_alpha=1.0)(images, labels, num_classes=4)
    assert len(blended[0].unique()) == 1
    assert set(cut.unique().tolist()) == {0.0, 1.0, 2.0, 3.0}


@pytest.mark.parametrize(("switch_prob", "cuts"), [(0.0, 0), (1.0, 8)], ids=["always mixup", "always cutmix"])
def test_whose_turn_it_is_can_be_chosen(switch_prob: float, cuts: int) -> None:
    mixed = [Mixing(0.8, 1.0, switch_prob=switch_prob)(*batch(4), num_classes=4)[0] for _ in range(8)]
    assert sum(images.frac().eq(0).all().item() for images in mixed) == cuts  # what is cut is not blended


def test_the_batch_that_came_is_left_alone() -> None:
    images, labels = batch(4)
    kept = images.clone()
    Mixing(0.8)(images, labels, num_classes=4)
    torch.testing.assert_close(images, kept)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mixup_alpha": -1.0}, "must be at least 0, got -1.0 and 0.0"),
        ({"cutmix_alpha": -1.0}, "must be at least 0, got 0.0 and -1.0"),
        ({"prob": 1.5}, "prob must lie in 0 … 1, got 1.5"),
        ({"switch_prob": -0.5}, "switch_prob must lie in 0 … 1, got -0.5"),
    ],
)
def test_a_number_out_of_range_is_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Mixing(**wrong)
