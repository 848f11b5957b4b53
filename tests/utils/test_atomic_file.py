import errno
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from flatten_transformer.utils import atomic_file
from flatten_transformer.utils.atomic_file import GrowingFile, check_outputs, write_atomically

SIZE = 20_000_000
WRITER = f"""
import runpy, sys
from pathlib import Path
write = runpy.run_path(sys.argv[1])["write_atomically"]  # alone: the library takes seconds to import
for number in range(1000):
    write(Path(sys.argv[2]), bytes([number % 256]) * {SIZE})
    print(flush=True)
"""


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(tmp_path / "file", b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_all_of_the_content_is_on_the_disk_before_it_has_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced = tmp_path / "file", []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append((os.fstat(descriptor).st_size, path.exists())))
    write_atomically(path, b"short")  # shorter than the buffer, which must be emptied first
    assert synced == [(5, False)]
    assert path.read_bytes() == b"short"


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, others = tmp_path / "file", [b"other"]

    def while_another_writes(descriptor: int) -> None:
        if others:
            write_atomically(path, others.pop())
            assert path.read_bytes() == b"other"

    monkeypatch.setattr(os, "fsync", while_another_writes)
    write_atomically(path, b"mine")
    assert path.read_bytes() == b"mine"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.fixture
def without_privileges() -> Iterator[Path]:
    """A folder, and no right to do what modes forbid, which tests have that run as root."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    user = os.geteuid()
    if user == 0:
        os.chown(folder, 65534, -1)
        os.seteuid(65534)
    try:
        yield folder
    finally:
        os.seteuid(user)
        folder.chmod(0o777)
        shutil.rmtree(folder)


def grow(path: Path, content: bytes) -> None:
    with GrowingFile(path) as file:
        for byte in content:
            file.write(bytes([byte]))


WRITERS = pytest.mark.parametrize("write", [write_atomically, grow])


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@WRITERS
def test_a_fifo_stays_a_fifo(write: Any, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        write(tmp_path / "pipe", b"content")
        assert os.read(reader, 100) == b"content"
    finally:
        os.close(reader)
    assert (tmp_path / "pipe").is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


@WRITERS
def test_dev_stdout_is_written_into_whatever_it_is(write: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    print("before", flush=True)  # noqa: T201
    write(Path("/dev/stdout"), b"content")
    (tmp_path / "link").symlink_to("/dev/stdout")
    write(tmp_path / "link", b"again")
    assert capfd.readouterr().out == "before\ncontentagain"
    assert Path("/dev/stdout").is_symlink()
    write(Path("/dev/null"), b"content")
    assert Path("/dev/null").is_char_device()


@WRITERS
@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_its_target_is_written(write: Any, there: bool, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    target, link, second = tmp_path / "folder" / "target", tmp_path / "link", tmp_path / "second"
    if there:
        target.write_bytes(b"old")
    link.symlink_to("folder/target")
    second.symlink_to(link)
    write(second, b"new")
    assert (link.is_symlink(), second.is_symlink(), target.is_symlink()) == (True, True, False)
    assert target.read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder", "link", "second", "target"]


@WRITERS
@pytest.mark.parametrize("before", [0o600, 0o640, 0o666, 0o755])
def test_a_file_keeps_its_mode(write: Any, before: int, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "file").chmod(before)
    write(tmp_path / "file", b"new")
    assert mode(tmp_path / "file") == before


@WRITERS
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o000])
def test_new_files_and_folders_are_as_the_umask_has_them(write: Any, umask: int, tmp_path: Path) -> None:
    tmp_path.chmod(0o711)
    before = os.umask(umask)
    try:
        write(tmp_path / "folder" / "file", b"new")
    finally:
        os.umask(before)
    assert mode(tmp_path / "folder" / "file") == 0o666 & ~umask
    assert mode(tmp_path / "folder") == 0o777 & ~umask
    assert mode(tmp_path) == 0o711


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
@WRITERS
def test_a_file_keeps_its_owner(write: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.chown(tmp_path / "file", 1234, 5678)
    write(tmp_path / "file", b"new")
    assert ((tmp_path / "file").stat().st_uid, (tmp_path / "file").stat().st_gid) == (1234, 5678)


@WRITERS
def test_a_file_that_may_not_be_written_is_not_replaced(write: Any, without_privileges: Path) -> None:
    path = without_privileges / "file"
    path.write_bytes(b"old")
    path.chmod(0o444)
    for refuse in (lambda: write(path, b"new"), lambda: check_outputs([path], [])):
        with pytest.raises(PermissionError, match="file"):
            refuse()
    assert path.read_bytes() == b"old"


@WRITERS
def test_a_file_in_a_folder_that_may_not_be_changed_is_written_in_place(write: Any, without_privileges: Path) -> None:
    path = without_privileges / "file"
    path.write_bytes(b"old, and longer")
    without_privileges.chmod(0o555)
    write(path, b"new")
    assert path.read_bytes() == b"new"
    with pytest.raises(PermissionError, match="other"):
        write(without_privileges / "other", b"new")


@WRITERS
@pytest.mark.parametrize("name", ["n" * 255, "ü" * 127, os.fsdecode(b"caf\xe9")])
def test_any_name_that_the_file_system_takes_will_do(write: Any, name: str, tmp_path: Path) -> None:
    for content in (b"new", b"newer"):
        write(tmp_path / name, content)
        assert (tmp_path / name).read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == [name]


@WRITERS
def test_a_folder_is_no_file(write: Any, tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        write(tmp_path, b"content")
    with pytest.raises(ValueError, match="is a folder"):
        check_outputs([tmp_path], [])


def test_a_full_disk_is_said_with_the_name_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for write in (write_atomically, grow):
        with pytest.raises(OSError, match="/dev/full") as caught:
            write(Path("/dev/full"), b"content")
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "/dev/full")

    def full(descriptor: int, content: object) -> int:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match=r"Disk quota exceeded: .*checkpoint") as caught:
        write_atomically(tmp_path / "checkpoint", b"content")
    assert caught.value.filename == str(tmp_path / "checkpoint")
    assert not list(tmp_path.iterdir())


def test_a_piece_is_in_the_file_as_soon_as_it_is_written(tmp_path: Path) -> None:
    with GrowingFile(tmp_path / "file") as file:
        assert not (tmp_path / "file").exists()
        for wanted in (b"a", b"ab", b"abc"):
            file.write(wanted[-1:])
            assert (tmp_path / "file").read_bytes() == wanted


def test_an_older_file_is_whole_until_the_new_one_is(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with GrowingFile(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
        assert (tmp_path / "file.part").read_bytes() == b"new"
    assert (file.place, path.read_bytes()) == (path, b"new")
    assert list(tmp_path.iterdir()) == [path]


def test_what_was_written_before_an_error_stays_beside_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    for name in ("file.part", "file.2.part"):  # the second does not overwrite the first
        file = GrowingFile(path)
        with suppress(KeyboardInterrupt), file:
            file.write(name.encode())
            raise KeyboardInterrupt
        assert file.place == tmp_path / name
    assert {entry.name: entry.read_text() for entry in tmp_path.iterdir()} == {
        "file": "old",
        "file.part": "file.part",
        "file.2.part": "file.2.part",
    }


def test_of_a_piece_that_does_not_fit_nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write

    def half(descriptor: int, content: bytes) -> int:
        if len(content) < 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, content[:3])

    with GrowingFile(tmp_path / "file") as file:
        file.write(b"abc")
        monkeypatch.setattr(os, "write", half)
        with pytest.raises(OSError, match="No space left"):
            file.write(b"defgh")
    assert (tmp_path / "file").read_bytes() == b"abc"


@pytest.mark.parametrize("way", ["same", "spelt", "link", "hard link", "through a folder"])
def test_an_input_is_known_by_any_name(way: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    read, written = tmp_path / "folder" / "in", tmp_path / "out"
    read.touch()
    if way == "same":
        written = read
    elif way == "spelt":
        written = tmp_path / "folder" / ".." / "folder" / "in"
    elif way == "link":
        written.symlink_to(read)
    elif way == "hard link":
        written.hardlink_to(read)
    else:
        written.symlink_to(tmp_path / "folder", target_is_directory=True)
        written /= "in"
    with pytest.raises(ValueError, match="is read by this command, which would write over it"):
        check_outputs([tmp_path / "other", written], [tmp_path / "missing", read])
    check_outputs([tmp_path / "other"], [read])


def test_a_file_is_no_folder_for_others(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file"):
        check_outputs([tmp_path / "file" / "deeper" / "out"], [])


@pytest.mark.parametrize("wait_s", [0.0, 0.002, 0.005, 0.01])
def test_a_kill_in_the_middle_of_a_write_leaves_a_whole_file(wait_s: float, tmp_path: Path) -> None:
    path = tmp_path / "file"
    for _ in range(20):  # until a kill comes in the middle of a write; most do
        command = [sys.executable, "-c", WRITER, atomic_file.__file__, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()  # there is a whole file
            deadline = time.monotonic() + 1
            while not list(tmp_path.glob(".file.*")) and time.monotonic() < deadline:
                pass  # until the next write has begun
            time.sleep(wait_s)
            writer.kill()
        content = path.read_bytes()
        torn = content.count(content[:1]) != SIZE or not content
        assert not torn
        if list(tmp_path.glob(".file.*")):
            return
    pytest.fail("no kill came in the middle of a write: the test shows nothing")
