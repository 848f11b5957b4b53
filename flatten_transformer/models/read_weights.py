"""Checkpoint files: read without executing anything in them, written atomically."""

from __future__ import annotations

import io
import pickle
import pickletools
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from flatten_transformer.models.fit_weights import StateDict, grids_from_header, grids_to_header, unwrap
from flatten_transformer.utils.atomic_file import write_atomically
from flatten_transformer.utils.digest import check_whole
from flatten_transformer.utils.printable import printable

_EXPECTED = "a checkpoint must be a safetensors file or one that torch.save wrote"
_LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")  # the pickled magic number of torch.save until 1.5
_MAX_HEADER = 16 * 2**20  # bytes, of a safetensors file; 1,000 tensors and as many classes take 0.2 MiB
_MAX_STEPS = 1_000_000  # of a pickle, each of which takes up to 230 bytes; a tensor has about 20
_SPARE_BYTES = 256 * 2**20  # by which tensors may exceed their file: some share storage

# timm reads checkpoint_path= with PyTorch's restricted unpickler, which refuses the configuration object in the
# authors' files. As a plain dict, which executes nothing, it may pass. The one global setting this package makes.
torch.serialization.add_safe_globals([(OrderedDict, "yacs.config.CfgNode")])


class Inert:
    """Stand-in for every object of a file but tensors: takes anything, does nothing."""

    def __new__(cls, *_: object, **__: object) -> Inert:
        """Ignore the arguments."""
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None: ...

    def __call__(self, *_: object, **__: object) -> Inert:
        """Return itself, for files that call the objects they name."""
        return self

    def __setitem__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...

    def append(self, _: object) -> None:
        """Ignore the item."""

    extend = add = update = append


_TENSOR_PARTS = {
    ("collections", "OrderedDict"),
    ("torch", "Size"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"),
}


class _TensorUnpickler(pickle.Unpickler):
    """Builds tensors and plain containers; everything else a file names becomes :class:`Inert`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._items = _MAX_STEPS

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(dtype := vars(torch).get(name), torch.dtype):
            return dtype
        if (module, name) in _TENSOR_PARTS:  # wrapped: a pickle may set attributes of its globals
            return partial(self._call, super().find_class(module, name))
        return Inert

    def _call(self, part: Callable[..., Any], *args: Any) -> Any:
        """Build a part; a pickle can ask for a million copies of a million items in few bytes."""
        self._items -= sum(len(arg) for arg in args if isinstance(arg, (list, tuple, dict, set)))
        if self._items < 0:
            raise ValueError("it copies its lists too often")
        return part(*args)


_PICKLE = SimpleNamespace(  # the interface that torch.load expects of a pickle module
    __name__=__name__,
    Unpickler=_TensorUnpickler,
    load=lambda file, **options: _TensorUnpickler(file, **options).load(),
)


def read_tensors(path: Path) -> StateDict:
    """Return the tensors of a checkpoint by name, and nothing else of it.

    Training code often pickles its configuration into the file. No code and no class that a file names is run or
    imported here, so that even a malicious file is harmless.

    Args:
        path: A safetensors file, or one of ``torch.save``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a checkpoint, or holds no tensors.

    Example:
        >>> path = getfixture("tmp_path") / "old.pth"
        >>> torch.save({"model": {"head.bias": torch.zeros(2)}, "config": object()}, path)
        >>> read_tensors(path)
        {'head.bias': tensor([0., 0.])}
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}: check the path")
    _check_entries(path)
    check_whole(path)
    tensors = unwrap(_load(path))
    if not tensors:
        raise ValueError(
            f"{path} holds no tensors by name: it must be a state dict, or a dict with one under 'model' or 'state_dict'"
        )
    size = sum(tensor.nbytes for tensor in tensors.values())
    if size > path.stat().st_size + _SPARE_BYTES:
        raise ValueError(f"{path} would take {size / 1e9:.3g} GB, more than it holds: it is no checkpoint of a training")
    return tensors


def _check_entries(path: Path) -> None:
    """Raise ValueError for a zip file that torch.save did not write, before anything in it is read."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception:  # no zip file, or a damaged one, for which zipfile raises almost anything; the readers report it better
        return
    reasons = {
        "it is a TorchScript program, not a checkpoint": any(e.filename.endswith("constants.pkl") for e in entries),
        "it is compressed, as torch.save never does": any(e.compress_type != zipfile.ZIP_STORED for e in entries),
        "its entries overlap": sum(e.file_size for e in entries) > path.stat().st_size,
    }
    if reason := next((reason for reason, applies in reasons.items() if applies), None):
        raise ValueError(f"{path} cannot be read ({reason}): {_EXPECTED}")


def _load(path: Path) -> Mapping[str, Any]:
    try:
        loaded = _READERS[weights_format(path)](path)
    except OSError:
        raise
    except Exception as error:  # a damaged or hostile pickle may raise anything
        raise ValueError(f"{path} cannot be read ({one_line(error)}): {_EXPECTED}") from error
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{path} holds a {type(loaded).__name__}: {_EXPECTED}, with tensors by name")
    return loaded


Format = Literal["safetensors", "zip", "legacy"]


def weights_format(path: Path) -> Format:
    """Return the format of a file of weights, by its first bytes.

    Raises:
        ValueError: If it is no such file, but a server's error page, say.

    Example:
        >>> path = getfixture("tmp_path") / "page.pth"
        >>> path.write_text("<html>quota exceeded</html>")
        27
        >>> weights_format(path)
        Traceback (most recent call last):
        ValueError: it begins with '<html>quota exc'
    """
    with path.open("rb") as file:
        begin = file.read(len(_LEGACY))
    if begin.startswith(b"PK\x03\x04"):
        return "zip"
    if begin == _LEGACY:
        return "legacy"
    if begin[8:9] == b"{":
        return "safetensors"
    raise ValueError(f"it begins with {begin.decode('latin-1')!r}" if begin else "it is empty")


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a safetensors file, mapped from the file, and its metadata.

    Raises:
        ValueError: If it is not such a file, or a damaged one; the message does not name it.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > _MAX_HEADER:
        raise ValueError(f"its header would have {length} bytes")
    try:
        with safe_open(path, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except (SafetensorError, RuntimeError, AttributeError, KeyError, TypeError) as error:  # the last ones: unknown dtypes
        raise ValueError(one_line(error)) from error


def _read_zip(path: Path) -> Any:
    reader = torch._C.PyTorchFileReader(str(path))  # as used by torch.load
    _check_pickle(io.BytesIO(reader.get_record("data.pkl")))
    return torch.load(str(path), map_location="cpu", pickle_module=_PICKLE, weights_only=False, mmap=True)


def _read_legacy(path: Path) -> Any:
    if tarfile.is_tarfile(path):  # torch.load would unpack it
        raise ValueError("it is a tar file")
    with path.open("rb") as file:
        for _ in range(5):  # number, version, system, content, names of the storages
            _check_pickle(file)
    return torch.load(path, map_location="cpu", pickle_module=_PICKLE, weights_only=False)


def _check_pickle(file: IO[bytes]) -> None:
    """Read one pickle without building anything; raise ValueError if it would take too much memory."""
    for count, (step, argument, _) in enumerate(pickletools.genops(file)):
        if count > _MAX_STEPS:
            raise ValueError(f"its pickle has more than {_MAX_STEPS} steps")
        if step.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= int(argument or 0) <= _MAX_STEPS:
            raise ValueError(f"its pickle numbers something by {argument}")


_READERS: Mapping[Format, Callable[[Path], Any]] = {
    "safetensors": lambda path: grids_from_header(*read_safetensors(path)),
    "zip": _read_zip,
    "legacy": _read_legacy,
}


def one_line(error: Exception) -> str:
    """Return the message of an error about a file, in one line without control characters; with its class if that helps.

    Example:
        >>> one_line(RuntimeError("no  tensor")), one_line(ValueError("no tensor"))
        ('RuntimeError: no tensor', 'no tensor')
    """
    return in_one_line(str(error) if isinstance(error, (ValueError, SafetensorError)) else f"{type(error).__name__}: {error}")


def in_one_line(text: str) -> str:
    """Return untrusted text for a message: printable, in one line, cut to a readable length.

    Example:
        >>> in_one_line(" two  words ")
        'two words'
    """
    text = printable(" ".join(text[:1000].split()))
    return text if len(text) <= 300 else f"{text[:300]} …"


def convert_checkpoint(source: Path, target: Path, /) -> None:
    """Turn a checkpoint with pickled content into a safetensors file of its tensors alone.

    Args:
        source: A file of ``torch.save``; nothing in it is executed.
        target: The safetensors file to write.

    Raises:
        FileExistsError: If ``target`` exists.
        ValueError: If ``target`` is not named .safetensors, or ``source`` is not a checkpoint.
    """
    if target.suffix != ".safetensors":
        raise ValueError(f"the target must be named .safetensors, got {target}")
    if target.exists():
        raise FileExistsError(f"{target} exists already: choose another name, or remove it first")
    state_dict = read_tensors(source)
    tensors = {name: value.clone().contiguous() for name, value in state_dict.items()}
    try:
        if "__metadata__" in tensors:
            raise ValueError("the name __metadata__")
        content = save(tensors, {"format": "pt", **grids_to_header(state_dict)})
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{source} holds what a safetensors file cannot ({one_line(error)}): leave it as it is") from error
    write_atomically(target, content)
