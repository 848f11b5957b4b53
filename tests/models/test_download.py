import hashlib
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch

from flatten_transformer.models.download import fetch_tensors

TENSORS = {"a": torch.arange(1000.0), "b": torch.ones(3)}


@pytest.fixture
def server(tmp_path: Path) -> Path:
    """Return a file that a link leads to."""
    torch.save(TENSORS, tmp_path / "published.pth")
    return tmp_path / "published.pth"


def kept(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def flipped(content: bytes) -> bytes:
    place = content.index(TENSORS["a"].numpy().tobytes()) + 100
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


SPOILED: dict[str, Callable[[bytes], bytes]] = {
    "a page": lambda _: b"<html>quota exceeded</html>",
    "a page in a zip": lambda _: b"PK\x03\x04<html>",
    "nothing": lambda _: b"",
    "half": lambda content: content[: len(content) // 2],
    "all but the end": lambda content: content[:-1],
    "another bit": flipped,
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_what_is_not_the_weights_is_not_kept(spoil: Callable[[bytes], bytes], server: Path, tmp_path: Path) -> None:
    whole, file = server.read_bytes(), tmp_path / "cache" / "x.pth"
    server.write_bytes(spoil(whole))
    with pytest.raises(ValueError, match=r"published\.pth gives is not the weights .*: nothing was kept") as error:
        fetch_tensors(server.as_uri(), file)
    assert "\n" not in str(error.value)
    assert kept(file.parent) == []
    server.write_bytes(whole)
    assert torch.equal(fetch_tensors(server.as_uri(), file)["a"], TENSORS["a"])
    assert kept(file.parent) == ["x.pth"]


@pytest.mark.parametrize("content", [b"<html>quota exceeded</html>", b"", b"PK\x03\x04"], ids=["page", "empty", "half"])
def test_what_was_kept_by_mistake_is_fetched_anew(content: bytes, server: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.pth"
    file.write_bytes(content)
    assert torch.equal(fetch_tensors(server.as_uri(), file)["a"], TENSORS["a"])
    server.unlink()
    assert torch.equal(fetch_tensors(server.as_uri(), file)["a"], TENSORS["a"])  # it is there now


def test_what_is_kept_stays_if_nothing_better_comes(server: Path, tmp_path: Path) -> None:
    file = tmp_path / "cache" / "x.pth"
    file.parent.mkdir()
    file.write_bytes(b"<html>")
    server.unlink()
    with pytest.raises(ConnectionError, match=r"cannot fetch .*published"):
        fetch_tensors(server.as_uri(), file)
    assert kept(file.parent) == ["x.pth"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ConnectionResetError])
def test_an_interrupted_download_leaves_nothing(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(url: str, file: str) -> None:
        Path(file).write_bytes(b"PK")
        raise error

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises((error, ConnectionError)):
        fetch_tensors("https://example.org/x.pth", tmp_path / "cache" / "x.pth")
    assert kept(tmp_path / "cache") == []


def test_a_digest_in_the_link_is_compared(server: Path, tmp_path: Path) -> None:
    digest = hashlib.sha256(server.read_bytes()).hexdigest()
    right, wrong = server.with_name(f"x-{digest[:8]}.pth"), server.with_name("x-0badc0de.pth")
    for file in (right, wrong):
        file.write_bytes(server.read_bytes())
    assert torch.equal(fetch_tensors(right.as_uri(), tmp_path / "cache" / "right.pth")["a"], TENSORS["a"])
    with pytest.raises(ValueError, match=r'invalid hash value .expected "0badc0de"'):
        fetch_tensors(wrong.as_uri(), tmp_path / "cache" / "wrong.pth")
    assert kept(tmp_path / "cache") == ["right.pth"]


def test_weights_of_another_model_are_refused_with_their_place(server: Path, tmp_path: Path) -> None:
    place = re.escape(str(tmp_path / "cache" / "flatten_pvt_v2_b0.pth"))
    with pytest.raises(ValueError, match=rf"not of Flatten.*the weights lie in {place}: delete it"):
        timm.create_model(
            "flatten_pvt_v2_b0",
            pretrained=True,
            pretrained_cfg_overlay={"url": server.as_uri()},
            cache_dir=tmp_path / "cache",
        )


def test_a_zip_file_of_something_else_is_not_kept(server: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(server, "w") as archive:
        archive.writestr("holiday.jpg", b"x")
    with pytest.raises(ValueError, match="is not the weights"):
        fetch_tensors(server.as_uri(), tmp_path / "cache" / "x.pth")
