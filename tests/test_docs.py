"""The documentation: what it names is there, its site builds without a warning, its picture is current."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import imports

ROOT = Path(__file__).parent.parent
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()


def test_the_picture_of_the_imports_is_current() -> None:
    assert imports.PICTURE.read_text() == imports.draw(), "run `python -m benchmarks.imports`"


def test_the_ways_through_the_code_exist() -> None:
    """Each file and function of the tables is there, and the way of a flag has at most 8 files."""
    ways = ARCHITECTURE.split("\n## ")[1:]
    assert len(ways) == 3
    for way in ways:
        rows = re.findall(r"^\| `(\S+\.py)` \| (?:`(\w+)`)? \|", way, re.MULTILINE)
        assert 4 < len(rows) <= 8, way.splitlines()[0]
        for file, function in rows:
            nodes = list(ast.walk(ast.parse((ROOT / file).read_text())))
            defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
            assert not function or function in defined, f"docs/architecture.md names {function} of {file}"


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """With pages from the docstrings; a page that is in no menu is a warning, as a reference that leads nowhere is."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert 'id="vpo_plugin.advantages.batch.RewardBatch"' in (tmp_path / "api/advantages/index.html").read_text()


def pages() -> list[Path]:
    folders = ("docs", "reward_specs", "cluster", "examples", "tests")
    return [*ROOT.glob("*.md"), *(page for folder in folders for page in (ROOT / folder).rglob("*.md"))]


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    dead = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert dead == []
