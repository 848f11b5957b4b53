"""The cache of compiled kernels: whole, ours alone, or not used; a small library stands for the kernel."""

import errno
import grp
import os
import stat
import subprocess
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from flatten_transformer.ops.checks import Arguments
from flatten_transformer.ops.cpp import build, cache, compiler
from flatten_transformer.ops.dispatch import VARIABLE, choose_backend
from flatten_transformer.ops.linear_attention import attend as portable

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="owners and modes are POSIX's"),
    pytest.mark.skipif(build.unavailable() is not None, reason=f"no compiled kernel: {build.unavailable()}"),
]
NAMES = [f"focused_{direction}_{dtype}" for direction in ("forward", "backward") for dtype in ("float", "double")]
ALONE = "compiled for this process alone"


def source(answer: int) -> str:
    return "\n".join(f'extern "C" int {name}(void *) {{ return {answer}; }}' for name in NAMES)


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Yield the folder of a new cache, for a kernel that answers 5; nothing that is loaded here outlives its test."""
    tmp_path.chmod(0o700)
    (tmp_path / "kernel.cpp").write_text(source(5))
    (tmp_path / "temporary").mkdir(0o700)
    monkeypatch.setattr(compiler, "SOURCE", tmp_path / "kernel.cpp")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv("CXX", raising=False)
    forget()
    yield tmp_path / "cache" / "flatten_transformer"
    forget()


def forget() -> None:
    build.load.cache_clear()
    build._warn.cache_clear()


def answer() -> int:
    """Load the kernel as a new process does, and return what it answers."""
    forget()
    kernel = build.load()
    assert kernel.unavailable is None
    return kernel.functions["forward", torch.float32](None)


def library(folder: Path) -> Path:
    (only,) = folder.glob("*.so")
    return only


def plant(folder: Path) -> Path:
    """Put another kernel, which answers 7, where the right one is expected, under a name that fits it."""
    (folder / "planted.cpp").write_text(source(7))
    draft = folder / "planted"
    subprocess.run(["c++", "-shared", "-fPIC", "-o", draft, folder / "planted.cpp"], check=True)
    key = library(folder).name.split("-")[1]
    library(folder).unlink()
    return cache.keep(draft, folder, key)


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a file or a folder another user's, or this user another."""
    if os.geteuid() == 0:
        os.chown(path, 65534, 65534, follow_symlinks=False)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 65534)


def test_a_planted_kernel_would_be_noticed_by_these_tests(folder: Path) -> None:
    assert answer() == 5
    plant(folder)
    assert answer() == 7


def test_the_kernel_is_compiled_once_and_kept(folder: Path) -> None:
    assert answer() == 5
    written = library(folder).stat().st_mtime_ns
    assert answer() == 5
    assert [path.stat().st_mtime_ns for path in folder.iterdir()] == [written]


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def link(path: Path) -> None:
    target = path.parent / "elsewhere"
    path.replace(target)
    path.symlink_to(target)


def dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "nowhere")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def writable_by_others(path: Path) -> None:
    path.chmod(0o666)


@pytest.mark.parametrize("harm", [half, one_bit, empty, link, dangling_link, pipe, writable_by_others])
def test_a_file_that_is_not_as_it_was_kept_is_not_loaded_but_compiled_anew(folder: Path, harm: Callable[[Path], None]) -> None:
    assert answer() == 5
    kept = library(folder)
    whole = kept.read_bytes()
    kept.unlink()
    kept.write_bytes(whole)  # a file that no process has mapped
    harm(kept)
    assert answer() == 5
    assert kept.read_bytes() == whole
    assert kept.lstat().st_mode == stat.S_IFREG | 0o644
    assert library(folder) == kept


def test_a_folder_in_place_of_the_library_is_left_alone(folder: Path) -> None:
    assert answer() == 5
    library(folder).unlink()
    key = compiler.fingerprint(compiler.find_compiler())
    draft = compiler.compile_kernel(compiler.find_compiler(), folder.parent)
    (folder / cache.keep(draft, folder, key).name).unlink()
    (folder / f"attention-{key}-{cache._digest(draft)}.so").mkdir()
    with pytest.warns(UserWarning, match=ALONE):
        assert answer() == 5


def test_a_library_that_cannot_be_loaded_is_compiled_anew(folder: Path) -> None:
    assert answer() == 5
    draft = folder / "text"
    draft.write_text("no library")
    cache.keep(draft, folder, library(folder).name.split("-")[1])
    library_or_text = sorted(folder.glob("*.so"))
    assert len(library_or_text) == 2
    assert answer() == 5


def test_another_users_file_is_not_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert answer() == 5
    give_away(plant(folder), monkeypatch)
    if os.geteuid() == 0:
        assert answer() == 5
    else:
        with pytest.warns(UserWarning, match="belongs to another user"):
            assert build.load().unavailable


@pytest.mark.parametrize("level", [0, 1])
def test_another_users_folder_is_not_used(folder: Path, level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to give a folder away")
    assert answer() == 5
    plant(folder)
    give_away([folder, *folder.parents][level], monkeypatch)
    with pytest.warns(UserWarning, match=f"{ALONE}.*belongs to another user"):
        assert answer() == 5


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("mode", [0o777, 0o1777])
def test_what_lies_where_others_can_write_is_not_loaded(folder: Path, level: int, mode: int) -> None:
    assert answer() == 5
    plant(folder)
    [folder, *folder.parents][level].chmod(mode)
    if level == 1 and mode == 0o1777:  # as in /tmp nobody can exchange a folder of ours
        assert answer() == 7
        return
    with pytest.warns(UserWarning, match=f"{ALONE}.*others can write to .*chmod go-w"):
        assert answer() == 5


def test_a_linked_cache_is_judged_where_it_leads(folder: Path, tmp_path: Path) -> None:
    assert answer() == 5
    plant(folder)
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    folder.rename(open_to_all / "moved")
    folder.symlink_to(open_to_all / "moved")
    assert answer() == 7
    open_to_all.chmod(0o777)
    with pytest.warns(UserWarning, match=f"others can write to {open_to_all}"):
        assert answer() == 5


@pytest.mark.parametrize(("members", "private"), [([], True), (["me"], True), (["mallory"], False), (["me", "mallory"], False)])
def test_a_group_may_write_if_nobody_else_is_in_it(
    members: list[str], private: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pwd

    me = pwd.struct_passwd(("me", "x", os.geteuid(), tmp_path.stat().st_gid, "", str(tmp_path), ""))
    monkeypatch.setattr(pwd, "getpwuid", lambda number: me)
    monkeypatch.setattr(grp, "getgrgid", lambda number: grp.struct_group(("me", "x", number, members)))
    tmp_path.chmod(0o770)
    if private:
        assert cache.ours_alone(tmp_path) == tmp_path.resolve()
    else:
        with pytest.raises(PermissionError, match="others can write to"):
            cache.ours_alone(tmp_path)


def test_whatever_the_umask_nobody_else_can_write_to_the_cache(folder: Path) -> None:
    before = os.umask(0)
    try:
        assert answer() == 5
        assert [path.stat().st_mode & 0o777 for path in (library(folder), folder, folder.parent)] == [0o644, 0o700, 0o700]
        assert answer() == 5
    finally:
        os.umask(before)


def test_a_cache_that_is_a_file_or_nowhere_leaves_a_kernel_for_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "kernel.cpp"))
    with pytest.warns(UserWarning, match=f"{ALONE}.*kernel.cpp"):
        assert answer() == 5
    monkeypatch.delenv("XDG_CACHE_HOME")

    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    with pytest.warns(UserWarning, match=f"{ALONE}.*home directory"):
        assert answer() == 5


def test_a_full_disk_leaves_a_kernel_for_one_process_and_no_leftovers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(UserWarning, match=f"{ALONE}.*No space left on device"):
        assert answer() == 5
    assert not list(folder.iterdir())
    assert not os.listdir(tempfile.gettempdir())


def test_a_relative_cache_is_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert answer() == 5
    assert not Path("cache").exists()
    assert library(tmp_path / "home" / ".cache" / "flatten_transformer")


def test_where_others_can_exchange_temporary_files_the_kernel_is_compiled_in_the_cache(folder: Path) -> None:
    Path(tempfile.gettempdir()).chmod(0o777)
    assert answer() == 5
    assert [path.suffix for path in folder.iterdir()] == [".so"]
    library(folder).unlink()
    folder.chmod(0o777)
    forget()
    assert f"others can write to {tempfile.gettempdir()}" in str(build.unavailable())


def test_processes_that_compile_at_once_do_not_disturb_one_another(folder: Path) -> None:
    answers: list[int] = []

    def load() -> None:
        answers.append(build.load.__wrapped__().functions["forward", torch.float32](None))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [5] * 4
    assert list(folder.iterdir()) == [library(folder)]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("false", "failed"),
        ("true", "made no library"),
        ("sh -c 'sleep 600'", "had not ended after 0.3 seconds"),
        ("sh -c 'sleep 600 & exit 0'", "had not ended after 0.3 seconds|made no library"),
        ("sh -c 'kill -9 $$'", "ended by signal 9"),
        ("sh -c yes", "failed|ended by signal"),
        ("/", "denied"),
        ("no-such-compiler", "no-such-compiler"),
        ("'", "CXX.*quotation"),
        ("echo \N{GREEK SMALL LETTER PHI}", "made no library"),
    ],
)
def test_a_compiler_that_is_none_switches_the_kernel_off_with_one_warning(
    command: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", command)
    monkeypatch.setattr(compiler, "SECONDS", 0.3)
    tokens = Arguments(*torch.empty(3, 1, 2, 5, 4))
    with pytest.warns(UserWarning, match=f"the compiled kernel of attention is off: .*({message})") as said:
        chosen = [choose_backend(None, tokens) for _ in range(3)]
    assert chosen == [portable] * 3
    assert len(said) == 1
    assert not os.listdir(tempfile.gettempdir())


def test_who_chose_the_portable_backend_is_not_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "false")
    tokens = Arguments(*torch.empty(3, 1, 2, 5, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choose_backend("portable", tokens)
        choose_backend(None, Arguments(*torch.empty(3, 1, 2, 5, 4, device="meta")))
        monkeypatch.setenv(VARIABLE, "portable")
        choose_backend(None, tokens)
    assert not build.load.cache_info().currsize


def test_a_blank_cxx_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", " ")
    assert answer() == 5


def test_another_processor_compiler_option_or_source_needs_another_library(monkeypatch: pytest.MonkeyPatch) -> None:
    command = compiler.find_compiler()
    keys = {compiler.fingerprint(command), compiler.fingerprint([*command, "-DOTHER"])}
    flags = compiler.FLAGS
    monkeypatch.setattr(compiler, "FLAGS", (*flags, "-ffast-math"))
    keys.add(compiler.fingerprint(command))
    monkeypatch.setattr(compiler, "FLAGS", flags)
    compiler.SOURCE.write_text("φ", "utf-8")
    keys.add(compiler.fingerprint(command))
    assert len(keys) == 4
