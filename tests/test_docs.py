"""The documentation: what it names is there, its site builds without a warning, its picture is current."""

import ast
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import yaml

from benchmarks import imports
from flows.settings import SETTINGS
from vpo_plugin.cli import UsageError, settings
from vpo_plugin.cli import dispatch as vpo

ROOT = Path(__file__).parent.parent
DEFINITIONS = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
FOLDERS = "benchmarks|cluster|docs|examples|flows|requirements|reward_specs|tests|vpo_plugin"
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


def commands() -> list[tuple[str, str, bool]]:
    """(page, command, whether it stands in running text); continued lines are one, what a variable holds is put in."""
    found = set()
    programs = [file for folder in ("benchmarks", "examples") for file in (ROOT / folder).rglob("*.py")]
    texts = {page: page.read_text() for page in pages()}
    texts |= {file: ast.get_docstring(ast.parse(file.read_text())) or "" for file in programs}
    for page, text in texts.items():
        name = str(page.relative_to(ROOT))
        for block in re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            held: dict[str, str] = {}
            for line in block.replace("\\\n", " ").splitlines():
                command = line.split(" #")[0].strip().removesuffix("&").strip()
                if holds := re.fullmatch(r'(\w+)="(vpo .*)"', command):
                    held[f"${holds[1]}"] = holds[2]
                elif command:
                    found.add((name, re.sub(r"\$\w+", lambda m, held=held: held.get(m[0], m[0]), command), False))
        if name != "CHANGELOG.md":  # which speaks of earlier versions
            prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
            spans = re.findall(r"`((?:vpo|python|prefect|make|bash|git|ssh) [^`]*)`", prose)
            found |= {(name, command, True) for span in spans for command in " ".join(span.split()).split("; ")}
    return sorted(found)


class Read(BaseException):
    """A command line has been read, and is right; the command does not run."""


@pytest.fixture
def only_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `vpo` read its settings in the repository's folder and stop there."""
    checked = settings._checked

    def stop(*given: Any) -> None:
        raise Read(checked(*given))

    monkeypatch.setattr(settings, "_checked", stop)
    monkeypatch.chdir(ROOT)


def source(module: str) -> Path:
    """The file of a module, which is not imported."""
    package = find_spec(module.split(".")[0])
    assert package and package.origin, module
    return Path(package.origin).parents[1] / f"{module.replace('.', '/')}.py"


@cache
def flags_of(module: str) -> set[str]:
    """The flags in the source of a program; a training has the host's and the plugin's."""
    modules = [module]
    if module == "vpo_plugin.train_ppo_ray":
        modules = ["openrlhf.cli.train_ppo_ray", "vpo_plugin.openrlhf.flags"]
    elif module.endswith("_policy"):
        modules = ["benchmarks.tiny_policy"]
    return {"--help"}.union(*(re.findall(r'"(--[\w.]+)"', source(one).read_text()) for one in modules))


@pytest.mark.parametrize(("page", "command", "in_text"), commands())
@pytest.mark.usefixtures("only_read")
def test_a_command_is_right_as_written(page: str, command: str, in_text: bool) -> None:
    """Programs, flags and their values, modules, targets, deployments, and files of the repository.

    A command in running text may leave out what it needs. A letter stands for a number.
    """
    command = re.sub(r"(?<!\S)(…|\[\w+\])(?!\S)", "", command)
    words = [re.sub(r"^[NnmT]$", "1", word) for word in shlex.split(command)]
    programs = [i for i, word in enumerate(words) if word in ("vpo", "python", "prefect", "make")]
    program, *rest = words[programs[0] :] if programs else words
    if rest[:3] == ["-m", "benchmarks.cells", "report"]:
        program, rest = "vpo", ["experiment", *rest[4:]]  # whose flags it takes
    if program == "vpo":
        try:
            vpo([word.split("|")[0] for word in rest])
        except UsageError as error:
            if not (in_text and re.search("missing|expected|required|needs one of|name what to run", str(error))):
                raise
        except (Read, SystemExit):
            pass
        else:
            pytest.fail(f"{command} does not read its settings")
    elif program == "python" and rest[0] == "-m":
        module = rest[1]
        assert source(module).is_file()
        flags = {word.split("=")[0] for word in rest if word.startswith("--")}
        assert not module.startswith(("benchmarks.", "vpo_plugin.")) or flags <= flags_of(module)
    elif program == "prefect":
        for flow, name in (word.split("/") for word in rest if word.split("/")[0] in SETTINGS):
            parameters = dict(deployments()[flow, name])
            parameters |= dict(word.split("=", 1) for word in rest if re.match(r"\w+=", word))
            SETTINGS[flow].model_validate(parameters)
    elif program == "make":
        targets = [word for word in rest if "=" not in word]
        makefile = (ROOT / "Makefile").read_text()
        assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    for word in words:
        if re.match(rf"({FOLDERS})/", word) and "$" not in word:
            assert list(ROOT.glob(word)), f"{page}: {command}"


def deployments() -> dict[tuple[str, str], dict[str, Any]]:
    """The parameters of the deployments of prefect.yaml, by the names of flow and deployment."""
    listed = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    flows = [one["entrypoint"].split(":")[1].removesuffix("_flow").replace("_", "-") for one in listed]
    return {(flow, one["name"]): one["parameters"] for flow, one in zip(flows, listed, strict=True)}


def qwen3_texts() -> list[tuple[str, str]]:
    """The files to run or copy and the pages' code blocks that name a Qwen3 model, each with its place."""
    folders = [ROOT / folder for folder in ("flows/configs", "examples", "cluster")]
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file() and file.suffix != ".md"]
    texts = [(file, file.read_text(errors="replace")) for file in [*files, *ROOT.glob("*.yaml")]]
    for page in pages():
        texts += [(page, block) for block in re.findall(r"^ *```\w+\n(.*?)^ *```", page.read_text(), re.M | re.S)]
    return [(str(file.relative_to(ROOT)), text) for file, text in texts if "Qwen/Qwen3" in text]


def test_everything_that_names_a_qwen3_model_disables_its_thinking() -> None:
    """With the option itself, or through the launch script, which has it."""
    named = qwen3_texts()
    assert {"README.md", "examples/train.sh", "examples/prefect.yaml", "cluster/kuberay/rayjob.yaml"} <= {
        place for place, _ in named
    }
    for place, text in named:
        off = re.search(r"""enable_thinking\W+(false|False)""", text)
        assert off or re.search(r"^MODEL=\S+ examples/train.sh", text, re.MULTILINE), place


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_what_is_there(page: Path) -> None:
    """Flags of a training, files and folders in its text, and what its Python imports from the project."""
    text = page.read_text()
    if page.name != "CHANGELOG.md":
        assert set(re.findall(r"(?<![\w-])--[a-z]+\.[\w.]*\w", text)) <= flags_of("vpo_plugin.train_ppo_ray")
        files = re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", text)
        assert [file for file in files if not (ROOT / file).exists()] == []
    for block in re.findall(r"^ *```python\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL):
        imports = [node for node in ast.walk(ast.parse(dedent(block))) if isinstance(node, ast.ImportFrom)]
        for node in imports:
            place = ROOT / (node.module or "").replace(".", "/")
            if place.parts[len(ROOT.parts)] in FOLDERS.split("|"):
                file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
                assert all(re.search(rf"\b{name.name}\b", file.read_text()) for name in node.names), node.module
