"""Parse the XML of Pascal VOC's annotations: no document type, so no entities, and no deep nesting."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree
from xml.parsers import expat

from flatten_transformer.data.coco_json import brief
from flatten_transformer.data.image_files import open_regular

_MAX_BYTES = 2**24
_MAX_DEPTH = 32
_MAX_COORDINATE_PX = 1e9
_SIDES = ("xmin", "ymin", "xmax", "ymax")


class VocObject(NamedTuple):
    """One object of an image."""

    name: str
    sides: tuple[float, ...]  # xmin, ymin, xmax, ymax as in the file: pixels count from 1
    difficult: bool
    line: int


class VocImage(NamedTuple):
    """An annotation file; width and height are 0 where it does not say them."""

    width: int
    height: int
    objects: list[VocObject]


def read_voc_xml(path: Path) -> VocImage:
    """Return what an annotation file says.

    Raises:
        OSError: If it cannot be opened.
        ValueError: If it is malformed; the message names file and line.
    """
    root, lines = _parse(path)
    if root.tag != "annotation":
        raise ValueError(f"{path} begins with <{brief(root.tag)[1:-1]}>: an annotation file of Pascal VOC with <annotation>")
    width, height = (_side(path, root, name) for name in ("width", "height"))
    return VocImage(width, height, [_object(f"{path}, line {lines[each]}", each, lines[each]) for each in root.findall("object")])


def _parse(path: Path) -> tuple[ElementTree.Element, dict[ElementTree.Element, int]]:
    """Return the document and the line of each element."""
    with open_regular(path) as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise ValueError(f"{path} has more than {_MAX_BYTES:,} bytes, which is no annotation of one image")
    parser, builder = expat.ParserCreate(), ElementTree.TreeBuilder()
    lines: dict[ElementTree.Element, int] = {}
    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _MAX_DEPTH:
            raise ValueError(f"its elements are nested more than {_MAX_DEPTH} deep at line {parser.CurrentLineNumber}")
        lines[builder.start(tag, {})] = parser.CurrentLineNumber

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(*_: object) -> None:
        raise ValueError(f"it declares a document type at line {parser.CurrentLineNumber}, which annotations have no use for")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = builder.data, refuse
    try:
        parser.Parse(content, True)
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise ValueError(f"{path} cannot be read as XML ({error}): write it anew, or leave the image out") from None
    return builder.close(), lines


def _side(path: Path, root: ElementTree.Element, name: str) -> int:
    text = (root.findtext(f"size/{name}") or "0").strip()
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise ValueError(f"{path} says the {name} {brief(text)}: write the image's in pixels, or leave <size> out")
    return int(text)


def _object(where: str, element: ElementTree.Element, line: int) -> VocObject:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise ValueError(f"{where}: an object has no name: add <name>, or remove it")
    sides = tuple(_numbers(where, element))
    return VocObject(name, sides, (element.findtext("difficult") or "0").strip() == "1", line)


def _numbers(where: str, element: ElementTree.Element) -> Iterator[float]:
    for side in _SIDES:
        text = (element.findtext(f"bndbox/{side}") or "").strip()
        try:
            number = float(text)
        except ValueError:
            number = float("nan")
        if not abs(number) < _MAX_COORDINATE_PX:
            raise ValueError(
                f"{where}: an object has no {side} in <bndbox>, got {brief(text)}: write {', '.join(_SIDES)} in pixels"
            )
        yield number
