"""The plan of the house: imports point one way, there are no circles, and what is imported is declared."""

import ast
import re
import sys
import tomllib
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import grimp
import yaml
from conftest import python_lines
from importlinter.cli import lint_imports
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
SHIPPED = ("vpo_plugin", "flows", "reward_specs")
BESIDE = ("benchmarks", "examples")


@cache
def imports() -> grimp.ImportGraph:
    """Who imports whom, imports inside functions and under TYPE_CHECKING included."""
    return grimp.build_graph(*SHIPPED, *BESIDE, include_external_packages=True, cache_dir=None)


def test_imports_point_one_way(capsys) -> None:
    """The contracts of pyproject.toml, as `lint-imports` checks them."""
    broken = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)
    assert not broken, capsys.readouterr().out


def test_no_circles() -> None:
    """`from package import module` runs the package too, so it counts as an import of both."""
    graph = imports()
    edges = {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}
    assert "vpo_plugin.rewards" in edges["vpo_plugin.openrlhf.launcher"], "the graph must not be empty"
    for folder in (*SHIPPED, *BESIDE):
        for path in (ROOT / folder).rglob("*.py"):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            nodes = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom))
            edges.setdefault(module, set()).update({node.module for node in nodes if node.module in edges} - {module})
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        raise AssertionError("a circle of imports, each imported by the next: " + ", ".join(error.args[1])) from None


def distributions(modules: set[str]) -> dict[str, set[str]]:
    """The distributions, with normalized names, that provide each top-level module that is not Python's or ours."""
    of_module = packages_distributions()
    own = {*SHIPPED, *BESIDE, *(path.stem for path in (ROOT / "tests").glob("*.py"))}
    names = {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names) - own
    return {name: {normalized(found) for found in of_module.get(name, [name])} for name in names}


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(*without: str) -> set[str]:
    """The distributions that pyproject.toml asks for, in all extras but the named."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [lines for extra, lines in project["optional-dependencies"].items() if extra not in without]
    return {normalized(Requirement(line).name) for line in sum(extras, project["dependencies"])}


def test_what_is_imported_is_declared() -> None:
    graph = imports()
    shipped, beside = set(), set()
    for module in graph.modules:
        for importer in graph.find_modules_that_directly_import(module):
            (shipped if importer.startswith(SHIPPED) else beside).add(module)
    for path in (ROOT / "tests").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                beside |= {name.name for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                beside.add(node.module)
    for modules, known in ((shipped, declared("dev", "judges")), (beside, declared())):
        missing = {name for name, found in distributions(modules).items() if not found & known}
        assert missing == set(), "pyproject.toml does not declare what is imported"


def test_lines_are_counted() -> None:
    """What the end of each test run reports."""
    lines = python_lines()
    assert set(lines) == set(SHIPPED)
    for folder, number in lines.items():
        files = (ROOT / folder).rglob("*.py")
        assert number == sum(len(path.read_text().splitlines()) for path in files) > 0


def test_the_hooks_and_the_workflow_run_what_is_pinned() -> None:
    """pre-commit has the pinned ruff, and continuous integration runs the script that is there."""
    pinned = dict(line.split("==") for line in (ROOT / "requirements" / "cpu.txt").read_text().split())
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["rev"] == f"v{pinned['ruff']}"
    steps = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["test"]["steps"]
    script = ROOT / steps[-1]["run"]
    assert script.is_file() and script.stat().st_mode & 0o111
