"""WebDataset shards: images in tar files, read in place with random access."""

# n images.

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Sequence
from glob import escape
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from PIL import Image

from flatten_transformer.data.image_files import SUFFIXES, decode_image, max_pixels, open_regular
from flatten_transformer.data.source import Format, Source, Split, Splits
from flatten_transformer.data.split_names import mentioned_split
from flatten_transformer.data.walk import HIDDEN, Excluded, group_by_reason, not_an_image
from flatten_transformer.utils.progress import track

_CLASS_FILES = ("classnames.txt", "classes.txt")
_MAX_CLASS_BYTES = 1024  # bytes of a .cls
_MAX_HEADER_BYTES = 2**20  # bytes of an extended header
_MAX_NUMBERS_PER_CLASS = 10  # how sparse class numbers may be without a list of names
_NOT_A_FILE = "in a tar file, but no plain file: a link, a device"


class Member(NamedTuple):
    """Position of an image in a tar file, and its class."""

    shard: Path
    name: str
    offset: int
    size: int
    class_: str


class ShardImages(Source):
    """Images in tar files.

    timm streams such files: shuffling is limited, damaged images are dropped silently, and several workers may repeat or lose
    images. Random access gives the guarantees of every other data set here.

    Args:
        members: n images.
        labels: n class numbers.
    """

    def __init__(self, members: Sequence[Member], labels: Sequence[int]) -> None:
        self.members = members
        self.labels = labels

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        member, limit = self.members[index], 8 * max_pixels()
        if member.size > limit:
            raise ValueError(f"{self.name(index)} has {member.size:,} bytes, more than an image needs: leave it out")
        with open_regular(member.shard) as file:
            file.seek(member.offset)
            content = file.read(member.size)
        return decode_image(BytesIO(content), self.name(index)), self.labels[index]

    def name(self, index: int) -> str:
        """Return the path of the tar file and the image in it."""
        return f"{self.members[index].shard}/{self.members[index].name}"


def open_shards(root: Path, beginning: str = "") -> Splits:
    """Open classes and images in the tar files of a folder and its subfolders.

    The class of an image is the number or word in the ``.cls`` file of the same name, or else its folder in the tar file. A
    tar file belongs to the split that its name or folder mentions (train, val, test or a variant), or else to training. Class
    numbers are named by ``classnames.txt`` or ``classes.txt`` in the folder, one name per line. Only regular files are read;
    nothing is unpacked.

    Args:
        root: Data folder.
        beginning: Prefix of the tar files' names; empty for all.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If there is no tar file, one is malformed, or there are fewer than two classes.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}: check data.root, the folder of the .tar files")
    shards = sorted(path for path in root.rglob(f"{escape(beginning)}*.tar") if not (path.name.startswith(".") or path.is_dir()))
    if not shards:
        raise ValueError(f"{root} holds no file {beginning}*.tar: check data.root, the folder of the .tar files")
    members: dict[Split, list[Member]] = {"train": [], "val": [], "test": []}
    left_out: list[Excluded] = []
    _check_once(shards)
    with track(shards, "contents of {}".format, quick=True) as tracked:
        for shard in tracked:
            members[_split(shard.relative_to(root))] += _members(shard, left_out)
    if not members["train"]:
        raise ValueError(f"{root} has no image to learn from: name the .tar files for training such as train-0000.tar")
    class_names = _class_names(root, members["train"])
    train, val, test = (_images(each, class_names) for each in members.values())
    assert train is not None
    return Splits(list(class_names.values()), train, val, test, group_by_reason(root, left_out))


def _check_once(shards: Sequence[Path]) -> None:
    files: dict[tuple[int, int], Path] = {}
    for shard in shards:
        stat = shard.stat()
        first = files.setdefault((stat.st_dev, stat.st_ino or id(shard)), shard)
        if first is not shard:
            raise ValueError(f"{first} and {shard} are one file, whose images would count twice: remove one")


def _split(path: Path) -> Split:
    """Return the split mentioned by a tar file's name, or else by its nearest folder."""
    return next((split for name in (path.stem, *reversed(path.parent.parts)) if (split := mentioned_split(name))), "train")


class _Headers(io.BufferedReader):
    """A tar file read with bounded sizes, so that a forged header cannot exhaust memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Return ``size`` bytes; raise beyond the largest header."""
        if size is None or not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def _members(shard: Path, left_out: list[Excluded]) -> Iterator[Member]:
    """Yield the images of a tar file."""
    files: dict[str, tarfile.TarInfo] = {}
    classes: dict[str, str] = {}
    with _Headers(open_regular(shard).detach()) as headers:
        for file in _plain_files(shard, headers, left_out):
            if file.name.endswith(".cls"):
                classes[_key(file.name)] = _text(shard, headers, file)
            elif file.name in files:
                raise ValueError(f"{shard} holds two files {file.name}: pack it anew, each once")
            else:
                files[file.name] = file
    for name, file in files.items():
        class_ = classes.get(_key(name)) or PurePosixPath(name).parent.name
        if class_ in ("", ".."):
            raise ValueError(f"{shard}/{name} says no class: add {_key(name)}.cls, or put it into a folder")
        yield Member(shard, name, file.offset_data, file.size, class_)


def _plain_files(shard: Path, headers: _Headers, left_out: list[Excluded]) -> Iterator[tarfile.TarInfo]:
    """Yield the images and ``.cls`` files of a tar file in order."""
    for file in _entries(shard, headers):
        path = PurePosixPath(file.name)
        reason = None
        if path.name.startswith("."):
            reason = HIDDEN
        elif file.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            reason = _NOT_A_FILE
        elif not file.name.endswith(".cls") and not file.name.lower().endswith(SUFFIXES):
            reason = not_an_image(file.name)
        if reason is None:
            yield file
        elif not file.isdir():
            left_out.append(Excluded(reason, f"{shard}/{file.name}"))


def _entries(shard: Path, headers: _Headers) -> Iterator[tarfile.TarInfo]:
    """Yield the entries of a tar file, checking that their offsets increase.

    Raises:
        ValueError: If it is damaged or forged.
    """
    end = -1
    try:
        with tarfile.open(fileobj=headers, mode="r:") as tar:
            while (file := tar.next()) is not None:
                if file.size < 0 or file.offset_data <= end:
                    raise tarfile.ReadError("a file that ends before it begins")
                end = file.offset_data
                tar.members.clear()  # type: ignore[attr-defined]  # documented but unannotated; frees the entries read so far
                yield file
            headers.seek(tar.offset)
            if headers.read(tarfile.BLOCKSIZE).strip(b"\0"):  # tarfile would silently ignore the rest
                raise tarfile.ReadError("a damaged or truncated header")
    except Exception as error:  # damaged headers raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{shard} is not a plain .tar file, or a damaged one ({reason}): pack it anew") from None


def _key(name: str) -> str:
    """Return the key shared by the files of one image: the path up to the first dot of the file name."""
    path = PurePosixPath(name)
    return str(path.with_name(path.name.partition(".")[0]))


def _text(shard: Path, headers: _Headers, file: tarfile.TarInfo) -> str:
    if file.size > _MAX_CLASS_BYTES:
        raise ValueError(f"{shard}/{file.name} has {file.size:,} bytes, where a number or the name of a class was wanted")
    position = headers.tell()
    headers.seek(file.offset_data)
    content = headers.read(file.size)
    headers.seek(position)
    try:
        return content.decode().strip()
    except UnicodeDecodeError:
        raise ValueError(
            f"{shard}/{file.name} holds {content[:20]!r}, which is no text in UTF-8: write a number or a name"
        ) from None


def _class_names(root: Path, members: Sequence[Member]) -> dict[str, str]:
    """Map the shards' class keys to class names, in the order of class numbers."""
    sample = {member.class_: member for member in members}
    if len(sample) < 2:
        raise ValueError(f"{root} has one class, {next(iter(sample))!r}, but it takes two to tell apart")
    for class_, member in sample.items():
        if class_.startswith("-") and _is_number(class_[1:]):
            raise ValueError(
                f"{member.shard}/{member.name} is of the class {class_}, but classes are numbered from 0: leave it out"
            )
    if not all(_is_number(class_) for class_ in sample):
        return {class_: class_ for class_ in sorted(sample)}
    last = max(sample, key=int)
    file = next((root / name for name in _CLASS_FILES if (root / name).is_file()), None)
    if file is None and int(last) >= _MAX_NUMBERS_PER_CLASS * len(sample):
        where = f"{sample[last].shard}/{sample[last].name} is of the class {last}"
        raise ValueError(f"{where}, but {root} has only {len(sample)} classes: correct it, or name all in {root}/classnames.txt")
    names = map(str, range(int(last) + 1)) if file is None else file.read_text("utf-8").split("\n")
    names = [name.strip() for name in names if name.strip()]
    if len(names) <= int(last):
        raise ValueError(f"{file} names {len(names)} classes, but the images have {int(last) + 1}: write one name a line")
    return {str(number): name for number, name in enumerate(names)}


def _is_number(text: str) -> bool:
    return text.isdecimal() and text.isascii()


def _images(members: Sequence[Member], class_names: dict[str, str]) -> ShardImages | None:
    numbers = {class_: number for number, class_ in enumerate(class_names)}
    for member in members:
        if _number(member) not in numbers:
            raise ValueError(f"{member.shard}/{member.name} is of the class {member.class_!r}, which no training image has")
    return ShardImages(members, [numbers[_number(member)] for member in members]) if members else None


def _number(member: Member) -> str:
    return str(int(member.class_)) if _is_number(member.class_) else member.class_  # 007 is 7


FORMAT = Format(("wds",), None, lambda request: open_shards(request.folder, request.rest))
