import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flatten_transformer import atomic_file
from flatten_transformer.atomic_file import write_atomically

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
