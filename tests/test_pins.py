"""What is installed: the command, and versions that agree with one another, none that is known to be malicious."""

import re
from pathlib import Path
from pkgutil import resolve_name

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text("utf-8")
ELSEWHERE = {"colorama", "httpx2-jsfetch"}  # on Windows and in browsers only, where nobody has pinned them


def pins(text: str) -> set[tuple[str, str]]:
    """Return names and versions, whatever the digests and markers after them."""
    return set(re.findall(r"^([\w.-]+)==([\w.]+)", text, flags=re.MULTILINE))


CONSTRAINTS = pins((ROOT / "constraints.txt").read_text("utf-8"))
HASHED = (ROOT / "requirements-hashed.txt").read_text("utf-8")


def declared() -> dict[str, SpecifierSet]:
    """Return what pyproject.toml lets users install, by name."""
    lines = "\n".join(line for line in PROJECT.splitlines() if not line.lstrip().startswith("#"))
    requirements = [Requirement(text) for text in re.findall(r'"([a-z][\w\[\]-]+[><=!][^"]+)"', lines)]
    return {requirement.name: requirement.specifier for requirement in requirements}


def test_the_digests_are_those_of_the_pinned_versions() -> None:
    hashed = {(name, version) for name, version in pins(HASHED) if name not in ELSEWHERE}
    assert hashed == CONSTRAINTS


def test_every_pinned_file_has_a_digest_and_no_address() -> None:
    entries = re.split(r"\n(?=\w)", HASHED.partition("\n\n")[0])
    assert all("--hash=sha256:" in entry for entry in entries if not entry.startswith("#"))
    assert "://" not in HASHED


def test_pinned_versions_are_among_those_that_users_may_have() -> None:
    ranges = declared()
    assert {"torch", "timm", "lightning", "jsonargparse", "matplotlib", "datasets", "ruff"} <= set(ranges)
    assert all(version in ranges[name] for name, version in CONSTRAINTS if name in ranges)


@pytest.mark.parametrize("name", ["lightning", "pytorch-lightning"])
@pytest.mark.parametrize(
    ("version", "allowed"), [("2.6.1", True), ("2.6.2", False), ("2.6.3", False), ("2.6.6", True), ("3.0", False)]
)
def test_malicious_releases_and_other_majors_are_not_installed(name: str, version: str, allowed: bool) -> None:
    assert (version in declared()[name]) == allowed


def test_the_console_script_is_shipped_though_it_stands_outside_the_package() -> None:
    (script,) = re.findall(r'^flatten = "(.+)"$', PROJECT, flags=re.MULTILINE)
    assert callable(resolve_name(script))
    file = f'"{script.partition(":")[0]}.py"'
    shipped = re.findall(r"^(?:only-)?include = \[(.*)\]$", PROJECT, flags=re.MULTILINE)
    assert [file in files for files in shipped] == [True, True]  # wheel and sdist
    (version,) = re.findall(r'^path = "(.+)"$', PROJECT, flags=re.MULTILINE)
    assert (ROOT / version).read_text("utf-8").count("__version__ = ") == 1
