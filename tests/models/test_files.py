import os
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flatten_transformer.models.files import convert_checkpoint, read_tensors

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
