"""Find COCO annotation files, and the images they list, in the layouts that exports have."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from flatten_transformer.data.annotated import Annotated, BoxSplit, box_split
from flatten_transformer.data.coco import CocoFile, read_coco
from flatten_transformer.data.coco_json import brief
from flatten_transformer.data.image_files import open_regular
from flatten_transformer.data.pairing import IMAGE_FOLDERS
from flatten_transformer.data.source import Split
from flatten_transformer.data.split_names import mentioned_split, split_of

_ANNOTATIONS = ("annotations", "Annotations", "labels")
_KEYS = (b'"images"', b'"annotations"', b'"categories"')
_LOOKED_AT = 20  # images of a file that decide on their folder


def find_coco(root: Path) -> dict[Split | None, list[Path]]:
    """Return the COCO annotation files in a folder by the split that they name; None for no split.

    They lie in ``root``, in ``annotations/``, in ``images/`` or in the folder of a split. Where some are called ``instances…``,
    as COCO's own, these alone count.

    Example:
        >>> root = getfixture("tmp_path")
        >>> (root / "valid").mkdir()
        >>> _ = (root / "valid" / "_annotations.coco.json").write_text('{"images": [], "annotations": [], "categories": []}')
        >>> [(split, len(files)) for split, files in find_coco(root).items()]
        [('val', 1)]
    """
    inside = [path for path in _folders(root) if path.name in (*_ANNOTATIONS, *IMAGE_FOLDERS) or split_of(path.name)]
    files = [path for folder in (root, *inside) for path in sorted(folder.glob("*.json")) if path.is_file()]
    own = [path for path in files if path.name.startswith("instances")]
    found: dict[Split | None, list[Path]] = {}
    for path in own or [path for path in files if _is_coco(path)]:
        split = mentioned_split(path.stem) or (split_of(path.parent.name) if path.parent != root else None)
        found.setdefault(split, []).append(path)
    return found


def _is_coco(path: Path) -> bool:
    with open_regular(path) as file:
        content = file.read()
    return all(key in content for key in _KEYS)


def open_coco(
    root: Path | None, *, masks: bool, images: Mapping[Split, Path] | None = None, annotations: Mapping[Split, Path] | None = None
) -> dict[Split, BoxSplit]:
    """Return the splits of the annotation files in a folder, or of those given; a single file of no split is for training.

    Args:
        root: Data folder; None if all places are given.
        masks: As for :func:`read_coco`.
        images: Folder of the images of a split, where it is not to be found in ``root``.
        annotations: Annotation file of a split, likewise.

    Raises:
        FileNotFoundError: If there is no annotation file.
        ValueError: If it cannot be told which of several to take.
    """
    folders, files = images or {}, dict(annotations or {})
    if root is None:
        for split in dict.fromkeys(("train", *folders, *files)):
            if split not in folders or split not in files:
                raise ValueError(
                    f"where are the {split} images? Set data.root, or data.{split}_images and data.{split}_annotations"
                )
        return {split: coco_split(split, path, path.parent, folder=folders[split], masks=masks) for split, path in files.items()}
    files = {**({} if "train" in files and "val" in files else _files(root, files)), **files}
    return {split: coco_split(split, path, root, folder=folders.get(split), masks=masks) for split, path in files.items()}


def _files(root: Path, given: Collection[Split]) -> dict[Split, Path]:
    """Return the annotation file of each split in a folder, for those splits that are not given."""
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}: check data.root")
    found = find_coco(root)
    if "train" not in given and "train" not in found and None not in found:
        example = root / "annotations" / "instances_train2017.json"
        raise FileNotFoundError(
            f"no annotation file in {root} to learn from, such as {example}: check data.root, or name the file itself, "
            "data.train_annotations"
        )
    named: dict[Split, list[Path]] = {split: paths for split, paths in found.items() if split is not None and split not in given}
    if "train" not in given and None in found:
        named["train"] = [*named.get("train", ()), *found[None]]
    for split, paths in named.items():
        if len(paths) > 1:
            raise ValueError(f"{paths[0]} and {paths[1]} may both be meant: name one, --data.{split}_annotations")
    return {split: paths[0] for split, paths in named.items()}


def coco_split(split: Split, path: Path, root: Path, *, folder: Path | None = None, masks: bool) -> BoxSplit:
    """Return the split of an annotation file.

    Args:
        split: Its name, which a folder of images may have.
        path: Annotation file.
        root: Data folder, in which its images are looked for.
        folder: Their folder, if it is known.
        masks: As for :func:`read_coco`.
    """
    likely = folder or next(iter(dict.fromkeys(_candidates(split, path, root))), root)
    return box_split(likely, partial(_read, split, path, root, folder, masks))


def _read(split: Split, path: Path, root: Path, folder: Path | None, masks: bool) -> Annotated:
    file = read_coco(path, masks=masks)
    if folder is not None and not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder} for the images of {path}: check data.root, or data.{split}_images")
    return Annotated(file, folder or _folder(split, file, root))


def _folder(split: Split, file: CocoFile, root: Path) -> Path:
    """Return the first folder that holds half of the images listed, or else the one that holds most."""
    names = [entry["file_name"] for entry in file.truth["images"]]
    names = names[:: max(1, len(names) // _LOOKED_AT)]
    candidates = list(dict.fromkeys(_candidates(split, file.path, root)))
    counts = [sum((folder / name).is_file() for name in names) for folder in candidates]
    if not any(counts):
        raise FileNotFoundError(
            f"{file.path} lists {brief(names[0])}, which is in no folder of {root}: check data.root, or name the folder of its "
            f"images, data.{split}_images"
        )
    enough = min(max(counts), len(names) / 2)
    return next(folder for folder, count in zip(candidates, counts, strict=True) if count >= enough)


def _candidates(split: Split, path: Path, root: Path) -> Iterator[Path]:
    """Yield the folders that the images of an annotation file may be in, the most likely first; never that of another split."""
    outer = [folder for folder in _folders(root) if split_of(folder.name) in (split, None)]
    inner = [
        folder
        for parent in outer
        if parent.name in IMAGE_FOLDERS
        for folder in _folders(parent)
        if split_of(folder.name) in (split, None)
    ]
    yield from (folder for folder in (*outer, *inner) if split_of(folder.name) == split)
    if path.parent.name not in _ANNOTATIONS:
        yield from (folder for folder in _folders(path.parent) if folder.name in IMAGE_FOLDERS)
        yield path.parent
    yield from (folder for folder in outer if folder.name in IMAGE_FOLDERS)
    yield from (root, *inner, *outer)


def _folders(parent: Path) -> Sequence[Path]:
    return (
        [path for path in sorted(parent.iterdir()) if path.is_dir() and not path.name.startswith(".")] if parent.is_dir() else []
    )
