"""What every door of the library must do with any input: let it in, or refuse it in one line, within a gibibyte."""

from __future__ import annotations

import contextlib
import os
import resource
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

Test = TypeVar("Test", bound=Callable[..., None])

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))  # a door; random ones where it is set
REFUSALS = (ValueError, OSError)  # what flatten_transformer.cli.main says in one line
GIBIBYTE = 2**30


def bounded(examples: int) -> Callable[[Test], Test]:
    """Run a test with so many inputs, always the same, or with FUZZ_EXAMPLES random ones."""
    return settings(
        max_examples=EXAMPLES or examples,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def knock(door: Callable[[], Any]) -> str:
    """Return what a door says, "" if it lets the input in; fail by whatever else it does."""
    with _a_gibibyte(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            door()
        except REFUSALS as refusal:
            return str(refusal)
    return ""


@contextlib.contextmanager
def _a_gibibyte() -> Iterator[None]:
    """Let the process grow by a gibibyte; more is a MemoryError, which is no refusal."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + GIBIBYTE, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@st.composite
def damaged(draw: st.DrawFn, whole: SearchStrategy[bytes]) -> bytes:
    """Draw bytes that were whole: with some changed, some cut out, some put in, or the end missing."""
    content = bytearray(draw(whole))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        match draw(st.sampled_from(("change", "cut", "insert", "end"))):
            case "change" if content:
                content[at] = draw(st.integers(0, 255))
            case "cut":
                del content[at : at + draw(st.integers(1, 40))]
            case "insert":
                content[at:at] = draw(st.binary(max_size=12))
            case _:
                del content[at + draw(st.integers(0, len(content))) :]
    return bytes(content)


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, 1, -1, 2, 10**9, 2**31, 2**63, 10**400]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["", "0", "1e9", "../../x", "/etc/passwd", "\x1b[2J", "nan", "a\0b"]),
)
NAMES = st.text(max_size=6)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4))


@st.composite
def altered(draw: st.DrawFn, whole: Any, most: int = 3) -> Any:
    """Draw a copy of nested dicts and lists in which some entries are anything, gone, or doubled."""
    result = whole
    for _ in range(draw(st.integers(1, most))):
        result = _alter(draw, result)
    return result


def _alter(draw: st.DrawFn, node: Any) -> Any:
    if not isinstance(node, dict | list) or not node or draw(st.integers(0, 9)) == 0:
        return draw(VALUES)
    key = draw(st.sampled_from(sorted(node, key=str))) if isinstance(node, dict) else draw(st.integers(0, len(node) - 1))
    copy: Any = node.copy()
    change = draw(st.sampled_from(("inside", "inside", "inside", "remove", "double")))
    if change == "remove":
        del copy[key]
    elif change == "double" and isinstance(node, list):
        copy.append(node[key])
    else:
        copy[key] = _alter(draw, node[key])
    return copy
