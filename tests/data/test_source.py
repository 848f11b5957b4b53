from collections import Counter

import pytest
from PIL import Image

from flatten_transformer.data.source import Source, split_off


class Numbered(Source):
    """Images whose only pixel is their number."""

    def __init__(self, labels: list[int]) -> None:
        self.labels = labels

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.new("L", (1, 1), index), self.labels[index]


def test_every_image_is_in_one_part_with_its_class_and_name() -> None:
    source = Numbered([0, 1, 1, 0, 2, 2, 2])
    parts = split_off(source, 0.5)
    found = {part[i][0].getpixel((0, 0)): (part[i][1], part.name(i)) for part in parts for i in range(len(part))}
    assert sum(map(len, parts)) == len(source)
    assert found == {number: (label, f"image {number}") for number, label in enumerate(source.labels)}
    assert all(part[i][1] == part.labels[i] for part in parts for i in range(len(part)))


@pytest.mark.parametrize(("share", "kept"), [(0.01, 1), (0.2, 4), (0.5, 10), (0.99, 19)])
def test_each_class_gives_its_share_but_neither_all_nor_nothing(share: float, kept: int) -> None:
    first, second = split_off(Numbered([0] * 20 + [1] * 20 + [2]), share)
    assert Counter(second.labels) == {0: kept, 1: kept}
    assert Counter(first.labels) == {0: 20 - kept, 1: 20 - kept, 2: 1}


def test_the_parts_are_mixed_and_always_the_same() -> None:
    first, second = (split_off(Numbered([0] * 50 + [1] * 50), 0.2)[1] for _ in range(2))
    assert first.indices == second.indices
    assert first.indices[:10] != list(range(10))


def test_there_must_be_an_image_to_spare() -> None:
    with pytest.raises(ValueError, match="no class has a second image, so none can be kept for validation: add images"):
        split_off(Numbered([0, 1, 2]), 0.5)
