"""Find specs by name, by path and in installed packages, and read them; errors name file and line."""

import importlib.metadata
import importlib.util
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from vpo_plugin.files import digest, digest_files
from vpo_plugin.rewards.spec import CHECKED, FUNCTIONS, RewardSpec

GROUP = "vpo_plugin.reward_specs"
"""Entry point group in which a package publishes specs: name = the package whose folder holds the spec.yaml."""


class SpecError(ValueError):
    """A spec that does not exist or cannot be used; the message names file and line."""


def spec_files() -> dict[str, Path]:
    """The YAML file of every spec that is known by a name: those under `reward_specs`, then those of packages."""
    files: dict[str, Path] = {}
    for home in _package_folders("reward_specs"):
        files |= {file.parent.name: file for file in sorted(home.glob("*/spec.yaml"))}
    for entry in importlib.metadata.entry_points(group=GROUP):
        for folder in _package_folders(entry.value):
            if (folder / "spec.yaml").is_file():
                files.setdefault(entry.name, folder / "spec.yaml")
    return files


def spec_home() -> Path:
    """The folder of the shipped specs and their JSON schema."""
    return _package_folders("reward_specs")[0]


def _package_folders(package: str) -> list[Path]:
    try:
        found = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        return []
    return [Path(place) for place in found.submodule_search_locations or []] if found else []


def spec_file(name_or_path: str | Path) -> Path:
    """The YAML file of a spec given by its name, its folder, or the file itself.

    Raises SpecError if there is none; the message lists the known names.
    """
    known = spec_files()
    if (file := known.get(str(name_or_path))) is not None:
        return file
    place = Path(name_or_path)
    file = place / "spec.yaml" if place.is_dir() else place
    if file.is_file() and file.suffix in (".yaml", ".yml"):
        return file
    raise SpecError(
        f"There is no spec '{name_or_path}': it is neither a known name ({', '.join(known)}) nor a folder with a "
        "spec.yaml, nor a YAML file."
    )


def load_spec(name_or_path: str | Path) -> RewardSpec:
    """Read and check a spec, given by its name, its folder, or its YAML file.

    Raises SpecError with one line per problem, `file:line: sentence`.
    """
    chain = _read(spec_file(name_or_path))
    complaints = [complaint for source in chain for complaint in _repeated_keys(source)]
    data: dict[str, Any] = {}
    _add_folders(chain)
    for source in reversed(chain):  # the parent first
        data.pop("name", None)
        if isinstance(source.data.get("dataset"), dict) and "loader" in source.data["dataset"]:
            data.pop("dataset", None)  # the arguments and columns are the other loader's
        data = _merged(data, _with_place(source))
    try:
        spec = RewardSpec.model_validate(data)
    except ValidationError as error:
        complaints += [_complaint(chain, dict(item)) for item in error.errors()]
    if complaints:
        files = [source.file for source in chain]
        complaints.sort(key=lambda complaint: (files.index(complaint[0]), complaint[1:]))
        raise SpecError("\n".join(f"{file}:{line}: {sentence}" for file, line, sentence in complaints))
    return spec


def load_checked(path: str, data: Any) -> RewardSpec:
    """A spec that was loaded from this path before, from its `model_dump`. This process imports none of its modules,
    but processes that it starts can."""
    _add_folders(_read(spec_file(path)))
    return RewardSpec.model_validate(data, context=CHECKED)


def _add_folders(chain: "list[_Source]") -> None:
    """Let Python find the modules beside a spec and beside the specs that it extends."""
    for source in reversed(chain):
        folder = str(source.file.parent.resolve())
        if folder not in sys.path:
            sys.path.append(folder)


@dataclass(frozen=True)
class _Source:
    """One YAML file of a spec: its data, and the nodes that know their lines."""

    file: Path
    data: dict[str, Any]
    tree: yaml.MappingNode


def _read(file: Path) -> list[_Source]:
    """A spec's file, then those that it extends, nearest first."""
    chain: list[_Source] = []
    while True:
        try:
            text = file.read_text(encoding="utf-8")
            tree = yaml.compose(text, Loader=_Loader)
            data = yaml.load(text, Loader=_Loader)
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            mark = getattr(error, "problem_mark", None)
            problem = getattr(error, "problem", None) or str(error)
            raise SpecError(f"{file}:{mark.line + 1 if mark else 1}: This is not YAML: {problem}.") from error
        if not isinstance(tree, yaml.MappingNode):
            raise SpecError(f"{file}:1: A spec is a YAML mapping of keys to values.")
        parent = data.pop("extends", None)
        chain.append(_Source(file, data, tree))
        if parent is None:
            return chain
        line, _ = _line(tree, ["extends"])
        try:
            beside = Path(os.path.normpath(file.parent / str(parent)))
            file = spec_file(beside if beside.exists() else str(parent))
        except SpecError as error:
            raise SpecError(f"{chain[-1].file}:{line}: {error}") from error
        if any(file.resolve() == source.file.resolve() for source in chain):
            raise SpecError(f"{chain[-1].file}:{line}: The spec extends itself, through {file}.")


class _Loader(yaml.SafeLoader):
    """YAML without aliases, because aliases can make a few lines endless or arbitrarily large."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            problem = f"it has the alias '*{event.anchor}', and a spec has none: write it out, or use `extends`"
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        return super().compose_node(parent, index)


def _merged(parent: Any, child: Any) -> Any:
    """Merge mappings key by key; for anything else take the child's value."""
    if not (isinstance(parent, dict) and isinstance(child, dict)):
        return child
    return {**parent, **{key: _merged(parent.get(key), value) for key, value in child.items()}}


def _with_place(source: _Source) -> dict[str, Any]:
    """A file's data; a dataset source that is a path beside the file becomes an absolute path."""
    dataset = source.data.get("dataset")
    args = dataset.get("args") if isinstance(dataset, dict) else None
    named = args.get("source") if isinstance(args, dict) else None
    if not isinstance(dataset, dict) or not isinstance(args, dict) or not isinstance(named, str) or "://" in named:
        return source.data
    there = source.file.parent.resolve() / named
    if not (there.exists() or glob(str(there).replace("{split}", "*"), recursive=True)):
        return source.data
    return {**source.data, "dataset": {**dataset, "args": {**args, "source": str(there)}}}


def _complaint(chain: list[_Source], error: dict[str, Any]) -> tuple[Path, int, str]:
    """A pydantic error with its place, in the nearest file that has the whole location."""
    location = [step for step in error["loc"] if step not in ("listed form", "ragged form", "[key]")]
    there = location
    task = next((source.data["task"] for source in chain if "task" in source.data), None)
    if error["type"] == "missing":
        there = ["task"] if _lacks(task, str(location[-1])) else location[:-1]
    places = [(source.file, *_line(source.tree, there)) for source in chain]
    file, line, _ = max(places, key=lambda place: place[2])  # the first of the deepest
    where = ".".join(str(step) for step in location)
    if error["type"] == "extra_forbidden":
        sentence = f"The key '{where}' is unknown."
    elif error["type"] == "missing":
        sentence = f"The key '{where}' is missing{_lacks(task, str(location[-1]))}."
    elif error["type"] == "value_error":
        sentence = f"{where}: {error['ctx']['error']}" if where else str(error["ctx"]["error"])
    else:
        sentence = f"{where}: {error['msg']}, not {repr(error['input'])[:80]}."
    return file, line, sentence


def _lacks(task: str | None, key: str) -> str:
    name = {**FUNCTIONS, "loader": "rows", "count": "count"}.get(key)
    return f", and the module '{task}' has no '{name}'" if task and name else ""


def _line(node: yaml.Node, location: Sequence[int | str]) -> tuple[int, int]:
    """The line, from 1, of the node at a location or of the nearest enclosing node, and that node's depth."""
    line, depth = node.start_mark.line + 1, 0
    for step in location:
        if isinstance(node, yaml.MappingNode):
            match = [(key, value) for key, value in node.value if key.value == step]
            if not match:
                break
            line, node = match[0][0].start_mark.line + 1, match[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            line = node.start_mark.line + 1
        else:
            break
        depth += 1
    return line, depth


def _repeated_keys(source: _Source) -> list[tuple[Path, int, str]]:
    found: list[tuple[Path, int, str]] = []
    todo: list[yaml.Node] = [source.tree]
    while todo:
        node = todo.pop()
        if isinstance(node, yaml.SequenceNode):
            todo += node.value
        elif isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value]
            for i, (key, value) in enumerate(node.value):
                if key.value in keys[:i]:
                    found.append((source.file, key.start_mark.line + 1, f"The key '{key.value}' is given twice."))
                todo.append(value)
    return found


def spec_digest(spec: RewardSpec) -> str:
    """A short fingerprint of a specification and of the Python that it names."""
    return digest([spec.model_dump(mode="json"), *_code(spec)])


def code_digest(spec: RewardSpec) -> str:
    """A short fingerprint of the Python that a specification names."""
    return digest(_code(spec))


def _code(spec: RewardSpec) -> list[str]:
    modules = set(re.findall(r'"([\w.]+):\w+"', json.dumps(spec.model_dump(mode="json"))))
    folders = sorted({folder for module in modules if (folder := _folder(module))})
    return [digest_files(folder, sorted(folder.glob("*.py"))) for folder in folders]


def _folder(module: str) -> Path | None:
    """The folder of a module's file; None for what is not a module after all, or has no file."""
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return Path(found.origin).parent if found and found.origin else None
