import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flatten_transformer.tasks.segmentation.inference import class_map, image_logits, window_starts


def plain() -> nn.Module:
    return nn.Conv2d(3, 5, 1).eval()


@pytest.mark.parametrize("window", [None, 60, 64, 100])
@torch.no_grad()
def test_one_window_that_covers_the_image_is_the_whole_image(window: int | None) -> None:
    model, image = nn.Conv2d(3, 5, 3, padding=1), torch.rand(3, 40, 60)
    torch.testing.assert_close(image_logits(model, image, window=window), model(image[None])[0], rtol=0, atol=0)


@torch.no_grad()
def test_windows_see_every_pixel_as_often_as_they_cover_it() -> None:
    seen: list[Tensor] = []

    def count(images: Tensor) -> Tensor:
        seen.append(images)
        return images * 0 + len(seen)  # the first window says 1, the second 2, …

    logits = image_logits(count, torch.rand(1, 32, 48), window=32, stride=16)[0]
    assert [tuple(image.shape) for image in seen] == [(1, 1, 32, 32)] * 2
    assert [float(logits[0, column]) for column in (0, 15, 16, 31, 32, 47)] == [1, 1, 1.5, 1.5, 2, 2]


@torch.no_grad()
def test_what_looks_at_each_pixel_alone_gives_the_same_through_any_windows() -> None:
    model, image = plain(), torch.rand(3, 50, 71)
    for window, stride in ((32, None), (32, 32), (40, 7), (33, 1)):
        torch.testing.assert_close(image_logits(model, image, window=window, stride=stride), model(image[None])[0])


@torch.no_grad()
def test_a_window_sees_nothing_outside_it() -> None:
    def mean(images: Tensor) -> Tensor:
        return images.mean((2, 3), keepdim=True).expand_as(images)

    image = torch.cat([torch.zeros(1, 32, 32), torch.ones(1, 32, 32)], dim=2)
    assert image_logits(mean, image, window=32, stride=32)[0].unique().tolist() == [0, 1]
    assert image_logits(mean, image)[0].unique().tolist() == [0.5]


@pytest.mark.parametrize(("length", "window", "stride"), [(100, 64, 32), (64, 64, 10), (10, 64, 32), (129, 64, 64), (65, 64, 64)])
def test_the_windows_of_a_side_cover_it_and_the_last_ends_with_it(length: int, window: int, stride: int) -> None:
    starts = window_starts(length, window, stride)
    assert {pixel for start in starts for pixel in range(start, min(start + window, length))} == set(range(length))
    assert starts[-1] == max(length - window, 0)
    assert starts == sorted(set(starts))


@pytest.mark.parametrize("classes", [1, 7, 8, 9, 20])
def test_the_classes_are_those_of_the_stretched_logits(classes: int) -> None:
    logits = torch.randn(classes, 9, 13)
    stretched = F.interpolate(logits[None], size=(31, 17), mode="bilinear", align_corners=False)[0]
    assert torch.equal(class_map(logits, 31, 17), stretched.argmax(0))


def test_numbers_out_of_range_are_refused() -> None:
    for options, message in (({"window": 0}, "window must be at least 1"), ({"stride": 4}, "needs a window to move")):
        with pytest.raises(ValueError, match=message):
            image_logits(plain(), torch.rand(3, 8, 8), **options)
