"""Damage of a file of torch.save is noticed, wherever it is."""

import io
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flatten_transformer.utils.digest import check_whole, damage, seal

Damage = Callable[[bytes], bytes]


@pytest.fixture
def content() -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": {"weight": torch.arange(300.0)}, "epoch": 3}, file)
    seal(file)
    return file.getvalue()


def test_a_sealed_file_is_read_as_any_other(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").write_bytes(content)
    shutil.copy(tmp_path / "last.ckpt", tmp_path / "copy")
    for path in tmp_path.iterdir():
        check_whole(path)
        for mmap in (True, False):
            assert torch.load(path, weights_only=True, mmap=mmap)["state_dict"]["weight"][7] == 7


def test_every_flipped_bit_is_noticed(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    bits = random.Random(0)
    ends = [8 * byte + bits.randrange(8) for byte in (*range(64), *range(len(content) - 130, len(content)))]
    unnoticed = []
    for bit in [*ends, *bits.sample(range(8 * len(content)), 100)]:  # headers, the record with the digest, and anywhere
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        if damage(path) is None:
            unnoticed.append(bit)
    assert unnoticed == []


@pytest.mark.parametrize(
    "harm",
    [
        lambda x: x[: len(x) // 2],
        lambda x: x[:1000],
        lambda x: x[:-1],
        lambda x: x[:-91],
        lambda x: x[:-2000] + bytes(2000),
        lambda x: x + b"\0",
        lambda x: x[:500] + x[501:],
        lambda x: x[:4],
    ],
    ids=["half", "1000 bytes", "one byte less", "no digest", "a tail of zeros", "one byte more", "one byte lost", "4 bytes"],
)
def test_what_is_cut_or_overwritten_is_noticed(harm: Damage, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").write_bytes(harm(content))
    with pytest.raises(ValueError, match=r"last\.ckpt is damaged \(.*\): copy it anew, or take another"):
        check_whole(tmp_path / "last.ckpt")


def test_a_file_without_digest_is_compared_with_the_checksums_of_its_entries(tmp_path: Path) -> None:
    path = tmp_path / "old.ckpt"
    torch.save({"weight": torch.arange(300.0)}, path)
    assert damage(path) is None
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(300.0).numpy().tobytes()) + 100] ^= 1
    path.write_bytes(content)
    assert damage(path) == "its checksums do not fit"


def test_of_other_formats_nothing_is_said(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    check_whole(tmp_path / "model.safetensors")
    check_whole(tmp_path / "missing")


def test_only_a_plain_zip_file_takes_a_digest(content: bytes) -> None:
    for other in (b"", b"text", content):
        with pytest.raises(ValueError, match="only a zip file without a comment"):
            seal(io.BytesIO(other))
