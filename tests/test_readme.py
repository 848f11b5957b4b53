"""What the README and the documentation say runs, and what they link to exists."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_of_a_page_runs_from_top_to_bottom(page: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    assert len(blocks) >= (3 if page == README else 0)
    left_out = [] if find_spec("transformers") else [block for block in blocks if "import transformers" in block]
    exec(compile("\n".join(block for block in blocks if block not in left_out), str(page), "exec"), {})
    if left_out:
        pytest.skip("transformers is not installed: the rest of the page ran")


def test_the_first_code_of_the_readme_stands_before_line_20() -> None:
    before, _, _ = README.read_text().partition("```python")
    assert before.count("\n") < 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_a_page_links_to_exists(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing
