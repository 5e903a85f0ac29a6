"""The reward specification: what a task rewards, how candidates are asked for, and who scores them.

A spec is a YAML file; `vpo_plugin.rewards.files` finds and reads it. It is checked as a whole before anything is spent.
"""

import functools
import importlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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

from vpo_plugin.rewards.candidates import parse_candidates, parse_fenced, parse_separated
from vpo_plugin.rewards.drawing import draw
from vpo_plugin.rewards.scoring import Column, ScoredResponse, read_label, score_candidates
from vpo_plugin.rewards.weights import parse_weights


@functools.cache
def load_entry_point(path: str) -> Callable[..., Any]:
    """The function that `package.module:function` names. Raises ValueError if there is none."""
    module_name, separator, name = path.partition(":")
    if not (separator and module_name and name):
        raise ValueError(f"The entry point '{path}' must read package.module:function.")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"The entry point '{path}' cannot be imported: {error}. Modules are looked for on the Python "
            "path and in the spec's own folder."
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"The entry point '{path}' names no function: '{module_name}' has no callable '{name}'.")
    return function


def _importable(path: str) -> str:
    load_entry_point(path)
    return path


EntryPoint = Annotated[str, AfterValidator(_importable)]

Key = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def _rising(value: tuple[float, float]) -> tuple[float, float]:
    if not (math.isfinite(value[0]) and math.isfinite(value[1]) and value[0] < value[1]):
        raise ValueError(f"A range runs from a lower to a higher finite number, not from {value[0]} to {value[1]}.")
    return value


Range = Annotated[tuple[float, float], AfterValidator(_rising)]


class Objective(_Model):
    """One component of the reward vector."""

    key: Key
    description: str
    range: Range = (0.0, 1.0)
    """Lowest and highest value that the scorer may give."""
    direction: Literal["maximize", "minimize"] = "maximize"
    """With `minimize` a value v becomes the reward low + high - v: rewards are always better when higher."""


class Ragged(_Model):
    """As many objectives as the prompt has, `prefix_1`, `prefix_2`, …, of one kind."""

    prefix: Key
    description: str
    max: int = Field(ge=1)
    """Most objectives that a prompt may have."""
    count: EntryPoint
    """`count(label) -> int`: how many objectives the prompt of this label has, 1 to `max`."""
    range: Range = (0.0, 1.0)
    """Lowest and highest value that the scorer may give."""
    direction: Literal["maximize", "minimize"] = "maximize"
    """With `minimize` a value v becomes the reward low + high - v."""


class RaggedObjectives(_Model):
    """Objectives that differ in number from prompt to prompt."""

    ragged: Ragged


class Gate(_Model):
    """A candidate whose reward on one objective is too low scores the floor on all of them."""

    objective: str
    at_least: float


class Prompt(_Model):
    """The instructions put after a task's prompt, or in the place of a part of it."""

    single: str
    """Asks for one candidate, in the format of the spec."""
    multi: str
    """Asks for several; `{candidates}` stands for their number."""
    replace: str | None = None
    """Regular expression: the instruction takes the place of its first match in the prompt, which must have one."""

    @field_validator("replace")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"{value!r} is not a regular expression: {error}.") from error
        return value


class Columns(_Model):
    """Which keys of the loader's rows hold what."""

    prompt: str = "prompt"
    label: str = "label"


class Dataset(_Model):
    """Where prompts and labels come from."""

    loader: EntryPoint
    """`loader(split, num_rows, seed, **args)` yields mappings for the splits `train` and `test`, the same ones each
    time: a prompt, which is text, and a label, which can be written as JSON."""
    args: dict[str, Any] = {}
    columns: Columns = Columns()


class Limits(_Model):
    """What a response may cost."""

    response_chars: int = Field(gt=0)
    """What comes after this many characters of a response is not read."""
    tokens_per_candidate: int = Field(gt=0)
    """A response budget below `candidates` times this many tokens is refused."""
    seconds: float = Field(60.0, gt=0)
    """Time for scoring one response. It is checked between candidates, and exceeding it is an error."""


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
    objectives: Objectives
    """The components of the reward vector."""
    weights: Weights = Field({}, validate_default=True)
    """The deployment weights, one for each objective, sum 1; or a linear expression in the objectives, such as
    `(a + 3*b) / 4`. Default: all alike."""
    outside_range: Literal["error", "clamp"] = "error"
    """What happens to a finite value outside its objective's range."""
    gates: list[Gate] = []
    candidates: int = Field(ge=1)
    """Candidates `m` that a rollout writes unless told otherwise."""
    tag: str | None = Field(None, pattern=r"^[A-Za-z][A-Za-z0-9-]*$")
    """Candidate format: candidate s stands between `<tag_s>` and `</tag_s>`."""
    fence: str | None = Field(None, pattern=r"^[A-Za-z][A-Za-z0-9+#-]*$")
    """Candidate format: candidate s is the s-th fenced code block in this language."""
    separator: str | None = Field(None, pattern=r"^\S(.*\S)?$")
    """Candidate format: candidates are separated by lines that hold this text alone."""
    prompt: Prompt
    scorer: EntryPoint
    """`scorer(candidate: str, label) -> Sequence[float]`, one value an objective."""
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
    """`mutation(candidate, label, random) -> str`: how evolutionary search changes a candidate: the text with which the
    new one begins, and the policy writes the rest. `random` is a `random.Random`. Default: the policy is shown the
    candidate."""
    solved: float = Field(1.0, gt=0, le=1)
    """Share of the best reachable reward (of 1 where there is no front) at which a candidate solves its prompt."""
    dataset: Dataset
    limits: Limits

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
            raise ValueError(f"The expression names '{unknown[0]}', which is no objective; they are {keys}.")
        return {key: terms.get(key, 0.0) for key in keys}

    @field_validator("weights")
    @classmethod
    def _simplex(cls, value: dict[str, float], info: ValidationInfo) -> dict[str, float]:
        if "objectives" not in info.data:
            return value
        if not isinstance(info.data["objectives"], list):
            if value:
                raise ValueError("Ragged objectives all weigh alike: leave the weights out.")
            return value
        keys = [objective.key for objective in info.data["objectives"]]
        if set(value) != set(keys):
            raise ValueError(f"Each objective needs one weight: objectives {sorted(keys)}, weights {sorted(value)}.")
        if any(not math.isfinite(weight) or weight < 0 for weight in value.values()):
            raise ValueError(f"Weights are finite and not negative; these are {value}.")
        if abs(sum(value.values()) - 1) > 1e-6:
            raise ValueError(f"The weights sum to {sum(value.values()):g}, they must sum to 1.")
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
                raise ValueError(f"A gate names '{gate.objective}', which is no objective; they are {list(highest)}.")
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
            if mark not in text:
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

    @property
    def ragged(self) -> Ragged | None:
        """The objectives' kind, where prompts differ in how many they have."""
        return self.objectives.ragged if isinstance(self.objectives, RaggedObjectives) else None

    @property
    def objective_keys(self) -> tuple[str, ...]:
        """The objectives' keys; of ragged ones all that a prompt may have."""
        if isinstance(self.objectives, RaggedObjectives):
            ragged = self.objectives.ragged
            return tuple(f"{ragged.prefix}_{number}" for number in range(1, ragged.max + 1))
        return tuple(objective.key for objective in self.objectives)

    @property
    def objective_weights(self) -> tuple[float, ...] | None:
        """The deployment weights in the order of the objectives; None if ragged: all that a prompt has weigh alike."""
        return None if self.ragged else tuple(self.weights[key] for key in self.objective_keys)

    def weights_of(self, objectives: int) -> np.ndarray:
        """The deployment weights of a prompt with this many objectives, shape (objectives,), float64."""
        return np.full(objectives, 1 / objectives) if self.ragged else np.array(self.objective_weights)

    def render_prompt(self, prompt: str, candidates: int) -> str:
        """A task's prompt with the instruction for this many candidates.

        Raises ValueError if that is below 1, or if the prompt has nothing that the instruction is to replace.
        """
        if candidates < 1:
            raise ValueError(f"A prompt asks for at least 1 candidate, not {candidates}.")
        text = self.prompt.single if candidates == 1 else self.prompt.multi
        instruction = text.strip().replace("{candidates}", str(candidates))
        if self.prompt.replace is None:
            return f"{prompt.rstrip()}\n{instruction}\n"
        rendered, replaced = re.subn(self.prompt.replace, lambda _: instruction, prompt, count=1)
        if not replaced:
            raise ValueError(
                f"The prompt {prompt[:80]!r} has no match for {self.prompt.replace!r}, which the instruction of the "
                f"spec '{self.name}' is to replace."
            )
        return rendered

    def parse(self, response: str, candidates: int) -> list[str | None]:
        """The candidates of a response in the spec's format, None where one is missing; never raises on any text."""
        text = response[: self.limits.response_chars]
        if self.tag:
            return parse_candidates(text, self.tag, candidates)
        if self.fence:
            return parse_fenced(text, self.fence, candidates)
        return parse_separated(text, str(self.separator), candidates)

    def write_response(self, candidates: Sequence[str]) -> str:
        """The response that holds these candidates in the spec's format."""
        if self.tag:
            return "\n".join(f"<{self.tag}_{s}> {text} </{self.tag}_{s}>" for s, text in enumerate(candidates, start=1))
        if self.fence:
            return "\n".join(f"```{self.fence}\n{text}\n```" for text in candidates)
        return f"\n{self.separator}\n".join(candidates)

    def start_response(self, candidate: str, earlier: Sequence[str] = ()) -> str:
        """The beginning of a response in the spec's format: whole candidates, and one that begins with this text."""
        if self.tag:  # what tokenizers decode next begins with the space
            last = f"<{self.tag}_{len(earlier) + 1}> {candidate}".rstrip()
        else:
            last = f"```{self.fence}\n{candidate}" if self.fence else candidate
        before = self.write_response(earlier)
        between = "\n" if self.tag or self.fence else f"\n{self.separator}\n"
        return f"{before}{between}{last}" if earlier else last

    def rows(self, split: str, num_rows: int, seed: int) -> Iterator[dict[str, Any]]:
        """Rows `{"prompt": str, "label": JSON-serialisable}`; the same arguments give the same rows.

        Raises ValueError if a row of the loader lacks one of the spec's columns.
        """
        columns = self.dataset.columns
        loader = load_entry_point(self.dataset.loader)
        for number, row in enumerate(loader(split, num_rows, seed, **self.dataset.args)):
            for column in (columns.prompt, columns.label):
                if not isinstance(row, Mapping) or column not in row:
                    has = f"it has {sorted(row)}" if isinstance(row, Mapping) else f"it is {str(row)[:80]!r}"
                    raise ValueError(
                        f"Row {number} of the split '{split}' of the spec '{self.name}' has no '{column}'; {has}."
                    )
            yield {"prompt": row[columns.prompt], "label": row[columns.label]}

    def check_label(self, label: object) -> None:
        """Raises ValueError, in one sentence, if a label (or its JSON text) lacks what the scorer needs."""
        decoded = read_label(label)
        if self.label_check:
            load_entry_point(self.label_check)(decoded)
        self.columns_of(decoded)

    def score_response(self, response: str, label: object, candidates: int) -> ScoredResponse:
        """The reward matrix of a response, shape (candidates, k). `label` may be its JSON text.

        Raises ValueError for values that are not finite or out of range, TimeoutError for a scorer that exceeds
        `limits.seconds`; what the scorer raises propagates.
        """
        decoded = read_label(label)
        columns = self.columns_of(decoded)
        return score_candidates(
            self.parse(response, candidates),
            decoded,
            scorer=load_entry_point(self.scorer),
            canonical=load_entry_point(self.canonical) if self.canonical else None,
            columns=columns,
            weights=self.weights_of(len(columns)).tolist(),
            seconds=self.limits.seconds,
        )

    def known_answers(self, label: object) -> list[tuple[str, Sequence[float]]]:
        """Candidates with the rewards they must get, those of the front among them; empty where the task names none."""
        decoded = read_label(label)
        return [answer for path in (self.answers, self.front) if path for answer in load_entry_point(path)(decoded)]

    def pareto_front(self, label: object) -> np.ndarray | None:
        """Every Pareto-optimal reward vector that a candidate can reach, shape (vectors, k), where the task can tell.

        Where no candidate reaches anything, it is the floor alone.
        """
        if self.front is None:
            return None
        decoded = read_label(label)
        vectors = [rewards for _, rewards in load_entry_point(self.front)(decoded)]
        return np.array(vectors or [[column.low for column in self.columns_of(decoded)]], dtype=np.float64)

    def best_reward(self, label: object) -> float | None:
        """The best deployment reward that any candidate can reach, where the task can tell."""
        front = self.pareto_front(label)
        return None if front is None else float((front @ self.weights_of(front.shape[1])).max())

    def best_set_reward(
        self, label: object, *, alpha: float = 1.0, num_weights: int | None = None, seed: int = 0
    ) -> float | None:
        """The set reward of the whole front, which no set of candidates exceeds, where the task can tell."""
        import torch

        from vpo_plugin.advantages import RewardBatch

        front = self.pareto_front(label)
        if front is None:
            return None
        generator = torch.Generator().manual_seed(seed)
        matrix = torch.from_numpy(front)[None, None]
        return float(RewardBatch(matrix, alpha=alpha, num_weights=num_weights, generator=generator).set_rewards)

    def draw(self, label: object, candidates: Iterable[str]) -> dict[str, Any] | None:
        """A prompt with its candidates as `drawing.draw` returns it; None where the spec draws nothing.

        Raises ValueError if what the spec's function returns is no drawing; what it raises propagates.
        """
        return draw(load_entry_point(self.drawing), read_label(label), candidates) if self.drawing else None

    def columns(self, objectives: int) -> list[Column]:
        """What scoring knows of the first `objectives` objectives."""
        clamped = self.outside_range == "clamp"
        if isinstance(self.objectives, RaggedObjectives):
            ragged = self.objectives.ragged
            mirrored = ragged.direction == "minimize"
            return [Column(key, *ragged.range, mirrored, clamped, None) for key in self.objective_keys[:objectives]]
        gates: dict[str, float] = {}
        for gate in self.gates:
            gates[gate.objective] = max(gate.at_least, gates.get(gate.objective, -math.inf))
        return [Column(o.key, *o.range, o.direction == "minimize", clamped, gates.get(o.key)) for o in self.objectives]

    def columns_of(self, label: object) -> list[Column]:
        """The columns of a label's prompt. Raises ValueError if a ragged spec's label has too many, or none."""
        if self.ragged is None:
            return self.columns(len(self.objective_keys))
        count = load_entry_point(self.ragged.count)(label)
        if not isinstance(count, int) or not 1 <= count <= self.ragged.max:
            raise ValueError(f"A label has {count!r} objectives, the spec '{self.name}' allows 1 to {self.ragged.max}.")
        return self.columns(count)


def json_schema() -> dict[str, Any]:
    """The JSON schema of spec.yaml, for editors: reward_specs/schema.json.

    A spec that extends another may leave out what it inherits, also inside of `prompt`, `dataset` and `limits`.
    """
    schema = RewardSpec.model_json_schema()
    for section in ("Prompt", "Dataset", "Limits"):
        schema["$defs"][section].pop("required")
    schema["properties"] = {
        "extends": {
            "type": "string",
            "description": "Name or path of a spec whose keys this one inherits, mapping by mapping.",
        },
        **schema["properties"],
    }
    schema["anyOf"] = [{"required": ["extends", "name"]}, {"required": schema.pop("required")}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
