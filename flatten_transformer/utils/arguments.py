"""Command-line parsers that raise ValueError for a bad argument."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

import yaml  # type: ignore[import-untyped]  # ships no annotations
from jsonargparse import ArgumentParser, Namespace, get_loader, set_loader

from flatten_transformer.utils.import_path import advice
from flatten_transformer.utils.parser_words import plain
from flatten_transformer.utils.suggest import did_you_mean

ANY_TEXT = "flatten"  # parser mode that takes file names outside UTF-8, where YAML's own gives up
set_loader(ANY_TEXT, get_loader("yaml"), exceptions=(yaml.YAMLError, UnicodeEncodeError))
_UNKNOWN = re.compile(r"unrecognized arguments: (?P<option>[^\s=]+)|Group '(?P<group>.+)' does not accept option '(?P<key>.+)'")
_MODULE = re.compile(r"No module named '(?P<name>[^']+)'")


class RaisingParser(ArgumentParser):
    """A parser that raises a one-line ValueError instead of printing its usage and exiting.

    Example:
        >>> parser = RaisingParser(prog="flatten predict")
        >>> _ = parser.add_argument("--top_k", type=int)
        >>> parser.parse_args(["--topk", "3"])
        Traceback (most recent call last):
        ValueError: unrecognized arguments: --topk 3: did you mean --top_k? (see flatten predict --help)

    Attributes:
        words: What other programs call an option, without dashes: how it is called here.
    """

    words: Mapping[str, str] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def parse_args(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:  # type: ignore[override]
        """Parse, once no mapping lacks the space after a colon; the arguments are jsonargparse's."""
        for text in args or ():
            value = text.partition("=")[2] if text.startswith("--") else text
            if value.startswith("{") and (key := _joined_key(value)):
                name, _, rest_of_key = key.partition(":")
                raise ValueError(f"{{{key}}} has no value in YAML: write a space after the colon, {{{name}: {rest_of_key}}}")
        return super().parse_args(args, *rest, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise ValueError with the message and a pointer to the help."""
        missing = _MODULE.search(message)
        message = plain(message)
        if unknown := _UNKNOWN.match(message):
            message += f": {self._hint(unknown['option'] or '--{group}.{key}'.format(**unknown.groupdict()))}"
        if missing:
            message += f": there is no module {missing['name']!r}: {advice(missing['name'])}"
        raise ValueError(f"{message} (see {self.prog} --help)") from ex

    def _hint(self, option: str) -> str:
        """Return what may have been meant: an option known by this word elsewhere, or with this last part, or alike."""
        name = option.lstrip("-").replace("-", "_").rpartition(".")[2]
        if near := get_close_matches(name.lower(), self.words, n=1, cutoff=0.8):
            return f"did you mean {self.words[near[0]]}?"
        same = [known for known in self._option_string_actions if known.lstrip("-").rpartition(".")[2] == name]
        return f"did you mean {' or '.join(same[:3])}?" if same else did_you_mean(option, self._option_string_actions)


def _joined_key(text: str) -> str | None:
    """Return the first key with a colon in it and without a value: so YAML reads ``{depth:2}``, and nobody means it."""
    try:
        nodes = [yaml.compose(text, yaml.SafeLoader)]
    except yaml.YAMLError:
        return None  # which the parser says
    for node in nodes:
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            if ":" in str(key.value) and value.value == "":
                return str(key.value)
            if value not in nodes:  # which anchors may hold twice, or in themselves
                nodes.append(value)
    return None


def check_values(parser: ArgumentParser, config: Namespace) -> None:
    """Refuse nulls in a recipe, and non-mappings for a group of options; parsing lets both through.

    Args:
        parser: Parser of ``config``.
        config: Result of ``parser.parse_args``.

    Raises:
        ValueError: If an option must not be null, or a group is not a mapping.

    Example:
        >>> parser = RaisingParser(prog="flatten predict")
        >>> _ = parser.add_argument("--top_k", type=int, default=1)
        >>> check_values(parser, Namespace(top_k=None))
        Traceback (most recent call last):
        ValueError: "top_k": Expected int. Got value: None (see flatten predict --help)
    """
    for name, default in parser.get_defaults().items(branches=True):
        if name not in config or (isinstance(default, Namespace) and not isinstance(config[name], Namespace)):
            group = name if isinstance(default, Namespace) else name.rpartition(".")[0]
            raise ValueError(f"{group} must hold options by name (see {parser.prog} --help)")
    try:
        parser.validate(config, skip_unset=False)
    except TypeError as error:
        raise ValueError(f"{plain(str(error))} (see {parser.prog} --help)") from error
