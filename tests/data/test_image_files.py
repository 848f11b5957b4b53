import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from flatten_transformer.data.image_files import MAX_PIXELS, SUFFIXES, decode_image, max_pixels, read_image
from flatten_transformer.data.preprocessing import to_mode

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8))
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def deep_png(values: np.ndarray, *, before: bytes = b"", colour: int = 0) -> bytes:
    """A PNG of 16 bits: grey (0), RGB (2), grey with alpha (4)."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + before + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def decode(content: bytes) -> Image.Image:
    return decode_image(io.BytesIO(content), "x.png")


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_that_training_means_is_read(kind: str) -> None:
    image = decode(encode(NOISE, kind))
    assert (image.size, to_mode(image, 3).mode) == ((10, 12), "RGB")


@pytest.mark.parametrize("suffix", [".jpg", ".jfif", ".avif", ".pgm", ".tiff", ".webp"])
def test_the_suffixes_are_those_of_the_formats(suffix: str) -> None:
    assert suffix in SUFFIXES
    assert not {".eps", ".ps", ".wmf", ".pdf", ".svg", ".ico"} & set(SUFFIXES)


@pytest.mark.parametrize(
    "content",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n",
        b"\xc5\xd0\xd3\xc6" + bytes(40),
        b"\xd7\xcd\xc6\x9a\x00\x00" + bytes(40),
        encode(NOISE, "ICO"),
        encode(NOISE, "TGA"),
        encode(NOISE, "SGI"),
        encode(NOISE, "PDF"),
    ],
    ids=["eps", "eps for DOS", "wmf", "ico", "tga", "sgi", "pdf"],
)
def test_no_other_format_is_tried_whatever_the_name(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, mark = tmp_path / "gs", tmp_path / "mark"
    program.write_text(f"#!/bin/sh\ntouch {mark}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "cat.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"cat\.png is not an image that Pillow can read: give it a PNG"):
        read_image(tmp_path / "cat.png")
    assert not mark.exists()


def odd_exif(tag: int, kind: int, count: int, value: bytes) -> bytes:
    """EXIF that says: turn me; and one odd entry."""
    turned = struct.pack("<HHI4s", 0x112, 3, 1, struct.pack("<H", 6).ljust(4, b"\0"))
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + turned + struct.pack("<HHI4s", tag, kind, count, value) + bytes(4)


@pytest.mark.parametrize(
    ("tag", "kind", "value"), [(0x11A, 2, b"72 \0"), (0x8769, 2, b"abc\0"), (0x10F, 99, b"abc\0"), (0x132, 12, b"abc\0")]
)
@pytest.mark.parametrize("kind_of_image", ["JPEG", "PNG", "WEBP"])
def test_a_photograph_with_an_odd_exif_entry_is_read_and_turned(kind_of_image: str, tag: int, kind: int, value: bytes) -> None:
    exif = odd_exif(tag, kind, 4, value)
    assert decode(encode(NOISE, kind_of_image, exif=exif)).size == (12, 10)


def test_a_photograph_whose_exif_is_nonsense_is_read() -> None:
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Raw profile type exif", "\nexif\n  8\nzzzz")
    assert decode(encode(NOISE, "PNG", pnginfo=notes)).size == (10, 12)
    assert decode(encode(NOISE, "JPEG", exif=b"Exif\0\0nonsense")).size == (10, 12)


def test_an_upright_image_is_not_turned_again() -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    upright = decode(encode(NOISE, "JPEG", exif=exif))
    assert decode(encode(upright, "PNG", exif=upright.getexif())).size == upright.size == (12, 10)


@pytest.mark.parametrize(
    "error", [struct.error("x"), KeyError("x"), IndexError(), OverflowError("x"), MemoryError(), RecursionError()]
)
def test_whatever_a_decoder_raises_names_the_file(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object) -> None:
        raise error

    NOISE.save(tmp_path / "a.png")
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    with pytest.raises(ValueError, match=r"a\.png cannot be read as an image \(.+\): save it anew or leave it out"):
        read_image(tmp_path / "a.png")


@given(st.sampled_from(FORMATS), st.integers(0, 400), st.binary(min_size=1, max_size=4))
def test_a_damaged_image_is_read_or_refused(kind: str, place: int, wrong: bytes) -> None:
    content = encode(NOISE.resize((4, 4)), kind)
    place %= len(content)
    try:
        to_mode(decode(content[:place] + wrong + content[place + len(wrong) :]), 3)
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017  # either is right


@pytest.mark.parametrize("size", [(9461, 9459), (20_000, 20_000), (65_535, 65_535)])
def test_an_image_of_too_many_pixels_is_refused_by_its_head(size: tuple[int, int]) -> None:
    assert size[0] * size[1] > MAX_PIXELS
    bomb = bytearray(encode(Image.new("1", (8, 8)), "PNG"))
    bomb[16:24] = struct.pack(">II", *size)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    with pytest.raises(ValueError, match=r"x\.png has .* pixels.*: shrink it, or, if you trust it, set .* FLATTEN_MAX_PIXELS"):
        decode(bytes(bomb))


def test_the_limit_of_pixels_is_set_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    content, before = encode(NOISE, "PNG"), Image.MAX_IMAGE_PIXELS
    monkeypatch.setenv("FLATTEN_MAX_PIXELS", "119")
    with pytest.raises(ValueError, match=r"x\.png has 10 × 12 pixels, more than 119: .* set .* FLATTEN_MAX_PIXELS=120"):
        decode(content)
    monkeypatch.setenv("FLATTEN_MAX_PIXELS", "120")
    assert decode(content).size == (10, 12)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow would refuse
    assert decode(content).size == (10, 12)
    assert (Image.MAX_IMAGE_PIXELS, before) == (10, MAX_PIXELS)
    for wrong in ("0", "-1", "many", "1e9"):
        monkeypatch.setenv("FLATTEN_MAX_PIXELS", wrong)
        with pytest.raises(ValueError, match=f"FLATTEN_MAX_PIXELS must be a positive number of pixels, got '{wrong}'"):
            max_pixels()


def test_a_file_larger_than_any_such_image_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.webp").write_bytes(encode(NOISE, "WEBP"))
    os.truncate(tmp_path / "a.webp", 8 * MAX_PIXELS + 1)  # sparse
    with pytest.raises(ValueError, match=r"a\.webp has 715,827,881 bytes, more than an image of 89,478,485 pixels needs"):
        read_image(tmp_path / "a.webp")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [pipe, device])
def test_only_files_are_opened(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png is a pipe or a device: save what comes out of it in a file"):
        read_image(tmp_path / "a.png")


GREY_12 = np.array([[0, 1000, 4095, 2048]], np.uint16)


@pytest.mark.parametrize(
    "content",
    [
        deep_png(GREY_12, before=chunk(b"sBIT", b"\x0c")),
        deep_png(GREY_12 * 16, before=chunk(b"sBIT", b"\x0c")),  # scaled, as the PNG specification has it
        encode(Image.fromarray(GREY_12), "TIFF", tiffinfo={281: 4095}),
        b"P5 4 1 4095\n" + GREY_12.astype(">u2").tobytes(),
    ],
    ids=["png", "png scaled", "tiff", "pgm"],
)
def test_twelve_bits_are_as_bright_as_the_file_says(content: bytes) -> None:
    grey = np.asarray(to_mode(decode(content), 1))[0]
    assert np.abs(grey.astype(int) - [0, 62, 255, 128]).max() <= 1


def test_a_tiff_of_twelve_bits_a_pixel_is_as_bright_as_it_is() -> None:
    packed = encode(Image.fromarray(np.zeros((1, 4), np.uint16)), "TIFF")
    place = packed.index(struct.pack("<HHI", 258, 3, 1)) + 8
    rows = bytes([0x00, 0x0F, 0xFF, 0xFF, 0xF0, 0x00])  # 0, 4095, 4095, 0
    packed = packed[:place] + struct.pack("<H", 12) + packed[place + 2 : -8] + rows + b"\0\0"
    assert np.asarray(to_mode(decode(packed), 1))[0].tolist() == [0, 255, 255, 0]


@pytest.mark.parametrize(
    "content",
    [
        deep_png(GREY_12),
        deep_png(GREY_12 // 16),
        encode(Image.fromarray(GREY_12), "TIFF"),
        encode(Image.fromarray(GREY_12), "TIFF", tiffinfo={281: 3071}),  # the brightest pixel's, not the camera's
        encode(Image.fromarray(GREY_12.astype(np.int32)), "TIFF"),
        deep_png(np.stack([GREY_12] * 3, -1), colour=2),
        deep_png(np.stack([GREY_12] * 2, -1), colour=4),
        deep_png(np.stack([GREY_12] * 3, -1), colour=2, before=chunk(b"sBIT", b"\x0c\x0c\x0c")),
    ],
    ids=["png", "8 in 16", "tiff", "tiff with a maximum", "tiff of 32", "colour", "alpha", "colour that says so"],
)
@pytest.mark.parametrize("in_chans", [1, 3])
def test_a_picture_that_would_be_black_by_an_unknown_depth_is_refused(content: bytes, in_chans: int) -> None:
    with pytest.raises(ValueError, match=r"its 16 bits hold no value above \d+, so that it would be black, .*: save it with 8"):
        to_mode(decode(content), in_chans)


@pytest.mark.parametrize(("value", "grey"), [(0, 0), (4096, 16)])
def test_black_and_dark_pictures_of_sixteen_bits_are_read(value: int, grey: int) -> None:
    assert np.asarray(to_mode(decode(deep_png(np.full((1, 2), value, np.uint16))), 1)).tolist() == [[grey, grey]]


@pytest.mark.parametrize("values", [[-1, 40_000], [0, 65_536]])
def test_numbers_without_a_range_are_refused(values: list[int]) -> None:
    image = decode(encode(Image.fromarray(np.array([values], np.int32)), "TIFF"))
    with pytest.raises(ValueError, match=f"its values reach from {values[0]} to {values[1]}, which is no fixed range"):
        to_mode(image, 1)


def test_what_is_transparent_in_sixteen_bits_is_white() -> None:
    image = decode(deep_png(np.array([[30_000, 60_000]], np.uint16), before=chunk(b"tRNS", struct.pack(">H", 30_000))))
    assert np.asarray(to_mode(image, 1)).tolist() == [[255, 233]]


def test_a_large_picture_is_converted_in_strips_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    image = NOISE.convert("RGBA")
    image.putalpha(NOISE.convert("L"))
    whole = to_mode(image, 3)
    monkeypatch.setattr("flatten_transformer.data.preprocessing._STRIP", 25)  # 2 rows
    assert to_mode(image, 3).tobytes() == whole.tobytes()
