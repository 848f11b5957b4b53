"""Open untrusted image files: a fixed set of formats, a size limit, and one error type for anything wrong with them."""

from __future__ import annotations

import io
import os
import stat
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO, TypeVar

from PIL import ExifTags, Image, UnidentifiedImageError, features
from PIL.ImageFile import ImageFile

Result = TypeVar("Result")

MAX_PIXELS = 89_478_485  # Pillow warns above this, and refuses twice as many
WHITE = "flatten_white"  # key in Image.info: the white value, if the file states it
DEEP = "flatten_deep"  # key in Image.info: 16 bits per colour, of which Pillow keeps the upper 8

# Pillow would try all of its forty formats, including PostScript, which runs Ghostscript.
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
_AVAILABLE = {"AVIF": find_spec("PIL.AvifImagePlugin") is not None and features.check("avif"), "HEIF": bool(_HEIF_PLUGINS)}
SUFFIXES = tuple(suffix for name, suffixes in _FORMATS.items() if _AVAILABLE.get(name, True) for suffix in suffixes)
UNSUPPORTED = {suffix: name for name, suffixes in _FORMATS.items() if not _AVAILABLE.get(name, True) for suffix in suffixes}

_METADATA = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # would rotate the image a second time
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED = [transpose for tag, transpose in _ORIENTATIONS.items() if tag >= 5]
_PILLOW_LIMIT_LOCK = threading.Lock()


def read_image(path: str | Path) -> Image.Image:
    """Return the image in a file, upright and fully decoded; the first frame of an animation.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not an image, damaged, too large, or floating-point.
    """
    try:
        return decode_image(Path(path), str(path))
    except FileNotFoundError:
        raise FileNotFoundError(f"no image {path}: check the path") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a folder: give it the images themselves, such as {path}/*.png") from None


def decode_image(file: Path | BinaryIO, name: str) -> Image.Image:
    """Decode an image from a file or bytes, upright and complete; the first frame of an animation.

    Supported formats are AVIF, BMP, GIF, JPEG, PNG, PPM, TIFF, WebP, and HEIF if `pillow-heif` is installed. The
    environment variable ``FLATTEN_MAX_PIXELS`` sets the size limit.

    Args:
        file: Path or binary stream, such as ``io.BytesIO``.
        name: Image name for error messages.

    Raises:
        FileNotFoundError: If there is no such file.
        IsADirectoryError: If it is a folder.
        ValueError: If it is not an image, damaged, too large, or floating-point.
    """
    return _opened(file, name, _decode)


def image_size(path: Path) -> tuple[int, int]:
    """Return the width and height of the upright image in a file, from its header alone.

    Raises:
        FileNotFoundError: If there is no such file.
        IsADirectoryError: If it is a folder.
        ValueError: If it is not an image, or too large.
    """
    return _opened(path, str(path), _measure)


def _opened(file: Path | BinaryIO, name: str, use: Callable[[BinaryIO, str, int], Result]) -> Result:
    """Return what ``use`` makes of an open file, its name and the pixel limit, with one kind of error for all that is wrong."""
    limit = max_pixels()
    try:
        if not isinstance(file, Path):
            return use(file, name, limit)
        with open_regular(file) as opened:
            return use(opened, name, limit)
    except (FileNotFoundError, IsADirectoryError, _RefusedError):
        raise
    except UnidentifiedImageError:
        raise ValueError(f"{name} is not an image that Pillow can read: give it a PNG, JPEG, WebP or TIFF") from None
    except Image.DecompressionBombError:
        raise ValueError(f"{name} has far more than {limit:,} pixels: {_allow()}") from None
    except Exception as error:  # decoders raise anything: struct.error, KeyError, SyntaxError, MemoryError
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name} cannot be read as an image ({reason}): save it anew or leave it out") from None


class _RefusedError(ValueError):
    """An image rejected with its own message."""


def max_pixels() -> int:
    """Return the pixel limit of an image: ``FLATTEN_MAX_PIXELS``, or 89,478,485, Pillow's warning threshold.

    Raises:
        ValueError: If the variable is not a positive number.
    """
    text = os.environ.get("FLATTEN_MAX_PIXELS") or str(MAX_PIXELS)
    if not text.isdecimal() or not int(text):
        raise ValueError(f"FLATTEN_MAX_PIXELS must be a positive number of pixels, got {text!r}")
    return int(text)


def open_regular(path: Path) -> io.BufferedReader:
    """Open a regular file for reading; reject pipes, devices and sockets, which could block forever.

    Raises:
        OSError: If it cannot be opened.
        ValueError: If it is not a regular file.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a folder raises its own error
        raise _RefusedError(f"{path} is a pipe or a device: save what comes out of it in a file")
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))


def _measure(file: BinaryIO, name: str, limit: int) -> tuple[int, int]:
    with _no_warnings(), _raised_limit(limit), Image.open(file, formats=_formats()) as image:
        _check_size(image, name, limit)
        if _orientation(image) not in _TURNED:
            return image.width, image.height
        if image.format in ("JPEG", "PNG", "WEBP"):
            return image.height, image.width
    return _decode(file, name, limit).size  # Pillow turns some formats itself, at once or when it decodes


def _decode(file: BinaryIO, name: str, limit: int) -> Image.Image:
    size = file.seek(0, os.SEEK_END)
    if size > 8 * limit:  # some decoders read the whole file; the deepest pixel takes 8 bytes
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
        transpose = _orientation(image)
        upright = image.copy() if transpose is None else image.transpose(transpose)
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
    """Return the supported Pillow formats; register the HEIF plugin if one is installed."""
    for plugin in _HEIF_PLUGINS[:1]:
        import_module(plugin).register_heif_opener()
    return tuple(name for name in _FORMATS if _AVAILABLE.get(name, True))


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Silence Pillow's warnings about harmless flaws, such as odd metadata."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


@contextmanager
def _raised_limit(limit: int) -> Iterator[None]:
    """Raise Pillow's process-wide pixel limit to ours for the duration of the block."""
    if Image.MAX_IMAGE_PIXELS is None or limit <= 2 * Image.MAX_IMAGE_PIXELS:
        yield
        return
    with _PILLOW_LIMIT_LOCK:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, limit
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _orientation(image: Image.Image) -> Image.Transpose | None:
    """Return the transpose that makes an image upright; damaged EXIF data count as none."""
    try:
        return _ORIENTATIONS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # which one depends on tag and format
        return None


def _depth(image: Image.Image, file: BinaryIO) -> dict[str, int | bool]:
    """Return what the file states about 16-bit values, to be kept in ``Image.info``."""
    args = image.tile[0].args if isinstance(image, ImageFile) and image.tile else ""
    rawmode = str(args[0] if isinstance(args, tuple) and args else args)
    white = _white(image, rawmode, file)
    deep = ";16" in rawmode and image.mode in ("L", "LA", "RGB", "RGBA")
    return {**({WHITE: white} if white else {}), **({DEEP: True} if deep else {})}


def _white(image: Image.Image, rawmode: str, file: BinaryIO) -> int:
    """Return the white value stated by the file, 0 if it states none."""
    if image.format == "PPM" and image.mode == "I":
        return 65535  # already scaled by Pillow
    if rawmode == "I;12":
        return 4095
    if image.format == "PNG" and ";16" in rawmode:
        return (1 << _significant_bits(file)) - 1
    if image.format == "TIFF" and "16" in rawmode:
        return _max_sample_value(image)
    return 0


def _significant_bits(file: BinaryIO) -> int:
    """Return the smallest number in a PNG's sBIT chunk, 0 if it has none; restore the file position."""
    position = file.tell()
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
        file.seek(position)


def _max_sample_value(image: Image.Image) -> int:
    """Return a TIFF's MaxSampleValue if it is all ones in binary, hence a depth and not merely the brightest pixel."""
    tags = getattr(image, "tag_v2", {})
    value = tags.get(281, 0)
    value = value[0] if isinstance(value, tuple) and value else value
    return value if isinstance(value, int) and 0 < value < 65536 and not value & (value + 1) else 0
