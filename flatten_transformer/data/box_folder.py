"""Recognise the format of a folder of images with boxes: COCO, YOLO or Pascal VOC."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from flatten_transformer.data.annotated import BoxDataSet
from flatten_transformer.data.coco_folder import find_coco, open_coco
from flatten_transformer.data.voc import find_voc, open_voc
from flatten_transformer.data.yolo import find_yolo, open_yolo

BoxFormat = Literal["coco", "yolo", "voc"]
_LAYOUTS = (
    "COCO (images/ and annotations.json, or a JSON file for each of train and val), "
    "YOLO (images/, labels/ with a .txt file for each image, and data.yaml or classes.txt), "
    "Pascal VOC (JPEGImages/ and Annotations/ with an .xml file for each image)"
)


def formats_of(root: Path) -> dict[BoxFormat, Path]:
    """Return the formats that a folder may be in, each with a file that speaks for it.

    Example:
        >>> from flatten_transformer.data.scenes import SceneSettings, write_scenes
        >>> root = getfixture("tmp_path") / "scenes"
        >>> write_scenes(root, SceneSettings(train=1, val=1, test=1))
        >>> list(formats_of(root))
        ['coco']
    """
    coco = next(iter(find_coco(root).values()), [None])[0]
    found: dict[BoxFormat, Path | None] = {"coco": coco, "yolo": find_yolo(root), "voc": find_voc(root)}
    return {name: path for name, path in found.items() if path is not None}


def open_box_folder(
    root: Path, format_: BoxFormat | None = None, *, masks: bool, skip: bool = False, links: Sequence[Path] | None = ()
) -> BoxDataSet:
    """Open a folder of images with boxes, in the format given, or in the one that it is in.

    Args:
        root: Data folder, or for YOLO its YAML file.
        format_: ``"coco"``, ``"yolo"`` or ``"voc"``; None to recognise it.
        masks: Read masks, which every object must have.
        skip: Leave out images that cannot be read.
        links: Further folders that links may lead to; None for any.

    Raises:
        FileNotFoundError: If the folder or a part of it is missing.
        ValueError: If the folder is in none of the formats or in several, or a file is malformed.
    """
    if root.suffix in (".yaml", ".yml") and root.is_file():
        return open_yolo(root.parent, masks=masks, skip=skip, links=links, file=root)
    if not root.exists():
        raise FileNotFoundError(f"no folder {root}: check data.root")
    if not root.is_dir():
        raise ValueError(f"{root} is a file: data.root must be a folder in one of the formats {_LAYOUTS}")
    format_ = _recognised(root) if format_ is None else format_
    if format_ == "coco":
        return BoxDataSet(open_coco(root, masks=masks), [])
    if format_ == "yolo":
        return open_yolo(root, masks=masks, skip=skip, links=links)
    return open_voc(root, masks=masks, skip=skip, links=links)


def _recognised(root: Path) -> BoxFormat:
    found = formats_of(root)
    if len(found) > 1:
        both = " and ".join(f"{name} ({path.relative_to(root)})" for name, path in found.items())
        options = " or ".join(f"--data.dataset {name}" for name in found)
        raise ValueError(f"{root} may be in the formats {both}: say which, {options}")
    if not found:
        raise ValueError(f"{root} has boxes in no format that is known: {_LAYOUTS}{_hint(root)}")
    return next(iter(found))


def _hint(root: Path) -> str:
    """Return what to do where the data lie one folder deeper."""
    deeper = [path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".") and formats_of(path)]
    return f"; {deeper[0]} is in one of them: set data.root to that" if len(deeper) == 1 else ""
