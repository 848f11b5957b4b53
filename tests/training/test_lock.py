"""One folder belongs to one training at a time."""

import errno
import fcntl
import os
import socket
import subprocess
from pathlib import Path
from unittest.mock import Mock

import pytest

from flatten_transformer.training.lock import check_idle, locked, remove_drafts
from flatten_transformer.utils.atomic_file import write_atomically

BUSY = "is being written to by another training"


def ended_process() -> int:
    child = subprocess.Popen(["true"])
    child.wait()
    return child.pid


def leave_a_draft(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write as a process does that is killed in the middle."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", Mock(side_effect=KeyboardInterrupt))
        patch.setattr(Path, "unlink", Mock())
        with pytest.raises(KeyboardInterrupt):
            write_atomically(path, b"half")


def test_another_process_is_kept_out_and_named(tmp_path: Path) -> None:
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with locked([tmp_path]):
            os.write(ready[1], b"x")
            os.read(done[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    with pytest.raises(ValueError, match=rf"{BUSY} \(process {child} on {socket.gethostname()}\)"), locked([tmp_path]):
        pass
    with pytest.raises(ValueError, match=BUSY):
        check_idle(tmp_path)
    os.write(done[1], b"x")
    os.waitpid(child, 0)
    check_idle(tmp_path)
    with locked([tmp_path]):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_of_a_killed_training_keeps_nobody_out(tmp_path: Path) -> None:
    (tmp_path / ".training.lock").write_text(f"{os.getpid()} {socket.gethostname()}\n")
    with locked([tmp_path]):
        assert (tmp_path / ".training.lock").read_text() == f"{os.getpid()} {socket.gethostname()}\n"


@pytest.mark.parametrize(
    ("owner", "refused"),
    [
        (f"{os.getppid()} {socket.gethostname()}", True),
        (f"1 {socket.gethostname()}", True),  # may be another user's
        (f"{ended_process()} {socket.gethostname()}", False),
        ("17 another-machine", True),
        ("", False),
        ("not a process", False),
    ],
    ids=["parent", "init", "ended", "elsewhere", "nobody", "nonsense"],
)
def test_where_the_file_system_knows_no_locks_the_owner_counts(
    owner: str, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "lockf", Mock(side_effect=OSError(errno.ENOLCK, "No locks available")))
    (tmp_path / ".training.lock").write_text(owner)
    if refused:
        with pytest.raises(ValueError, match=rf"{BUSY}.* delete {tmp_path}/.training.lock"), locked([tmp_path]):
            pass
    else:
        with locked([tmp_path]):
            pass


def test_half_written_files_are_removed_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {".notes.txt.0123abcd.tmp", "notes.tmp", ".last.ckpt.tmp", "last.ckpt"}
    for name in kept:
        (tmp_path / name).touch()
    for name in ("last.ckpt", "best.safetensors", "curves.png"):
        leave_a_draft(tmp_path / name, monkeypatch)
    assert len(list(tmp_path.iterdir())) == len(kept) + 3
    with locked([tmp_path]):
        pass
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_half_written_files_of_a_living_training_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with locked([tmp_path]):
        leave_a_draft(tmp_path / "last.ckpt", monkeypatch)
        remove_drafts([tmp_path])
        assert len(list(tmp_path.iterdir())) == 2
    remove_drafts([tmp_path, tmp_path / "missing"])
    assert list(tmp_path.iterdir()) == []
