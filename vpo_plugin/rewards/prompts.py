"""Prompts of a task: a text, or a chat as the messages of an OpenAI-like interface."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from vpo_plugin.rewards.formats import render_prompt
from vpo_plugin.rewards.spec import RewardSpec

Prompt = str | list[dict[str, Any]]
MARK = '{"vpo_chat": '  # begins a chat that was packed here


def ask(spec: RewardSpec, prompt: Any, candidates: int) -> Prompt:
    """A prompt with the instruction for this many candidates; in a chat it is added to the last user message.

    Raises ValueError if it is not a prompt, or see `render_prompt`.
    """
    return with_instruction(prompt, lambda text: render_prompt(spec, text, candidates))


def with_instruction(prompt: Any, render: Callable[[str], str]) -> Prompt:
    """A prompt in any shape that the host accepts, with the text of its task rewritten.

    Args:
        prompt: a text, or a chat: messages whose content is a text, or a list of parts such as
            `{"type": "text", "text": …}` and `{"type": "image"}`.
        render: maps the text of the task to the text with the instruction.
    Returns:
        A new prompt, changed in the last text of its last user message. Keys whose value is null, which a dataset's
        column adds, are left out.
    Raises:
        ValueError: it is not such a prompt, or has no user message; the message says what it is instead.
    """
    check_prompt(prompt)
    if isinstance(prompt, str):
        return render(prompt)
    chat = [_without_nulls(message) for message in prompt]
    last = max(place for place, message in enumerate(chat) if message["role"] == "user")
    content = chat[last].get("content", "")
    if isinstance(content, list):
        texts = [place for place, part in enumerate(content) if "text" in part]
        if texts:
            part = {**content[texts[-1]], "text": render(content[texts[-1]]["text"])}
            content = [*content[: texts[-1]], part, *content[texts[-1] + 1 :]]
        else:
            content = [*content, {"type": "text", "text": render("").lstrip("\n")}]
    else:
        content = render(content)
    return [*chat[:last], {**chat[last], "content": content}, *chat[last + 1 :]]


def check_prompt(prompt: Any) -> None:
    """Raises ValueError, in one sentence, unless this is a text or a chat with a user message."""
    if prompt is None:
        raise ValueError("The prompt is null.")
    if isinstance(prompt, str) and not prompt.strip():
        raise ValueError("The prompt is empty.")
    if not isinstance(prompt, str):
        _check_chat(prompt)
    try:
        json.dumps(prompt, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        broken = ascii(error.object[error.start])
        raise ValueError(f"The prompt holds half of a character ({broken}), which no tokenizer reads.") from error
    except TypeError as error:
        raise ValueError(f"The chat cannot be written as JSON: {error}.") from error


def _check_chat(prompt: Any) -> None:
    if not isinstance(prompt, list) or not all(isinstance(message, Mapping) for message in prompt):
        raise ValueError(f"The prompt is neither a text nor a list of messages: {str(prompt)[:80]!r}.")
    if not prompt:
        raise ValueError("The chat has no messages.")
    for message in prompt:
        if not isinstance(message.get("role"), str):
            raise ValueError(f"The chat has a message with the keys {sorted(message)}: it needs 'role' and 'content'.")
        content = message.get("content")
        parts = isinstance(content, list) and all(isinstance(part, Mapping) for part in content)
        if not (content is None or isinstance(content, str) or parts):
            raise ValueError(
                f"The chat has a message whose content is neither a text nor parts: {str(content)[:80]!r}."
            )
    if not any(message["role"] == "user" for message in prompt):
        raise ValueError("The chat has no user message to which the instruction could be added.")


def _without_nulls(message: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in message.items() if value is not None}
    if isinstance(content := kept.get("content"), list):
        kept["content"] = [{key: value for key, value in part.items() if value is not None} for part in content]
    return kept


def pack_prompt(prompt: Any) -> str:
    """A prompt as text for a dataset's column, which `read_prompt` restores."""
    if isinstance(prompt, str):
        return prompt
    return f"{MARK}{json.dumps([_without_nulls(message) for message in prompt], ensure_ascii=False)}}}"


def read_prompt(text: str) -> Prompt:
    """The prompt that `pack_prompt` turned into text."""
    if not text.startswith(MARK):
        return text
    chat: list[dict[str, Any]] = json.loads(text)["vpo_chat"]
    return chat


def shown_prompt(text: str) -> str:
    """A packed prompt for people: the messages of a chat one below the other, each after its role."""
    prompt = read_prompt(text)
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{message['role']}: {_text(message.get('content', ''))}" for message in prompt)


def images(prompt: Prompt) -> bool:
    """Whether a chat has parts that are not text."""
    if isinstance(prompt, str):
        return False
    contents = [message.get("content") for message in prompt]
    return any("text" not in part for content in contents if isinstance(content, list) for part in content)


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return " ".join(part.get("text") or f"[{part.get('type', 'part')}]" for part in content)
