"""What `vpo evaluate` and `vpo search` are told of the policy, the prompts and the sampling."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Procedure = Literal["best_of_k", "refinement", "evolution"]
"""How a search proposes candidates."""


class PolicySettings(BaseModel):
    """Which policy is asked for what."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(description="Model folder or Hugging Face id; with --url the model's name there.")
    spec: str = Field(description="Reward specification, by name or path.")
    candidates: int | None = Field(None, ge=1, description="Candidates in one response; the specification's m if none.")
    prompts: int | None = Field(None, ge=1, description="Held-out prompts; 100, or all of --data, if none.")
    data: str | None = Field(
        None, description="Dataset instead of the specification's held-out prompts: a file, a folder, or a hub id."
    )
    split: str | None = Field(None, description="Split of --data; test, or the only one, if none.")
    input_key: str = Field("input", description="Column of --data with the prompt, a text or a chat.")
    label_key: str = Field("label", description="Column of --data with the label.")
    max_new_tokens: int | None = Field(
        None, ge=1, description="Longest response, in tokens; the specification's budget if none."
    )
    temperature: float = Field(1.0, ge=0, description="Sampling temperature.")
    chat_template_kwargs: dict[str, Any] = Field(
        {}, description='Options of the chat template, such as {"enable_thinking": false} for Qwen3.'
    )
    seed: int = Field(0, ge=0, description="Seed of the choice of prompts and of the sampling.")
    tell_weights: bool = Field(
        False, description="Tell each prompt random objective weights, as goal_conditioned was trained."
    )
    url: str | None = Field(
        None, description="OpenAI-compatible endpoint, such as http://localhost:8000/v1; vLLM in this process if none."
    )
    api: Literal["chat", "completions"] = Field("chat", description="The endpoint's interface.")
    at_once: int = Field(32, ge=1, description="Requests to the endpoint at a time.")
    timeout: float = Field(600.0, gt=0, description="Seconds for one request to the endpoint.")
    on_scorer_error: Literal["raise", "zero"] = Field(
        "raise", description="A response whose scorer fails: stop (raise), or score zero and count it."
    )
    unsafe_no_sandbox: bool = Field(False, description="Run programs that are scored without a boundary.")
