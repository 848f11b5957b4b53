from pathlib import Path

import pytest

from flatten_transformer.data.class_list import MAX_CLASSES, read_class_names


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("content", [b"sky\nK\xc3\xa4fer\n", b"sky\r\nK\xc3\xa4fer\r\n\r\n\n", b"sky\rK\xc3\xa4fer \r"])
def test_names_stand_in_lines_whatever_their_ends(start: bytes, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_bytes(start + content)
    assert read_class_names(tmp_path / "classes.txt") == ["sky", "Käfer"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "names 0 classes, but it takes two to tell apart"),
        (b"\n\n", "names 0 classes"),
        (b"sky", "names 1 classes"),
        (b"sky\n\nground\n", r"line 2 of .* is empty: name the class of number 1"),
        (b"\nsky\nground\n", r"line 1 of .* is empty"),
        (b"sky\nground\nsky\n", r"line 3 of .* has the name of number 0, 'sky'"),
        (b"sky\nK\xe4fer\n", r"is not in UTF-8 \(.* at byte 5\): save it as UTF-8"),
        ("sky\nground".encode("utf-16"), "is not in UTF-8"),
        (b"sky\nred\x1b[31m\n", r"line 2 of .* holds control characters, red\\x1b\[31m"),
        (b"sky\nfield\x0bof corn\n", r"line 2 of .* holds control characters"),
        ("sky\ngro\u2028und\n".encode(), r"line 2 of .* holds control characters"),
        (b"a\0\nb\n", r"line 1 of .* holds control characters"),
        (b"\n".join(b"%d" % n for n in range(MAX_CLASSES + 1)), "names 8193 classes, but 8192 are the most"),
    ],
    ids=range(13),
)
def test_what_is_no_list_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"classes\.txt.*({message})|{message}") as error:
        read_class_names(tmp_path / "classes.txt")
    assert "classes.txt" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_list_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no list of classes .*classes\.txt"):
        read_class_names(tmp_path / "classes.txt")
