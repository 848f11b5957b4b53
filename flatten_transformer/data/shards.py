"""Images in tar files, as WebDataset keeps them: read where they lie, in any order, nothing unpacked."""

# n images.

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from PIL import Image

from flatten_transformer.data.image_folder import SUFFIXES
from flatten_transformer.data.preprocessing import decode_image
from flatten_transformer.data.source import Source, Splits

_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_CLASS_FILES = ("classnames.txt", "classes.txt")


class Member(NamedTuple):
    """Where the bytes of an image lie, and what says its class."""

    shard: Path
    name: str
    offset: int
    size: int
    class_: str


class ShardImages(Source):
    """Images in tar files.

    timm reads such files as a stream, which shuffles little, drops damaged images in silence and may repeat an image
    or lose one when several processes read. Looking for each image keeps what holds for every other data set here.

    Args:
        members: n images.
        labels: The class of each, n numbers.
    """

    def __init__(self, members: Sequence[Member], labels: Sequence[int]) -> None:
        self.members = members
        self.labels = labels

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        member = self.members[index]
        with member.shard.open("rb") as file:
            file.seek(member.offset)
            content = file.read(member.size)
        return decode_image(BytesIO(content), self.name(index)), self.labels[index]

    def name(self, index: int) -> str:
        """Return the path of the tar file and of the image in it."""
        return f"{self.members[index].shard}/{self.members[index].name}"


def open_shards(root: Path, beginning: str = "") -> Splits:
    """Find classes and images in the tar files of a folder and the folders in it.

    An image is of the class that the file ``.cls`` of its name says, by number or word, or else of that of its folder in
    the tar file. The tar files whose names, or folders', hold the word train, val (or valid, validation) or test are of
    that split; without any such word all are for training. Numbers get names where the folder has a file
    ``classnames.txt`` or ``classes.txt``, one name a line.

    Args:
        root: The folder.
        beginning: Of the names of the tar files that are meant; empty for all.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If there is no tar file, or one is not as it should be, or there are fewer than two classes.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}: check data.root, the folder of the .tar files")
    shards = sorted(path for path in root.rglob("*.tar") if path.name.startswith(beginning))
    if not shards:
        raise ValueError(f"{root} holds no file {beginning}*.tar: check data.root, the folder of the .tar files")
    found: dict[str, list[Member]] = {"train": [], "val": [], "test": []}
    for shard in shards:
        found[_split(shard.relative_to(root))] += _members(shard)
    if not found["train"]:
        raise ValueError(f"{root} has no image to learn from: name the .tar files for training such as train-0000.tar")
    class_names = _class_names(root, [member.class_ for member in found["train"]])
    train, val, test = (_images(members, class_names) for members in found.values())
    assert train is not None
    return Splits(list(class_names.values()), train, val, test)


def _split(path: Path) -> str:
    words = re.split("[^a-z]+", path.as_posix().lower())
    return next((_SPLITS[word] for word in words if word in _SPLITS), "train")


def _members(shard: Path) -> Iterator[Member]:
    try:
        with tarfile.open(shard, "r:") as tar:
            files = [file for file in tar if file.isfile() and not PurePosixPath(file.name).name.startswith(".")]
            classes = {_key(file.name): _text(tar, file) for file in files if file.name.endswith(".cls")}
    except tarfile.TarError as error:
        raise ValueError(f"{shard} is not a plain .tar file, or a damaged one ({error}): pack it anew") from None
    for file in files:
        if file.name.lower().endswith(SUFFIXES):
            class_ = classes.get(_key(file.name)) or PurePosixPath(file.name).parent.name
            if not class_:
                raise ValueError(f"{shard}/{file.name} says no class: add {_key(file.name)}.cls, or put it into a folder")
            yield Member(shard, file.name, file.offset_data, file.size, class_)


def _key(name: str) -> str:
    """Return what the files of one image have in common: all up to the first point of the file's own name."""
    path = PurePosixPath(name)
    return str(path.with_name(path.name.partition(".")[0]))


def _text(tar: tarfile.TarFile, file: tarfile.TarInfo) -> str:
    content = tar.extractfile(file)
    assert content is not None  # it is a regular file
    return content.read().decode().strip()


def _class_names(root: Path, classes: Sequence[str]) -> dict[str, str]:
    """Return the name of each class by what the shards call it, in the order of the classes' numbers."""
    kinds = set(classes)
    if len(kinds) < 2:
        raise ValueError(f"{root} has one class, {kinds.pop()!r}, but it takes two to tell apart")
    if not all(kind.isdecimal() for kind in kinds):
        return {kind: kind for kind in sorted(kinds)}
    count = max(int(kind) for kind in kinds) + 1
    file = next((root / name for name in _CLASS_FILES if (root / name).is_file()), None)
    names = [str(number) for number in range(count)] if file is None else file.read_text("utf-8").split("\n")
    names = [name.strip() for name in names if name.strip()]
    if len(names) < count:
        raise ValueError(f"{file} names {len(names)} classes, but the images have {count}: write one name a line")
    return {str(number): name for number, name in enumerate(names)}


def _images(members: Sequence[Member], class_names: dict[str, str]) -> ShardImages | None:
    numbers = {class_: number for number, class_ in enumerate(class_names)}
    for member in members:
        if _number(member) not in numbers:
            raise ValueError(f"{member.shard}/{member.name} is of the class {member.class_!r}, which no training image has")
    return ShardImages(members, [numbers[_number(member)] for member in members]) if members else None


def _number(member: Member) -> str:
    return str(int(member.class_)) if member.class_.isdecimal() else member.class_  # 007 is 7
