"""Suggestions for misspelled and shortened names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable

_MOST = 3  # suggestions
_SHORT = 3  # characters; less is inside of too many names by chance


def did_you_mean(given: str, names: Iterable[str], groups: Iterable[str] | None = None) -> str:
    """Return the names that an unknown one may stand for, or every choice if there are few.

    Args:
        given: Unknown name.
        names: Known names.
        groups: Listed instead of many names.

    Example:
        >>> did_you_mean("tset", ["fit", "test"])
        'did you mean test?'
        >>> did_you_mean("x", ["fit", "test"])
        'choose one of fit, test'
        >>> did_you_mean("x", ["fit", "test", "predict"], ["training", "using"])
        'choose one of training, using'
    """
    names = list(names)
    close = close_names(given, names)
    if close:
        return f"did you mean {' or '.join(close)}?"
    listed = list(groups or names)
    return f"choose one of {', '.join(listed)}" if len(listed) <= 20 else f"none of {len(names)} names is like it"


def close_names(given: str, names: Iterable[str]) -> list[str]:
    """Return up to three names that an unknown one may stand for, the likeliest first.

    Names that begin with it come first, then those that hold it as whole words, then those that hold it at all; of each kind
    the shortest. Without any: names with the same last part, then similar names. Case and leading dashes do not count.

    Args:
        given: Unknown name.
        names: Known names.

    Example:
        >>> close_names("vit_tiny", ["gcvit_tiny", "vit_tiny_patch16_384", "vit_tiny_patch16_224", "deit_tiny"])
        ['vit_tiny_patch16_384', 'vit_tiny_patch16_224', 'gcvit_tiny']
        >>> close_names("--trainer.lr", ["--model.optim.lr", "--trainer.max_epochs"])
        ['--model.optim.lr']
    """
    word = _key(given)
    keys = {name: _key(name) for name in names}
    found = [
        name
        for holds in (str.startswith, has_words, _holds)
        for name in sorted((name for name, key in keys.items() if word and holds(key, word)), key=len)
    ]
    return list(dict.fromkeys(found))[:_MOST] or _same_last_part(word, keys) or _similar(word, keys)


def has_words(name: str, words: str) -> bool:
    """Return whether a name holds one or more whole words in a row; anything but letters and digits parts words.

    Example:
        >>> has_words("imagenet1k/flatten_swin_tiny_patch4_224", "swin_tiny"), has_words("gcvit_tiny", "vit_tiny")
        (True, False)
    """
    return re.search(rf"(?<![^\W_]){re.escape(words)}(?![^\W_])", name) is not None


def _key(name: str) -> str:
    return name.lower().lstrip("-")


def _holds(key: str, word: str) -> bool:
    return len(word) >= _SHORT and word in key


def _last_part(key: str) -> str:
    return re.split(r"[./]", key)[-1]


def _same_last_part(word: str, keys: dict[str, str]) -> list[str]:
    last = _last_part(word)
    return [name for name, key in keys.items() if last and _last_part(key) == last][:_MOST]


def _similar(word: str, keys: dict[str, str]) -> list[str]:
    """Return names that resemble a word, or else those whose last part resembles its last part."""
    parts: tuple[Callable[[str], str], ...] = (str, _last_part)
    for part in parts:
        close = difflib.get_close_matches(part(word), {part(key) for key in keys.values()}, n=_MOST)
        if close:
            return [name for key in close for name in keys if part(keys[name]) == key][:_MOST]
    return []
