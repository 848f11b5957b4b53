"""Opening image files, whoever made them: which formats, how large, and one kind of error for all that can be wrong."""

from __future__ import annotations

import io
import os
import stat
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

from PIL import ExifTags, Image, UnidentifiedImageError, features
from PIL.ImageFile import ImageFile

MAX_PIXELS = 89_478_485  # from here on Pillow warns; at twice as many it refuses
WHITE = "flatten_white"  # in Image.info: the value that is white in the file, where the file says so
DEEP = "flatten_deep"  # in Image.info: the file has 16 bits a colour, of which Pillow keeps the upper 8

# Pillow would try all of its forty, among them PostScript, which starts Ghostscript.
_FORMATS = {
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "JPEG": (".jpeg", ".jpg", ".jfif", ".jpe"),
    "PNG": (".png",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif"),
}
_HEIF_PLUGINS = [name for name in ("pillow_heif", "pi_heif") if find_spec(name)]
_HAS = {"AVIF": find_spec("PIL.AvifImagePlugin") is not None and features.check("avif"), "HEIF": bool(_HEIF_PLUGINS)}
SUFFIXES = tuple(suffix for name, suffixes in _FORMATS.items() if _HAS.get(name, True) for suffix in suffixes)
UNREAD = {suffix: name for name, suffixes in _FORMATS.items() if not _HAS.get(name, True) for suffix in suffixes}

_METADATA = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # they would turn the image again
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PILLOWS_LIMIT = threading.Lock()


def read_image(path: str | Path) -> Image.Image:
    """Return the image in a file, upright and fully read; of an animation the first frame.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not an image, or a damaged or too large one, or holds floating-point values.
    """
    try:
        return decode_image(Path(path), str(path))
    except FileNotFoundError:
        raise FileNotFoundError(f"no image {path}: check the path") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a folder: give it the images themselves, such as {path}/*.png") from None


def decode_image(file: Path | BinaryIO, name: str) -> Image.Image:
    """Return the image in a file or in bytes, upright and fully read; of an animation the first frame.

    Its format is one of those that training means: AVIF, BMP, GIF, JPEG, PNG, PPM, TIFF, WebP, and HEIF where
    `pillow-heif` is installed. The environment variable ``FLATTEN_MAX_PIXELS`` changes how large it may be.

    Args:
        file: A path, or bytes such as ``io.BytesIO``.
        name: What an error calls it.

    Raises:
        FileNotFoundError: If there is no such file.
        IsADirectoryError: If it is a folder.
        ValueError: If it is not an image, or a damaged or too large one, or holds floating-point values.
    """
    limit = max_pixels()
    try:
        if not isinstance(file, Path):
            return _decode(file, name, limit)
        with open_regular(file) as opened:
            return _decode(opened, name, limit)
    except (FileNotFoundError, IsADirectoryError, _RefusedError):
        raise
    except UnidentifiedImageError:
        raise ValueError(f"{name} is not an image that Pillow can read: give it a PNG, JPEG, WebP or TIFF") from None
    except Image.DecompressionBombError:
        raise ValueError(f"{name} has far more than {limit:,} pixels: {_allow()}") from None
    except Exception as error:  # decoders raise what they like: struct.error, KeyError, SyntaxError, MemoryError
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name} cannot be read as an image ({reason}): save it anew or leave it out") from None


class _RefusedError(ValueError):
    """An image that is refused with a reason of its own."""


def max_pixels() -> int:
    """Return how many pixels an image may have: ``FLATTEN_MAX_PIXELS``, or 89,478,485, from where on Pillow warns.

    Raises:
        ValueError: If the variable is not a positive number.
    """
    text = os.environ.get("FLATTEN_MAX_PIXELS") or str(MAX_PIXELS)
    if not text.isdecimal() or not int(text):
        raise ValueError(f"FLATTEN_MAX_PIXELS must be a positive number of pixels, got {text!r}")
    return int(text)


def open_regular(path: Path) -> io.BufferedReader:
    """Open a file for reading, unless it is a pipe, a device or a socket, which could make us wait for ever.

    Raises:
        OSError: If it cannot be opened.
        ValueError: If it is none that holds data.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a folder says so itself
        raise _RefusedError(f"{path} is a pipe or a device: save what comes out of it in a file")
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))


def _decode(file: BinaryIO, name: str, limit: int) -> Image.Image:
    size = file.seek(0, os.SEEK_END)
    if size > 8 * limit:  # some decoders read the whole file; 8 bytes hold a pixel of the deepest
        raise _RefusedError(f"{name} has {size:,} bytes, more than an image of {limit:,} pixels needs: {_allow(size // 8)}")
    file.seek(0)
    with _no_warnings(), _raised_limit(limit), Image.open(file, formats=_formats()) as image:
        _check_size(image, name, limit)
        depth = _depth(image, file)
        image.load()
        if image.mode == "F":
            raise _RefusedError(
                f"{name} is a floating-point image, which has no fixed range: save it with 8 or 16 bits a channel"
            )
        turn = _turn(image)
        upright = image.copy() if turn is None else image.transpose(turn)
    for key in _METADATA:
        upright.info.pop(key, None)
    upright.info.update(depth)
    return upright


def _allow(pixels: int | None = None) -> str:
    variable = "FLATTEN_MAX_PIXELS" + (f"={pixels}" if pixels else "")
    return f"shrink it, or, if you trust it, set the environment variable {variable}"


def _check_size(image: Image.Image, name: str, limit: int) -> None:
    pixels = image.width * image.height
    if pixels > limit:
        raise _RefusedError(f"{name} has {image.width} × {image.height} pixels, more than {limit:,}: {_allow(pixels)}")
    if not pixels:
        raise _RefusedError(f"{name} has no pixels ({image.width} × {image.height}): save it anew or leave it out")


@cache
def _formats() -> tuple[str, ...]:
    """Return the names of the formats that are read, and make Pillow know HEIF where its plugin is installed."""
    for plugin in _HEIF_PLUGINS[:1]:
        import_module(plugin).register_heif_opener()
    return tuple(name for name in _FORMATS if _HAS.get(name, True))


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Silence Pillow about what does not keep an image from being read, such as odd metadata."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


@contextmanager
def _raised_limit(limit: int) -> Iterator[None]:
    """Let Pillow read as much as we do; it has one limit for the whole program, so that it is put back."""
    if Image.MAX_IMAGE_PIXELS is None or limit <= 2 * Image.MAX_IMAGE_PIXELS:
        yield
        return
    with _PILLOWS_LIMIT:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, limit
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return what makes a photograph upright; a sound picture may have damaged EXIF data."""
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # it depends on the tag and the format which
        return None


def _depth(image: Image.Image, file: BinaryIO) -> dict[str, int | bool]:
    """Return what only the file can say of 16 bits, to be kept in ``Image.info``."""
    args = image.tile[0].args if isinstance(image, ImageFile) and image.tile else ""
    rawmode = str(args[0] if isinstance(args, tuple) and args else args)
    white = _white(image, rawmode, file)
    deep = ";16" in rawmode and image.mode in ("L", "LA", "RGB", "RGBA")
    return {**({WHITE: white} if white else {}), **({DEEP: True} if deep else {})}


def _white(image: Image.Image, rawmode: str, file: BinaryIO) -> int:
    """Return the value that the file calls white, 0 where it does not say."""
    if image.format == "PPM" and image.mode == "I":
        return 65535  # Pillow has scaled it by what the file says
    if rawmode == "I;12":
        return 4095
    if image.format == "PNG" and ";16" in rawmode:
        return (1 << _significant_bits(file)) - 1
    if image.format == "TIFF" and "16" in rawmode:
        return _max_sample_value(image)
    return 0


def _significant_bits(file: BinaryIO) -> int:
    """Return the least number in a PNG's chunk sBIT, 0 where there is none; the place in the file stays as it is."""
    place = file.tell()
    try:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"sBIT":
                bits = file.read(min(length, 4))
                return min(bits, default=0) if max(bits, default=0) <= 16 else 0
            if kind == b"IDAT":
                return 0
            file.seek(length + 4, os.SEEK_CUR)
        return 0
    finally:
        file.seek(place)


def _max_sample_value(image: Image.Image) -> int:
    """Return a TIFF's MaxSampleValue where it is all ones in binary, a depth; else it is but the brightest pixel's."""
    tags = getattr(image, "tag_v2", {})
    value = tags.get(281, 0)
    value = value[0] if isinstance(value, tuple) and value else value
    return value if isinstance(value, int) and 0 < value < 65536 and not value & (value + 1) else 0
