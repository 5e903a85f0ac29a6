"""The reward specification as data: what a task rewards, how the prompt asks for candidates, and what scores them.

A spec is a YAML file; `vpo_plugin.rewards.files` finds and reads it. It is checked completely before anything is spent.
`task.py` (rows, labels, answers) and `scoring.py` use its Python functions.
"""

import importlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from vpo_plugin.rewards.trace import place_of
from vpo_plugin.rewards.weights import parse_weights

FUNCTIONS = {
    "scorer": "score",
    "group_scorer": "score_group",
    "canonical": "canonical",
    "label_check": "label_check",
    "answers": "answers",
    "front": "front",
    "drawing": "drawing",
    "mutation": "mutation",
}
"""Keys of a spec that name a function, and what the task's module calls it."""


def load_module(name: str, what: str) -> ModuleType:
    """Import a module. Raises ValueError, which begins with `what`, if there is none or it cannot be imported."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{what} cannot be imported: {error}. Modules are looked for on the Python path and in the spec's own "
            "folder."
        ) from error
    except (Exception, SystemExit) as error:  # the module is the user's and may do anything
        said = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
        raise ValueError(f"{what} cannot be imported: {said}{place_of(error)}.") from error


def load_entry_point(path: str) -> Callable[..., Any]:
    """The function that `package.module:function` names. Raises ValueError if there is none."""
    module_name, separator, name = path.partition(":")
    if not (separator and module_name and name):
        raise ValueError(f"The entry point '{path}' must read package.module:function.")
    module = load_module(module_name, f"The entry point '{path}'")
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"The entry point '{path}' names no function: '{module_name}' has no callable '{name}'.")
    return function


CHECKED = {"checked": True}
"""The context for a spec that was validated before: nothing is imported."""


def _importable(path: str, info: ValidationInfo) -> str:
    if info.context != CHECKED:
        load_entry_point(path)
    return path


def _module(name: str, info: ValidationInfo) -> str:
    if info.context != CHECKED:
        load_module(name, f"The module '{name}'")
    return name


EntryPoint = Annotated[str, AfterValidator(_importable)]

Key = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def _rising(value: tuple[float, float]) -> tuple[float, float]:
    if not (math.isfinite(value[0]) and math.isfinite(value[1]) and value[0] < value[1]):
        raise ValueError(f"A range runs from a lower to a higher finite number, not from {value[0]} to {value[1]}.")
    return value


Range = Annotated[tuple[float, float], AfterValidator(_rising)]


@dataclass(frozen=True)
class Column:
    """What scoring knows of an objective."""

    key: str
    low: float
    high: float
    mirrored: bool
    """Lower values are better: a value v becomes the reward low + high - v."""
    clamped: bool
    """Move a finite value outside low to high to the nearer end; otherwise it is an error."""
    gate: float | None
    """A candidate whose reward here is below this scores the floor on every objective."""


class Objective(_Model):
    """One component of the reward vector."""

    key: Key
    description: str
    range: Range = (0.0, 1.0)
    """Lowest and highest value that the scorer may return."""
    direction: Literal["maximize", "minimize"] = "maximize"
    """With `minimize` a value v becomes the reward low + high - v, so a higher reward is always better."""
    function: EntryPoint | None = None
    """A function in trl's signature, `f(prompts, completions, **columns) -> list[float]`, that rewards this objective.
    Either all objectives of a spec have a function, instead of a scorer, or none has."""


class Ragged(_Model):
    """As many objectives as the prompt has, `prefix_1`, `prefix_2`, …, of one kind."""

    prefix: Key
    description: str
    max: int = Field(ge=1)
    """Maximum number of objectives of a prompt."""
    count: EntryPoint
    """`count(label) -> int`: how many objectives the prompt of this label has, 1 to `max`. Default: the task's
    `count`."""
    range: Range = (0.0, 1.0)
    """Lowest and highest value that the scorer may return."""
    direction: Literal["maximize", "minimize"] = "maximize"
    """With `minimize` a value v becomes the reward low + high - v."""


class RaggedObjectives(_Model):
    """Objectives whose number differs between prompts."""

    ragged: Ragged


class Gate(_Model):
    """A candidate whose reward on one objective is too low scores the floor on all of them."""

    objective: str
    at_least: float


class Prompt(_Model):
    """The instructions, which follow a task's prompt or replace a part of it."""

    single: str | None
    """Asks for one candidate, in the format of the spec. With null, the prompt stays as it is, and the whole answer is
    the candidate."""
    multi: str
    """Asks for several candidates; `{candidates}` is their number."""
    replace: str | None = None
    """Regular expression: the instruction replaces its first match in the prompt, which must have one."""

    @field_validator("replace")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"{value!r} is not a regular expression: {error}.") from error
        return value


class Columns(_Model):
    """Which keys of the loader's rows are the prompt and the label."""

    prompt: str = "prompt"
    label: str = "label"


class Dataset(_Model):
    """Where prompts and labels come from."""

    loader: EntryPoint
    """`loader(split, num_rows, seed, **args)` yields mappings for the splits `train` and `test`, the same ones each
    time: a prompt, which is text, and a label, which can be written as JSON. Default: the task's `rows`."""
    args: dict[str, Any] = {}
    columns: Columns = Columns()


class Limits(_Model):
    """What a response may cost."""

    response_chars: int = Field(gt=0)
    """Only this many characters of a response are read."""
    tokens_per_candidate: int = Field(gt=0)
    """A response budget below `candidates` times this many tokens is refused."""
    seconds: float = Field(60.0, gt=0)
    """Time limit for scoring one response. A scorer that takes longer is ended and counts as failed."""
    memory_mb: int | None = Field(None, ge=64)
    """Memory limit of a scoring process. Default: half of the machine's memory."""
    processes: int | None = Field(None, ge=1)
    """Maximum number of scoring processes, for example if each loads a model. Default: one per core."""
    concurrent: int | None = Field(None, ge=1)
    """For a scorer that waits for others, such as judges, and is thread-safe: the number of responses at a time, in
    threads of one process. Default: one response at a time in each scoring process."""


def _form(value: Any) -> str:
    return "ragged form" if isinstance(value, Mapping | RaggedObjectives) else "listed form"


Objectives = Annotated[
    Annotated[list[Objective], Field(min_length=1), Tag("listed form")]
    | Annotated[RaggedObjectives, Tag("ragged form")],
    Discriminator(_form),
]
Weights = Annotated[
    dict[str, float],
    WithJsonSchema(
        {"anyOf": [{"type": "object", "additionalProperties": {"type": "number", "minimum": 0}}, {"type": "string"}]}
    ),
]


class RewardSpec(_Model):
    """A task: its objectives, the deployment weights, the candidate format, the scorer and the data."""

    name: str = Field(min_length=1)
    description: str
    task: Annotated[str, AfterValidator(_module)] | None = None
    """The Python module with the task's functions, found by their names: `score`, `rows`, and optionally `canonical`,
    `label_check`, `answers`, `front`, `drawing`, `mutation` and `count`. A key that names a function,
    `package.module:function`, overrides the task's function; null leaves it out."""
    label: Literal["text", "json", "none"] | None = None
    """How to read a label that the dataset stores as text: pass it to the scorer as it is (`text`) or decode it as JSON
    (`json`). `none` for a scorer that needs no label. Not needed if the rows hold objects."""
    objectives: Objectives
    """The components of the reward vector."""
    weights: Weights = Field({}, validate_default=True)
    """The deployment weights, one for each objective, sum 1; or a linear expression in the objectives, such as
    `(a + 3*b) / 4`. Default: equal weights."""
    outside_range: Literal["error", "clamp"] = "error"
    """How to treat a finite value outside its objective's range."""
    gates: list[Gate] = []
    candidates: int = Field(ge=1)
    """Default number of candidates `m` in a rollout."""
    tag: str | None = Field(None, pattern=r"^[A-Za-z][A-Za-z0-9-]*$")
    """Candidate format: candidate s stands between `<tag_s>` and `</tag_s>`."""
    fence: str | None = Field(None, pattern=r"^[A-Za-z][A-Za-z0-9+#-]*$")
    """Candidate format: candidate s is the s-th fenced code block in this language."""
    separator: str | None = Field(None, pattern=r"^\S(.*\S)?$")
    """Candidate format: lines that contain only this text separate the candidates."""
    thoughts: Literal["before", "inside"] = "before"
    """Where thoughts, `<think>…</think>`, stand: before the answer and not part of it, or inside each candidate, as
    part of it."""
    prompt: Prompt
    scorer: EntryPoint | None
    """`score(candidate: str, label) -> Sequence[float]`, one value per objective. Null if a reward function or an agent
    of the training command gives the rewards."""
    group_scorer: EntryPoint | None = None
    """Instead of a scorer: `score_group(candidates_by_rollout, label)` gets the candidates of all rollouts of a prompt,
    one list per rollout with None for missing and repeated ones, and returns lists of reward vectors in the same
    shape."""
    canonical: EntryPoint | None = None
    """`canonical(candidate: str, label) -> Hashable`: equal for duplicates. Default: the text itself."""
    label_check: EntryPoint | None = None
    """`label_check(label)` raises ValueError if the label lacks what the scorer needs."""
    answers: EntryPoint | None = None
    """`answers(label) -> [(candidate, rewards)]`: known candidates with the rewards they must get."""
    front: EntryPoint | None = None
    """`front(label) -> [(candidate, rewards)]`: every Pareto-optimal reward vector that a candidate can reach."""
    drawing: EntryPoint | None = None
    """`drawing(label, candidates) -> {width, height, tiles, routes}`: the prompt as a grid, and the route of each
    candidate over it, for the report (`vpo_plugin/rewards/drawing.py`)."""
    mutation: EntryPoint | None = None
    """`mutation(candidate, label, random) -> str`: how evolutionary search changes a candidate. It returns the
    beginning of the new candidate, and the policy writes the rest. `random` is a `random.Random`. Default: the prompt
    shows the candidate to the policy."""
    solved: float = Field(1.0, gt=0, le=1)
    """Share of the best reachable reward (1 if there is no front) from which a candidate solves its prompt."""
    dataset: Dataset | None
    """With null, only the training command can use the spec, with its own prompts."""
    limits: Limits

    @model_validator(mode="before")
    @classmethod
    def _from_task(cls, data: Any, info: ValidationInfo) -> Any:
        """The task's functions under the keys that name functions, where the spec does not say otherwise."""
        listed = data.get("objectives") if isinstance(data, dict) else None
        named = isinstance(listed, list) and all(isinstance(one, dict) and "function" in one for one in listed)
        if named or (isinstance(data, dict) and data.get("group_scorer")):
            data = {"scorer": None, **data}  # not the task's
        if not isinstance(data, dict) or not isinstance(data.get("task"), str) or info.context == CHECKED:
            return data
        try:
            module = importlib.import_module(data["task"])
        except (Exception, SystemExit):  # the module is the user's and may do anything
            return data  # the field reports this

        def of_task(given: Any, **functions: str) -> Any:
            found = {
                key: f"{data['task']}:{name}"
                for key, name in functions.items()
                if callable(getattr(module, name, None))
            }
            return {**found, **given} if isinstance(given, dict) else given

        data = of_task(data, **FUNCTIONS)
        if "group_scorer" in data:
            data.setdefault("scorer", None)
        data["dataset"] = of_task(data.get("dataset", {}), loader="rows")
        objectives = data.get("objectives")
        if isinstance(objectives, dict) and "ragged" in objectives:
            data["objectives"] = {**objectives, "ragged": of_task(objectives["ragged"], count="count")}
        return data

    @field_validator("objectives")
    @classmethod
    def _distinct(cls, value: list[Objective] | RaggedObjectives) -> list[Objective] | RaggedObjectives:
        keys = [objective.key for objective in value] if isinstance(value, list) else []
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise ValueError(f"The objective '{twice[0]}' is declared twice.")
        return value

    @field_validator("weights", mode="before")
    @classmethod
    def _from_expression(cls, value: Any, info: ValidationInfo) -> Any:
        if "objectives" not in info.data or not (isinstance(value, str) or value == {}):
            return value
        objectives = info.data["objectives"]
        keys = [objective.key for objective in objectives] if isinstance(objectives, list) else []
        if value == {}:
            return {key: 1 / len(keys) for key in keys}
        terms = parse_weights(value)
        if unknown := sorted(terms.keys() - set(keys)):
            raise ValueError(
                f"The expression names '{unknown[0]}', which is not an objective; the objectives are {keys}."
            )
        return {key: terms.get(key, 0.0) for key in keys}

    @field_validator("weights")
    @classmethod
    def _simplex(cls, value: dict[str, float], info: ValidationInfo) -> dict[str, float]:
        if "objectives" not in info.data:
            return value
        if not isinstance(info.data["objectives"], list):
            if value:
                raise ValueError("Ragged objectives have equal weights: leave the weights out.")
            return value
        keys = [objective.key for objective in info.data["objectives"]]
        if set(value) != set(keys):
            raise ValueError(f"Each objective needs one weight: objectives {sorted(keys)}, weights {sorted(value)}.")
        if any(not math.isfinite(weight) or weight < 0 for weight in value.values()):
            raise ValueError(f"Weights must be finite and not negative; these are {value}.")
        if abs(sum(value.values()) - 1) > 1e-6:
            raise ValueError(f"The weights sum to {sum(value.values()):g}, but must sum to 1.")
        return value

    @field_validator("gates")
    @classmethod
    def _on_objectives(cls, value: list[Gate], info: ValidationInfo) -> list[Gate]:
        objectives = info.data.get("objectives")
        if not isinstance(objectives, list):
            if value and objectives:
                raise ValueError("Ragged objectives differ from prompt to prompt: they cannot have gates.")
            return value
        highest = {objective.key: objective.range[1] for objective in objectives}
        for gate in value:
            if gate.objective not in highest:
                raise ValueError(
                    f"A gate names '{gate.objective}', which is not an objective; the objectives are {list(highest)}."
                )
            if not gate.at_least <= highest[gate.objective]:
                raise ValueError(f"No candidate passes the gate '{gate.objective}': {gate.at_least:g} is out of range.")
        return value

    @field_validator("prompt")
    @classmethod
    def _mentions_format(cls, value: Prompt, info: ValidationInfo) -> Prompt:
        data = info.data
        texts = {"single": value.single, "multi": value.multi}
        if data.get("tag"):
            mark = f"<{data['tag']}_1>"
        elif data.get("fence"):
            mark = f"```{data['fence']}"
        else:
            mark = data.get("separator") or ""
            del texts["single"]  # one candidate needs no separator
        for name, text in texts.items():
            if text is not None and mark not in text:
                what = "tag" if data.get("tag") else "code fence" if data.get("fence") else "separator"
                raise ValueError(f"The '{name}' prompt does not mention its {what} {mark}.")
        return value

    @model_validator(mode="after")
    def _one_format(self) -> "RewardSpec":
        given = [key for key in ("tag", "fence", "separator") if getattr(self, key) is not None]
        if len(given) != 1:
            has = f"this one has {' and '.join(given)}" if given else "the key 'tag' is missing"
            raise ValueError(f"A spec has one candidate format, 'tag', 'fence' or 'separator': {has}.")
        return self

    @model_validator(mode="after")
    def _one_scorer(self) -> "RewardSpec":
        named = self.functions
        given = ["scorer"] * (self.scorer is not None) + ["group_scorer"] * (self.group_scorer is not None)
        given += ["objectives with a function"] * bool(named)
        if len(given) > 1:
            raise ValueError(f"Candidates are scored in one way, and this spec has {' and '.join(given)}.")
        if named and len(named) < len(self.objective_keys):
            without = sorted(set(self.objective_keys) - set(named))
            raise ValueError(f"The objective '{without[0]}' has no function, but others do: name one for each.")
        return self

    @property
    def functions(self) -> dict[str, str]:
        """The functions in trl's signature, by the objectives that they reward; empty where there are none."""
        return {objective.key: objective.function for objective in self._listed if objective.function}

    @property
    def _listed(self) -> list[Objective]:
        return self.objectives if isinstance(self.objectives, list) else []

    @property
    def scores(self) -> bool:
        """Whether the spec itself says how candidates are scored."""
        return bool(self.scorer or self.group_scorer or self.functions)

    @property
    def ragged(self) -> Ragged | None:
        """The objectives' kind, where prompts differ in how many they have."""
        return self.objectives.ragged if isinstance(self.objectives, RaggedObjectives) else None

    @property
    def objective_keys(self) -> tuple[str, ...]:
        """The objectives' keys; of ragged ones all that a prompt may have."""
        if ragged := self.ragged:
            return tuple(f"{ragged.prefix}_{number}" for number in range(1, ragged.max + 1))
        return tuple(objective.key for objective in self._listed)

    @property
    def objective_weights(self) -> tuple[float, ...] | None:
        """The deployment weights in the order of the objectives; None if ragged: all objectives weigh the same."""
        return None if self.ragged else tuple(self.weights[key] for key in self.objective_keys)

    def weights_of(self, objectives: int) -> np.ndarray:
        """The deployment weights of a prompt with this many objectives, shape (objectives,), float64."""
        return np.full(objectives, 1 / objectives) if self.ragged else np.array(self.objective_weights)

    def columns(self, objectives: int) -> list[Column]:
        """What scoring knows of the first `objectives` objectives."""
        clamped = self.outside_range == "clamp"
        if ragged := self.ragged:
            mirrored = ragged.direction == "minimize"
            return [Column(key, *ragged.range, mirrored, clamped, None) for key in self.objective_keys[:objectives]]
        gates: dict[str, float] = {}
        for gate in self.gates:
            gates[gate.objective] = max(gate.at_least, gates.get(gate.objective, -math.inf))
        return [Column(o.key, *o.range, o.direction == "minimize", clamped, gates.get(o.key)) for o in self._listed]


def json_schema() -> dict[str, Any]:
    """The JSON schema of spec.yaml, for editors: reward_specs/schema.json.

    A spec that extends another may omit what it inherits, also inside `prompt`, `dataset` and `limits`. A spec with a
    task may omit what the task's module has.
    """
    schema = RewardSpec.model_json_schema()
    for section in ("Prompt", "Dataset", "Limits"):
        schema["$defs"][section].pop("required")
    schema["$defs"]["Ragged"]["required"].remove("count")
    schema["properties"] = {
        "extends": {
            "type": "string",
            "description": "Name or path of a spec whose keys this one inherits, mapping by mapping.",
        },
        **schema["properties"],
    }
    needed = schema.pop("required")
    without = [key for key in needed if key != "scorer"]
    of_task = ["task", *(key for key in without if key != "dataset")]
    functions = {"properties": {"objectives": {"type": "array", "items": {"required": ["function"]}}}}
    schema["anyOf"] = [{"required": ["extends", "name"]}, {"required": of_task}, {"required": needed}]
    schema["anyOf"] += [{"required": [*without, "group_scorer"]}, {"required": without, **functions}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
