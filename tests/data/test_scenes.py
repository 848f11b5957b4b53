import errno
import itertools
import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flatten_transformer import cli
from flatten_transformer.data import scenes
from flatten_transformer.data.digits import Digits
from flatten_transformer.data.scenes import CLASS_NAMES, Scene, SceneSettings, draw_scene, run_lengths, write_scenes
from flatten_transformer.data.source import Split

SPLITS: tuple[Split, ...] = ("train", "val", "test")
FEW = SceneSettings(train=3, val=2, test=2)


def drawn(count: int = 12) -> list[Scene]:
    return [draw_scene(split, index) for split in SPLITS for index in range(count)]


def decode(counts: list[int], size: list[int]) -> np.ndarray[Any, Any]:
    """Return the mask of COCO's run lengths: runs of zeros and ones in turn, column by column."""
    flat = np.repeat(np.arange(len(counts)) % 2, counts)
    return flat.reshape(size[::-1]).T.astype(bool)


def test_a_scene_depends_on_its_seed_split_and_number_alone() -> None:
    first, again = draw_scene("train", 3), draw_scene("train", 3)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.masks, again.masks)
    others = (draw_scene("train", 4), draw_scene("val", 3), draw_scene("train", 3, SceneSettings(seed=1)))
    assert all((other.image != first.image).any() for other in others)


def test_the_scenes_are_the_same_in_every_version() -> None:
    # pinned: what a committed result was measured on must not change unseen; the masks do not depend on image codecs
    found = [(scene.labels, int(scene.masks.sum())) for scene in (draw_scene("train", 0), draw_scene("test", 0))]
    assert found == [([8, 5, 6, 9], 1946), ([3], 412)]


def test_no_pixel_belongs_to_two_digits_and_most_of_each_is_visible() -> None:
    for scene in drawn():
        assert scene.masks.sum(0).max() <= 1
        assert len(scene.masks) == len(scene.labels) >= 1
        assert scene.masks.sum((1, 2)).min() > 40


def test_some_digits_hide_parts_of_others() -> None:
    assert sum(_touch(scene) for scene in drawn()) > 5


def _touch(scene: Scene) -> bool:
    grown = [mask | np.roll(mask, 1, 0) | np.roll(mask, 1, 1) for mask in scene.masks]
    return any((first & second).any() for i, first in enumerate(grown) for second in grown[:i])


def test_the_map_says_the_digit_of_each_pixel() -> None:
    for scene in drawn(4):
        found = scene.semantic_map()
        assert (found == 0).sum() == (~scene.masks.any(0)).sum()
        for mask, label in zip(scene.masks, scene.labels, strict=True):
            assert set(found[mask]) == {1 + label}
            assert CLASS_NAMES[1 + label] == str(label)


def test_backgrounds_of_one_split_are_in_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    column = np.broadcast_to(np.arange(640) // 4, (427, 640)).astype(np.uint8)  # the pixels say where they are from
    photographs = (Image.fromarray(np.repeat(column[:, :, None], 3, axis=2)),) * 2
    monkeypatch.setattr(scenes, "_photographs", lambda: photographs)
    seen = []
    for split in SPLITS:
        pixels = [scenes._background(np.random.default_rng(seed), split, FEW) for seed in range(20)]
        seen.append((np.min(pixels), np.max(pixels)))
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(seen))


def test_digits_of_one_split_are_in_no_other() -> None:
    for split in SPLITS:
        assert scenes._digits(split).labels == Digits(split).labels  # whose splits are disjoint


def test_the_files_hold_what_was_drawn(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "scenes"
    write_scenes(folder, FEW)
    assert (folder / "classes.txt").read_text().split() == list(CLASS_NAMES)
    for split in SPLITS:
        content = json.loads((folder / "annotations" / f"instances_{split}.json").read_text())
        assert [category["name"] for category in content["categories"]] == list("0123456789")
        assert len(content["images"]) == getattr(FEW, split)
        for index, image in enumerate(content["images"]):
            scene = draw_scene(split, index, FEW)
            pixels = np.asarray(Image.open(folder / "images" / split / image["file_name"]))
            np.testing.assert_array_equal(pixels, scene.image)
            mask = np.asarray(Image.open(folder / "masks" / split / image["file_name"]))
            np.testing.assert_array_equal(mask, scene.semantic_map())
            mine = [note for note in content["annotations"] if note["image_id"] == image["id"]]
            assert [note["category_id"] - 1 for note in mine] == scene.labels
            for note, wanted in zip(mine, scene.masks, strict=True):
                np.testing.assert_array_equal(decode(**note["segmentation"]), wanted)
                x, y, width, height = note["bbox"]
                assert wanted[y : y + height, x : x + width].sum() == wanted.sum() == note["area"]
                assert all(side.any() for side in (wanted[y], wanted[y + height - 1], wanted[:, x], wanted[:, x + width - 1]))
        ids = [note["id"] for note in content["annotations"]]
        assert ids == list(range(1, len(ids) + 1))


def test_scenes_are_written_once_and_never_over_something_else(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", FEW)
    before = (tmp_path / "scenes" / "scenes.json").stat().st_mtime_ns
    write_scenes(tmp_path / "scenes", FEW)
    assert (tmp_path / "scenes" / "scenes.json").stat().st_mtime_ns == before
    for settings, folder in ((SceneSettings(seed=5), tmp_path / "scenes"), (FEW, tmp_path)):
        with pytest.raises(ValueError, match="is there already and holds no scenes of these settings: name another folder"):
            write_scenes(folder, settings)
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]


def test_of_two_processes_that_write_the_same_scenes_both_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine, folder = scenes._write_split, tmp_path / "scenes"

    def outrun(draft: Path, split: Split, settings: SceneSettings) -> None:
        genuine(draft, split, settings)
        monkeypatch.setattr(scenes, "_write_split", genuine)
        if split == "train":
            write_scenes(folder, settings)  # the other process is done first

    monkeypatch.setattr(scenes, "_write_split", outrun)
    write_scenes(folder, FEW)
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]


def test_nothing_is_left_of_scenes_that_could_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(scenes, "draw_scene", full)
    with pytest.raises(OSError, match="no space left"):
        write_scenes(tmp_path / "scenes", FEW)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mask", [[[0, 0], [0, 0]], [[1, 1], [1, 1]], [[1, 0], [0, 1]], [[0], [1], [1]]])
def test_run_lengths_can_be_undone(mask: list[list[int]]) -> None:
    wanted = np.array(mask, bool)
    np.testing.assert_array_equal(decode(run_lengths(wanted), list(wanted.shape)), wanted)
    assert sum(run_lengths(wanted)) == wanted.size


@pytest.mark.parametrize("option", ["train", "val", "test", "height", "width", "most", "seed"])
def test_a_number_out_of_range_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} must be at least"):
        SceneSettings(**{option: -1})


def test_every_option_of_the_command_changes_the_scenes(tmp_path: Path) -> None:
    written = set()
    for option in ("", "train=2", "val=2", "test=2", "height=32", "width=64", "most=1", "seed=1"):
        folder = tmp_path / f"scenes{option}"
        arguments = [f"--{name}=1" for name in ("train", "val", "test")] + ([f"--{option}"] if option else [])
        assert cli.main(["make-scenes", str(folder), *arguments]) == 0
        written.add(b"".join(path.read_bytes() for path in sorted((folder / "annotations").iterdir())))
    assert len(written) == 8


def test_scenes_are_as_the_umask_has_them_and_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = SceneSettings(train=1, val=1, test=1)
    before = os.umask(0o027)
    try:
        write_scenes(tmp_path / "scenes", few)
    finally:
        os.umask(before)
    modes = {path.is_dir(): stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "scenes").rglob("*")}
    assert modes == {True: 0o750, False: 0o640}
    assert stat.S_IMODE((tmp_path / "scenes").stat().st_mode) == 0o750

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(scenes, "_write_split", full)
    with pytest.raises(OSError, match=r"No space left on device: .*other"):
        write_scenes(tmp_path / "other", few)
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]
