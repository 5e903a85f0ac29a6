"""The prompts of a run as the policy reads them: with the instruction for m candidates, in the chat template."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from vpo_plugin.advantages import goal_weights, write_goal
from vpo_plugin.openrlhf.settings import current_settings
from vpo_plugin.rewards import load_spec
from vpo_plugin.rewards.formats import render_prompt


def with_instruction(prompt: Any, render: Callable[[str], str]) -> Any:
    """A prompt in any shape that the host takes, with the text of its task rewritten.

    Args:
        prompt: a text, or a chat: messages whose content is a text, or a list of parts such as
            `{"type": "text", "text": …}` and `{"type": "image"}`.
        render: the text of the task to the text with the instruction.
    Returns:
        The prompt, changed in its last user message and there in the last text; what it was made of stays as it is.
    Raises:
        ValueError: there is no user message, or it is no such prompt.
    """
    if isinstance(prompt, str):
        return render(prompt)
    if not isinstance(prompt, list) or not all(isinstance(message, Mapping) for message in prompt):
        raise ValueError(f"The prompt is neither a text nor a list of messages: {str(prompt)[:80]!r}.")
    users = [place for place, message in enumerate(prompt) if message.get("role") == "user"]
    if not users:
        raise ValueError("The chat has no message of the user, to which the instruction could be added.")
    last = users[-1]
    content = prompt[last].get("content")
    if isinstance(content, list):
        texts = [place for place, part in enumerate(content) if part.get("text") is not None]
        if texts:
            part = {**content[texts[-1]], "text": render(content[texts[-1]]["text"])}
            content = [*content[: texts[-1]], part, *content[texts[-1] + 1 :]]
        else:
            content = [*content, {"type": "text", "text": render("").lstrip("\n")}]
    else:
        content = render(content or "")
    return [*prompt[:last], {**prompt[last], "content": content}, *prompt[last + 1 :]]


def patch_prompts(module: Any) -> None:
    """Wrap `preprocess_data` of the host's `openrlhf.datasets.prompts_dataset`."""
    run = current_settings()
    spec = load_spec(str(run.spec))
    original = module.preprocess_data

    def preprocess_data(
        data: Any,
        input_template: Any = None,
        input_key: str = "input",
        label_key: str | None = None,
        apply_chat_template: Any = None,
    ) -> Any:
        label = "" if label_key is None else data[label_key]

        def render(text: str) -> str:
            text = render_prompt(spec, text, run.candidates)
            if run.goal is None:
                return text
            alpha, seed = run.goal
            keys = spec.objective_keys
            return write_goal(text, keys, goal_weights(label, len(keys), alpha=alpha, seed=seed))

        if apply_chat_template and run.chat_template_kwargs:
            apply_chat_template = partial(apply_chat_template, **run.chat_template_kwargs)
        data = {**data, input_key: with_instruction(data[input_key], render)}
        return original(data, input_template, input_key, label_key, apply_chat_template)

    module.preprocess_data = preprocess_data
