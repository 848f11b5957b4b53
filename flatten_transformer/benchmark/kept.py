"""Files of results that hold every finished part, so that a later start goes on from there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import chain, count, takewhile
from pathlib import Path
from typing import Any

from flatten_transformer.benchmark.machine import Header
from flatten_transformer.utils.atomic_file import check_outputs, write_atomically
from flatten_transformer.utils.progress import note
from flatten_transformer.utils.stopping import telling_what_is_kept

# Entries of a header that are equal where results may stand in one file.
_MACHINE = ("device", "device_name", "platform", "threads")
_VERSIONS = ("python", "torch", "triton", "timm", "cuda", "flatten_backend", "commit", "code")


@dataclass
class KeptResults:
    """Results of a measurement, in a JSON file that is whole after each part.

    Args:
        path: The file.
        header: Machine and versions, of the start that began the file.
        arguments: What else the results depend on, as JSON values.
        total: Number of all parts.
        noun: Name of the parts, in the plural.
        finished: Number of finished parts.
        content: What the file holds.
        anew: This start was told to begin anew.
    """

    path: Path
    header: Header
    arguments: dict[str, Any]
    total: int
    noun: str
    finished: int = 0
    content: dict[str, Any] = field(default_factory=dict)
    anew: bool = False

    def write(self, finished: int, content: Mapping[str, Any]) -> None:
        """Write all results so far.

        Args:
            finished: Number of finished parts.
            content: JSON values by name.
        """
        if not self.content and os.path.lexists(self.path):  # another process was faster
            self.path = next(path for path in _numbered(self.path) if not os.path.lexists(path))
        self.finished = finished
        how = {"header": self.header, "arguments": self.arguments, "finished": finished, "total": self.total}
        self.content = {**how, **content}
        text = json.dumps(self.content, indent=1, ensure_ascii=False) + "\n"
        write_atomically(self.path, text.encode(errors="backslashreplace"))

    @contextmanager
    def reading(self) -> Iterator[dict[str, Any]]:
        """Yield what the file holds, and raise ValueError where that is not what was written.

        Example:
            >>> with KeptResults(Path("op.json"), {}, {}, 1, "races", content={}).reading() as content:
            ...     content["points"]
            Traceback (most recent call last):
            ValueError: op.json is damaged (KeyError: 'points'): move it away, or begin anew with --resume false
        """
        try:
            yield self.content
        except (LookupError, TypeError, AttributeError) as error:
            cure = "move it away, or begin anew with --resume false"
            raise ValueError(f"{self.path} is damaged ({type(error).__name__}: {error}): {cure}") from error

    def telling(self, *, resumable: bool = True) -> AbstractContextManager[None]:
        """Return the context in which a signal ends the measurement with a line that says what is kept.

        Args:
            resumable: The next start can go on from a part of the results.
        """
        return telling_what_is_kept(lambda: self._kept(resumable))

    def _kept(self, resumable: bool) -> str:
        if not self.finished:
            return f"none of {self.total} {self.noun} was finished"
        command = "the same command without --resume false" if self.anew else "the same command"
        then = f"{command} goes on from there" if resumable else "the same command begins anew, into another file"
        return f"{self.finished} of {self.total} {self.noun} are kept in {self.path}; {then}"


def open_kept(
    file: Path,
    header: Header,
    arguments: Mapping[str, Any],
    total: int,
    noun: str,
    *,
    resume: bool,
    resumable: bool = True,
) -> KeptResults:
    """Find the file of a measurement, or a free name for a new one, and say on stderr which.

    Only results of the same arguments, machine, versions and code go together. Files of others are left alone.

    Args:
        file: First name; ``op.json`` stands for ``op_2.json`` and so on too.
        header: Of this start.
        arguments: What else the results depend on.
        total: Number of parts.
        noun: Name of the parts, in the plural.
        resume: Take results of earlier starts; else begin a new file.
        resumable: An unfinished file can be continued; else only a finished one counts.

    Raises:
        OSError: If the file cannot be written.
    """
    arguments = json.loads(json.dumps(arguments, default=str))
    found = list(takewhile(os.path.lexists, _numbered(file)))
    new = next(path for path in _numbered(file) if path not in found)
    reason = "" if resume else "resume is false"
    for path in reversed(found if resume else []):
        content = _read(path)
        difference = _difference(content, header, arguments)
        if difference is None and (resumable or content["finished"] == total):
            kept = KeptResults(path, content["header"], dict(arguments), total, noun, content["finished"], content)
            check_outputs([path], [])
            note(_going_on(kept))
            return kept
        reason = reason or difference or f"it holds {content['finished']} of {total} {noun}, which cannot be continued"
    check_outputs([new], [])
    if found:
        note(f"{found[-1]} is left alone ({reason}): measuring anew, into {new}")
    return KeptResults(new, header, dict(arguments), total, noun, anew=not resume)


def _numbered(file: Path) -> Iterator[Path]:
    """Yield ``op.json``, ``op_2.json`` and so on."""
    return chain([file], (file.with_stem(f"{file.stem}_{number}") for number in count(2)))


def _going_on(kept: KeptResults) -> str:
    if kept.finished < kept.total:
        return f"{kept.finished} of {kept.total} {kept.noun} are in {kept.path} already: going on"
    return f"all {kept.total} {kept.noun} are in {kept.path} already; --resume false measures anew, into another file"


def _read(path: Path) -> dict[str, Any]:
    """Return the results in a file; without entries if it holds something else."""
    try:
        content = json.loads(path.read_text("utf-8"))
        whole = isinstance(content["header"], dict) and isinstance(content["arguments"], dict)
        return content if whole and content["finished"] in range(1, content["total"] + 1) else {}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}


def _difference(content: Mapping[str, Any], header: Header, arguments: Mapping[str, Any]) -> str | None:
    """Return in words how results differ from those of this start, or None."""
    if not content:
        return "it does not say how it was measured"
    pairs = [(name, content["arguments"].get(name), arguments.get(name)) for name in {**content["arguments"], **arguments}]
    pairs += [(name, content["header"].get(name), header.get(name)) for name in (*_MACHINE, *_VERSIONS)]
    return next((f"{name} was {before}, is {now}" for name, before, now in pairs if before != now), None)
