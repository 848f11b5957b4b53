"""What people call the splits of a data set: train, val and test, with all that is written before and behind."""

from __future__ import annotations

import re
import unicodedata

from flatten_transformer.data.source import Split

USUAL: dict[Split, tuple[str, ...]] = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
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
_GLUED = re.compile(rf"(?:{'|'.join(_AFFIXES)})?({'|'.join(_WORDS)})(?:{'|'.join(_AFFIXES)})?")
_PIECE = re.compile(r"(fold|split|part|batch|chunk|subset)s?[ _-]?(\d+)")


def split_of(name: str) -> Split | None:
    """Return the split that a folder's name says and nothing besides; None for any other name.

    Example:
        >>> [split_of(name) for name in ("train", "Training_Set", "val2017", "testImages", "TEST", "bullet train")]
        ['train', 'train', 'val', 'test', 'test', None]
    """
    splits = [_split(word) for word in _words(name) if word not in _AFFIXES]
    if set(splits) == {"train", "val"}:  # for the final training: train_val
        return "train"
    return splits[0] if splits and len(set(splits)) == 1 else None


def mentioned_split(name: str) -> Split | None:
    """Return the first split that a name mentions, whatever else it says.

    Example:
        >>> mentioned_split("pets-testing-0001"), mentioned_split("latest")
        ('test', None)
    """
    return next((split for split in map(_split, _words(name)) if split), None)


def piece_of(name: str) -> str | None:
    """Return which piece of a data set a name says, as those of a cross-validation; None for any other name.

    Example:
        >>> piece_of("fold_2"), piece_of("folder")
        ('fold 2', None)
    """
    found = _PIECE.fullmatch(name.lower())
    return f"{found[1]} {found[2]}" if found else None


def _words(name: str) -> list[str]:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFKC", name))
    return re.findall("[a-z]+", spaced.lower())


def _split(word: str) -> Split | None:
    found = _GLUED.fullmatch(word)
    return _WORDS[found[1]] if found else None
