"""jsonargparse's messages in a user's words, on one line."""

from __future__ import annotations

import re

_UNION = re.compile(
    r"(?:- Expected a path but .*? - )?Does not validate against any of the Union subtypes Subtypes: \[(?P<types>.*?)\] "
    r"Errors: (?P<errors>.*) Given value type: .*? Given value:(?P<value>.*)"
)
_MISSING = re.compile(r"the following arguments are required: (\S+)")
_UNKNOWN = re.compile(r"Option '(\S+)' is not accepted")
_CLASS_PATH = re.compile(r"class_path='(?:\w+\.)*(\w+)'")
_NO_FILE = re.compile(r"Unable to load config '(.*?)' - .*")
_CLASS = re.compile(r"<class '(?:\w+\.)*(\w+)'>")
_MODULES = re.compile(r"\b(?:[a-z_]+\.)+(?=[A-Z])")
_LITERAL = re.compile(r"typing\.Literal\[(.*?)\]")


def plain(message: str) -> str:
    """Return jsonargparse's message on one line, in a user's words.

    Example:
        >>> plain('''Parser key "top_k":
        ...   Expected a <class 'int'>. Got value: z''')
        '"top_k": Expected int. Got value: z'
        >>> plain("Expected a typing.Literal['min', 'max']. Got value: least")
        'Expected min, max. Got value: least'
    """
    message = " ".join(message.split()).rstrip(".").replace("Parser key ", "")
    if union := _UNION.search(message):
        return message[: union.start()] + _of_union(message[: union.start()], union)
    message = _NO_FILE.sub(r"Expected options by name, or a file of them. Got value: \1", message)
    wanted, got, value = message.partition(". Got value: ")
    return _types(wanted).replace("Expected a ", "Expected ") + got + value


def _of_union(option: str, union: re.Match[str]) -> str:
    """Return what is wrong with a value that fits none of several types: with a class, what it lacks or does not take."""
    name, given = f"--{option.strip(': ').strip(chr(34))}", _CLASS_PATH.search(union["value"])
    if given and (missing := _MISSING.search(union["errors"])):
        return f"{given[1]} needs {missing[1].rstrip(',')}: add {name}.{missing[1].rstrip(',')}"
    if unknown := _UNKNOWN.search(union["errors"]):
        return f"there is no option {unknown[1]!r}: leave it out or correct its name"
    choices = _types(union["types"])
    if not re.search(r"[\[\]]", choices):
        choices = ", ".join(dict.fromkeys(choices.split(", ")))
    return f"Expected one of {choices}. Got value: {union['value'].strip() or repr('')}"


def _types(text: str) -> str:
    """Return names of types as short as they are understood."""
    text = _LITERAL.sub(lambda found: found[1].replace("'", ""), _CLASS.sub(r"\1", text))
    return _MODULES.sub("", text).replace("NoneType", "null")
