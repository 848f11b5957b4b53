"""What the workflow, the hooks and the templates call exists and says what the Makefile and pyproject.toml say."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # ships no annotations
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
JOBS = yaml.safe_load((GITHUB / "workflows" / "test.yml").read_text("utf-8"))["jobs"]
HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"][0]["hooks"]
FORMS = [GITHUB / "ISSUE_TEMPLATE" / name for name in ("bug.yml", "feature.yml")]
FILES = [*FORMS, *GITHUB.glob("*.md"), *GITHUB.glob("workflows/*"), ROOT / ".pre-commit-config.yaml"]


def scripts(job: str) -> list[str]:
    """Return what the steps of a job run."""
    return [step["run"] for step in JOBS[job]["steps"] if "run" in step]


def recipe(target: str) -> list[str]:
    """Return the commands of a target of the Makefile, without the folder of the environment."""
    (lines,) = re.findall(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, flags=re.MULTILINE)
    return [line.strip().removeprefix("$(BIN)/") for line in lines.splitlines()]


def oldest_and_newest() -> list[str]:
    """Return the first and the last Python that pyproject.toml names, as matrices do."""
    found = re.findall(r"Python :: (3\.\d+)$", "\n".join(PROJECT["classifiers"]), flags=re.MULTILINE)
    assert PROJECT["requires-python"] == f">={found[0]}"
    return [found[0], found[-1]]


def test_it_runs_on_the_oldest_and_the_newest_python_of_three_systems() -> None:
    matrix = JOBS["suite"]["strategy"]["matrix"]
    assert matrix["python"] == oldest_and_newest()
    assert matrix["os"] == JOBS["wheel"]["strategy"]["matrix"]["os"] == ["ubuntu-latest", "macos-latest", "windows-latest"]
    assert JOBS["wheel"]["steps"][1]["with"]["python-version"] == oldest_and_newest()[1]


def test_windows_runs_what_make_test_runs() -> None:
    make, windows = scripts("suite")
    assert make == "make test PYTHON=python"
    install, *checks = windows.splitlines()
    assert checks == [*recipe("lint"), *recipe("test")]
    assert recipe(r"\$\(VENV\)/installed")[-2].endswith(install.removeprefix("python -m pip install "))


def test_the_ends_of_the_ranges_of_dependencies_are_tried() -> None:
    tried = JOBS["dependencies"]["strategy"]["matrix"]["include"]
    assert [each["resolution"] for each in tried] == ["lowest-direct", "highest"]
    assert [each["python"] for each in tried] == oldest_and_newest()
    declared = [Requirement(text) for text in sum(EXTRAS.values(), PROJECT["dependencies"])]
    unbound = [str(each) for each in declared if each.name != PROJECT["name"] and ">=" not in str(each.specifier)]
    assert not unbound  # the lowest would be the first that was ever released


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.name))
def test_targets_extras_and_files_that_it_names_exist(path: Path) -> None:
    text = path.read_text("utf-8")
    targets = set(re.findall(r"^([\w-]+):", MAKEFILE, flags=re.MULTILINE))
    assert set(re.findall(r"(?:`|run: )make ([\w-]+)", text)) <= targets
    assert set(re.findall(r"\.\[([\w,]+)\]", text)) <= EXTRAS.keys()
    files = re.findall(r"[\w/.-]+\.(?:md|txt|toml|py)\b", text)
    assert not [file for file in files if not (ROOT / file).is_file() and not list(ROOT.glob(f"*/{file}"))]


def test_the_hooks_are_the_tools_of_the_environment() -> None:
    tools = {Requirement(text).name for text in EXTRAS["dev"]}
    assert {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in HOOKS} == {"ruff", "mypy"} <= tools
    assert [hook["name"] for hook in HOOKS] == [command.split(" --")[0].removesuffix(" .") for command in recipe("lint")]


@pytest.mark.parametrize("path", FORMS, ids=lambda path: str(path.name))
def test_a_form_asks_each_thing_once(path: Path) -> None:
    body: list[dict[str, Any]] = yaml.safe_load(path.read_text("utf-8"))["body"]
    asked = [field["id"] for field in body if field["type"] != "markdown"]
    assert asked
    assert len(set(asked)) == len(asked)


def test_a_bug_report_asks_for_versions_and_the_command() -> None:
    text = FORMS[0].read_text("utf-8")
    assert "flatten --version" in text
    assert {"torch.__version__", "timm.__version__"} <= set(re.findall(r"\w+\.__version__", text))
    required = {each["id"] for each in yaml.safe_load(text)["body"] if each.get("validations", {}).get("required")}
    assert required == {"happened", "command", "output", "versions"}
