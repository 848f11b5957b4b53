"""Recognise train, val and test splits by folder or file name."""

from __future__ import annotations

import re
import unicodedata

from flatten_transformer.data.source import Split

STANDARD_NAMES: dict[Split, tuple[str, ...]] = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
_WORDS: dict[str, Split] = {
    **dict.fromkeys(("train", "trains", "training", "trainings", "trn", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validating", "validate", "dev", "devel", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "tests", "testing", "tst", "holdout"), "test"),
}
_AFFIXES = (
    *("data", "dataset", "datasets", "daten", "set", "sets", "split", "splits", "part", "subset", "folder", "dir"),
    *("image", "images", "img", "imgs", "jpg", "jpeg", "png", "pic", "pics", "picture", "pictures", "photo", "photos"),
    *("sample", "samples", "example", "examples", "my", "the", "final", "full"),
)
_COMPOUND = re.compile(rf"(?:{'|'.join(_AFFIXES)})?({'|'.join(_WORDS)})(?:{'|'.join(_AFFIXES)})?")
_FOLD = re.compile(r"(fold|split|part|batch|chunk|subset)s?[ _-]?(\d+)")


def split_of(name: str) -> Split | None:
    """Return the split that a folder name stands for; None if it says anything else.

    Example:
        >>> [split_of(name) for name in ("train", "Training_Set", "val2017", "testImages", "TEST", "bullet train")]
        ['train', 'train', 'val', 'test', 'test', None]
    """
    splits = [_split(word) for word in _words(name) if word not in _AFFIXES]
    if set(splits) == {"train", "val"}:  # train_val, for the final training
        return "train"
    return splits[0] if splits and len(set(splits)) == 1 else None


def mentioned_split(name: str) -> Split | None:
    """Return the first split mentioned in a name, whatever else it says.

    Example:
        >>> mentioned_split("pets-testing-0001"), mentioned_split("latest")
        ('test', None)
    """
    return next((split for split in map(_split, _words(name)) if split), None)


def fold_of(name: str) -> str | None:
    """Return the fold or part that a name stands for, as in cross-validation; None for any other name.

    Example:
        >>> fold_of("fold_2"), fold_of("folder")
        ('fold 2', None)
    """
    match = _FOLD.fullmatch(name.lower())
    return f"{match[1]} {match[2]}" if match else None


def _words(name: str) -> list[str]:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFKC", name))
    return re.findall("[a-z]+", spaced.lower())


def _split(word: str) -> Split | None:
    match = _COMPOUND.fullmatch(word)
    return _WORDS[match[1]] if match else None
