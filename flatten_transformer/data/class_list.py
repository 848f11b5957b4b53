"""Class-name files: one name per line, or JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path

from flatten_transformer.utils.printable import printable

MAX_CLASSES = 8192  # a confusion matrix of this many classes takes half a gibibyte
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def read_class_names(file: Path, least: int = 2) -> list[str]:
    r"""Return the names in a class list, class 0 first.

    Args:
        file: UTF-8 text, one name per line; trailing empty lines are ignored. With the suffix ``.json`` a list of names, or an
            object of names by number.
        least: Fewest classes: two to tell apart, one to detect.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the list is malformed; the message names the line.

    Example:
        >>> file = getfixture("tmp_path") / "classes.txt"
        >>> _ = file.write_text("sky\nground\n")
        >>> read_class_names(file)
        ['sky', 'ground']
    """
    if not file.is_file():
        raise FileNotFoundError(f"no list of classes {file}: write one with a name a line, that of number 0 first")
    names = _json_names(file) if file.suffix == ".json" else [line.strip() for line in read_text(file).split("\n")]
    while names and not names[-1]:
        names.pop()
    if not least <= len(names) <= MAX_CLASSES:
        few = "it takes two to tell apart" if least == 2 else "there must be one to find"
        cure = few if len(names) < least else f"{MAX_CLASSES} are the most that can be judged"
        raise ValueError(f"{file} names {len(names)} classes, but {cure}: write a name a line")
    seen: dict[str, int] = {}
    for number, name in enumerate(names):
        where = f"{'name' if file.suffix == '.json' else 'line'} {number + 1} of {file}"
        if not name:
            raise ValueError(f"{where} is empty: name the class of number {number}, or remove it")
        if _CONTROL.search(name):
            raise ValueError(f"{where} holds control characters, {printable(name)[:80]}: write a name a line, as plain text")
        if name in seen:
            raise ValueError(f"{where} has the name of number {seen[name]}, {name!r}: each class needs a name of its own")
        seen[name] = number
    return names


def _json_names(file: Path) -> list[str]:
    try:
        content = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read as JSON ({error}): write a list of names") from None
    if isinstance(content, dict):
        numbers = [str(number) for number in range(len(content))]
        content = [content[number] for number in numbers] if content.keys() == set(numbers) else None
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise ValueError(f'{file} holds no names: write ["sky", "ground"], that of number 0 first, or {{"0": "sky", "1": …}}')
    return [name.strip() for name in content]


def read_text(file: Path) -> str:
    """Read a text file, with or without a byte-order mark, with any line endings.

    Raises:
        ValueError: If it is not UTF-8.
    """
    try:
        return file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not in UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8") from None
