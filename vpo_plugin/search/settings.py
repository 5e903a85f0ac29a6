"""Settings of `vpo evaluate` and `vpo search` for the policy, the prompts and the sampling."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Procedure = Literal["best_of_k", "refinement", "evolution"]
"""How a search proposes candidates."""


class PolicySettings(BaseModel):
    """The policy to sample, the prompts, and the sampling."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(description="Model folder or Hugging Face id; with --url the model's name there.")
    spec: str = Field(description="Reward specification, by name or path.")
    candidates: int | None = Field(None, ge=1, description="Candidates in one response; default: the spec's m.")
    prompts: int | None = Field(None, ge=1, description="Number of held-out prompts; default: 100, or all of --data.")
    data: str | None = Field(
        None, description="Dataset instead of the specification's held-out prompts: a file, a folder, or a hub id."
    )
    split: str | None = Field(None, description="Split of --data; default: test, or the only one.")
    input_key: str = Field("input", description="Column of --data with the prompt, a text or a chat.")
    label_key: str = Field("label", description="Column of --data with the label.")
    max_new_tokens: int | None = Field(
        None, ge=1, description="Longest response, in tokens; default: the specification's budget."
    )
    temperature: float = Field(1.0, ge=0, description="Sampling temperature.")
    chat_template_kwargs: dict[str, Any] = Field(
        {}, description='Options of the chat template, such as {"enable_thinking": false} for Qwen3.'
    )
    seed: int = Field(0, ge=0, description="Seed of the prompt choice and of sampling.")
    tell_weights: bool = Field(
        False, description="State random objective weights in each prompt, as in goal_conditioned training."
    )
    url: str | None = Field(
        None, description="OpenAI-compatible endpoint, such as http://localhost:8000/v1; default: vLLM in this process."
    )
    api: Literal["chat", "completions"] = Field("chat", description="The endpoint's interface.")
    at_once: int = Field(32, ge=1, description="Concurrent requests to the endpoint.")
    timeout: float = Field(600.0, gt=0, description="Timeout of one request to the endpoint, in seconds.")
    on_scorer_error: Literal["raise", "zero"] = Field(
        "raise", description="If the scorer fails on a response: stop (raise), or score zero and count it (zero)."
    )
    unsafe_no_sandbox: bool = Field(False, description="Run scored programs without a sandbox.")
