"""The documentation: what it names is there, its site builds without a warning, its picture is current."""

import ast
import os
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stdout, suppress
from functools import cache
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import pytest

from benchmarks import imports
from vpo_plugin.cli import main as vpo

ROOT = Path(__file__).parent.parent
DEFINITIONS = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
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
            defined = {node.name for node in nodes if isinstance(node, DEFINITIONS)}
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


def commands() -> list[tuple[str, str]]:
    """(page, command) for each command in a bash block of the documentation; continued lines are one."""
    found = []
    for page in pages():
        for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if command := line.split(" #")[0].strip().removesuffix("&").strip():
                    found.append((str(page.relative_to(ROOT)), command))
    return found


@cache
def help_of(*words: str) -> str:
    """What `vpo … --help` prints."""
    with redirect_stdout(StringIO()) as out, suppress(SystemExit):
        vpo([*words, "--help"])
    return out.getvalue()


@pytest.mark.parametrize(("page", "command"), commands())
def test_a_command_names_what_is_there(page: str, command: str) -> None:
    """Programs, flags, modules, targets and files of the repository."""
    if re.match(r'\w+="vpo ', command):  # a shell variable that holds the start of other commands
        command = command.split("=", 1)[1].strip('"')
    words = [word for word in shlex.split(command) if not re.fullmatch(r"[A-Z_]+=.*", word)]
    if words[0] == "vpo":
        several = re.search(r"\{(\S+)\}", help_of(words[1])) if not words[2:] or words[2].startswith("-") else None
        named = words[1:3] if words[1] in ("spec", "registry") and not several else words[1:2]
        text = help_of(*named)
        assert text, f"{page}: there is no `vpo {' '.join(named)}`"
        flags = {word.split("=")[0] for word in words if word.startswith("--")}
        assert {flag for flag in flags if flag not in text} == set(), f"{page}: {command}"
    elif words[:2] == ["python", "-m"]:
        assert find_spec(words[2]), f"{page}: {command}"
    elif words[0] == "make":
        targets = [word for word in words[1:] if "=" not in word]
        makefile = (ROOT / "Makefile").read_text()
        assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets), f"{page}: {command}"
    ours = tuple(
        f"{folder}/" for folder in ("benchmarks", "cluster", "docs", "examples", "flows", "requirements", "tests")
    )
    for word in words:
        if word.startswith((*ours, "reward_specs/")) and "$" not in word:
            assert (ROOT / word).exists(), f"{page}: {command}"
