import io
import os
import pickle
import re
import resource
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flatten_transformer.models.read_weights import convert_checkpoint, read_tensors, weights_format

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3), "c": torch.ones(2, dtype=torch.float16)}


class Malicious:
    """What a pickle can do to whoever unpickles it."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.trace}",)


class Configuration(dict[str, object]):
    """A pickled object of a class of its own, with state, as training code leaves it."""

    def __init__(self) -> None:
        super().__init__(lr=5e-4)
        self.frozen = {True}


def assert_same(read: dict[str, torch.Tensor]) -> None:
    assert read.keys() == TENSORS.keys()
    assert all(torch.equal(read[name], value) and read[name].dtype == value.dtype for name, value in TENSORS.items())


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict", "model_ema"])
@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_are_found_whatever_they_are_wrapped_in(tmp_path: Path, wrapper: str | None, zipped: bool) -> None:
    content = {wrapper: TENSORS, "epoch": 3} if wrapper else TENSORS
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    assert_same(read_tensors(tmp_path / "x.pth"))


def test_a_configuration_object_beside_the_tensors_does_not_matter(tmp_path: Path) -> None:
    torch.save({"model": TENSORS, "config": Configuration(), "nested": [Configuration()]}, tmp_path / "x.pth")
    assert_same(read_tensors(tmp_path / "x.pth"))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_read_and_not_executed(tmp_path: Path, zipped: bool) -> None:
    trace = tmp_path / "executed"
    torch.save({"model": TENSORS, "config": Malicious(trace)}, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    assert_same(read_tensors(tmp_path / "x.pth"))
    assert not trace.exists()
    torch.load(tmp_path / "x.pth", weights_only=False)  # the file does bite whoever trusts it
    assert trace.exists()


def test_converting_keeps_the_tensors_alone(tmp_path: Path) -> None:
    torch.save({"model": TENSORS, "config": Malicious(tmp_path / "executed")}, tmp_path / "x.pth")
    convert_checkpoint(tmp_path / "x.pth", tmp_path / "x.safetensors")
    assert_same(load_file(tmp_path / "x.safetensors"))
    assert_same(read_tensors(tmp_path / "x.safetensors"))


def test_converting_overwrites_nothing(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "x.pth")
    save_file(TENSORS, tmp_path / "x.safetensors")
    with pytest.raises(FileExistsError, match=r"x\.safetensors exists already"):
        convert_checkpoint(tmp_path / "x.pth", tmp_path / "x.safetensors")


def test_what_is_no_checkpoint_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "empty.pth").touch()
    (tmp_path / "text.safetensors").write_text("hello")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "nothing.pth")
    with zipfile.ZipFile(tmp_path / "program.pth", "w") as archive:
        archive.writestr("program/constants.pkl", b"")
    for name, reason in {
        "text.pth": "cannot be read",
        "empty.pth": "cannot be read",
        "text.safetensors": "cannot be read",
        "list.pth": "holds a list",
        "nothing.pth": "no tensors by name",
        "program.pth": "TorchScript program",
    }.items():
        with pytest.raises(ValueError, match=reason):
            read_tensors(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="check the path"):
        read_tensors(tmp_path / "none.pth")
    with pytest.raises(ValueError, match=r"named \.safetensors"):
        convert_checkpoint(tmp_path / "list.pth", tmp_path / "x.pth")


def refusal(path: Path) -> str:
    with pytest.raises(ValueError, match=path.name) as error:
        read_tensors(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000
    return str(error.value)


def zipped(path: Path, pickled: bytes, **entries: bytes) -> Path:
    """Write what torch.save would, with any pickle in it."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {"data.pkl": pickled, "version": b"3\n", "byteorder": b"little", **entries}.items():
            archive.writestr(f"archive/{name}", content)
    return path


@pytest.mark.parametrize("legacy", [False, True])
def test_a_tensor_larger_than_its_file_is_refused(tmp_path: Path, legacy: bool) -> None:
    content = {"a": torch.zeros(1).expand(10**12)}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    assert "would take 4e+03 GB, more than it holds" in refusal(tmp_path / "x.pth")


def test_many_names_of_one_storage_are_refused_and_two_are_not(tmp_path: Path) -> None:
    tied = torch.zeros(2**20)
    torch.save({"a": tied, "b": tied}, tmp_path / "tied.pth")
    assert len(read_tensors(tmp_path / "tied.pth")) == 2
    torch.save({str(number): tied for number in range(100)}, tmp_path / "many.pth")
    assert "would take 0.419 GB" in refusal(tmp_path / "many.pth")


def test_a_pickle_does_not_change_what_it_is_built_by(tmp_path: Path) -> None:
    before = torch._utils._rebuild_tensor_v2.__defaults__
    build = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}U\x0c__defaults__K\x01K\x02\x86s\x86b."
    assert "invalid partial state" in refusal(zipped(tmp_path / "x.pth", build))
    assert torch._utils._rebuild_tensor_v2.__defaults__ == before


COPIES = b"\x80\x02](" + b"K\x00" * 50_000 + b"e" + b"q\x00" + b"0" + b"(" + b"ctorch\nSize\nh\x00\x85R" * 100 + b"l."


@pytest.mark.parametrize(
    ("pickled", "reason"),
    [
        (pickle.dumps([0] * 10**3)[:-1], "cannot be read"),  # half of one
        (b"\x80\x02Nr\xff\xff\xff\x7f.", "numbers something by 2147483647"),
        (b"\x80\x02(" + b"]" * 1_000_100 + b"l.", "more than 1000000 steps"),
        (COPIES, "copies its lists too often"),
        (b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b".", "holds a tuple"),
        (b"\x80\x04\x8d" + (2**62).to_bytes(8, "little") + b"a.", "cannot be read"),  # a text of 4e18 characters
        (pickle.dumps(None), "holds a NoneType"),
        (pickle.dumps({0: 1, None: 2}), "holds no tensors by name"),
        (pickle.dumps({"model": {"model": {}}}), "holds no tensors by name"),
        (b"\x80\x02ctorch\n_dynamo\n.", "holds a type"),
        (b"", "cannot be read"),
        (b"garbage", "cannot be read"),
        (b"\x80\x02U\x01aQ.", "cannot be read"),  # a persistent id of another kind
        (b"\x80\x02(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuJ\xff\xff\xff\x7ftQ.", "cannot be read|holds a"),
    ],
)
def test_a_hostile_pickle_costs_one_line(pickled: bytes, reason: str, tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert re.search(reason, refusal(zipped(tmp_path / "x.pth", pickled)))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB


def test_names_that_are_no_text_are_passed_over(tmp_path: Path) -> None:
    torch.save({0: torch.zeros(1), "a": torch.ones(1), ("b",): torch.zeros(1)}, tmp_path / "x.pth")
    assert list(read_tensors(tmp_path / "x.pth")) == ["a"]


def test_what_is_compressed_or_overlaps_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**6))
    assert "it is compressed" in refusal(tmp_path / "bomb.pth")
    torch.save({"a": torch.zeros(1000)}, tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth", "a") as archive:
        for number in range(3):  # further names of what is there already
            entry = zipfile.ZipInfo(f"archive/data/{number + 1}")
            known = archive.getinfo("x/data/0")
            entry.header_offset, entry.file_size, entry.compress_size = known.header_offset, known.file_size, known.file_size
            entry.CRC = known.CRC
            archive.filelist.append(entry)
        archive._didModify = True  # type: ignore[attr-defined]
    assert "its entries overlap" in refusal(tmp_path / "x.pth")


def test_a_tar_file_is_not_unpacked(tmp_path: Path) -> None:
    """torch.load would: files of before PyTorch 0.1.10 are some. The name of its first member is what newer files begin with."""
    torch.save(TENSORS, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    begin = (tmp_path / "legacy.pth").read_bytes()[:15]
    assert weights_format(tmp_path / "legacy.pth") == "legacy"
    with tarfile.open(tmp_path / "x.pth", "w", encoding="latin-1", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo(begin.decode("latin-1")), io.BytesIO())
    assert (tmp_path / "x.pth").read_bytes()[:15] == begin
    assert "it is a tar file" in refusal(tmp_path / "x.pth")


@pytest.mark.parametrize(
    "write", [torch.save, lambda x, path: torch.save(x, path, _use_new_zipfile_serialization=False), save_file]
)
def test_half_a_file_is_refused(write: Callable[[object, Path], None], tmp_path: Path) -> None:
    write({"a": torch.rand(1000), "b": torch.rand(1000)}, tmp_path / "x.pth")
    assert read_tensors(tmp_path / "x.pth")["b"].shape == (1000,)  # whatever it is called
    content = (tmp_path / "x.pth").read_bytes()
    for length in (10, 100, len(content) // 2, len(content) - 10):
        (tmp_path / "x.pth").write_bytes(content[:length])
        assert re.search("cannot be read|is damaged", refusal(tmp_path / "x.pth"))


@pytest.mark.parametrize("tensors", [{"a": torch.zeros(1, dtype=torch.complex128)}, {"__metadata__": torch.zeros(1)}], ids=list)
def test_what_safetensors_cannot_hold_is_said(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(tensors, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="holds what a safetensors file cannot"):
        convert_checkpoint(tmp_path / "x.pth", tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()
