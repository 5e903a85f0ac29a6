"""The candidate format of a spec: asking for candidates, finding them in a response, and writing a response."""

import re
from collections.abc import Sequence

from vpo_plugin.rewards.candidates import answer_of, parse_candidates, parse_fenced, parse_separated
from vpo_plugin.rewards.spec import RewardSpec


def render_prompt(spec: RewardSpec, prompt: str, candidates: int) -> str:
    """A task's prompt with the instruction for this many candidates; unchanged if there is no instruction for one.

    Raises ValueError if the number is below 1, or if the prompt has no match that the instruction should replace.
    """
    if candidates < 1:
        raise ValueError(f"A prompt asks for at least 1 candidate, not {candidates}.")
    text = spec.prompt.single if candidates == 1 else spec.prompt.multi
    if text is None:
        return prompt
    instruction = text.strip().replace("{candidates}", str(candidates))
    if spec.prompt.replace is None:
        return f"{prompt.rstrip()}\n{instruction}\n"
    rendered, replaced = re.subn(spec.prompt.replace, lambda _: instruction, prompt, count=1)
    if not replaced:
        raise ValueError(
            f"The prompt {prompt[:80]!r} has no match for {spec.prompt.replace!r}, which the instruction of the "
            f"spec '{spec.name}' is to replace."
        )
    return rendered


def parse(spec: RewardSpec, response: str, candidates: int) -> list[str | None]:
    """The candidates of a response in the spec's format, None for missing ones; never raises on any text.

    Thoughts before the answer do not count, nor for `limits.response_chars`. ValueError if `candidates` is below 1.
    """
    if spec.thoughts == "before":
        response = answer_of(response)
    elif spec.tag and not _is_whole(spec, candidates):
        response = answer_of(response, spec.tag)
    text = response[: spec.limits.response_chars]
    if _is_whole(spec, candidates):
        return [text.strip() or None]
    if spec.tag:
        return parse_candidates(text, spec.tag, candidates)
    if spec.fence:
        return parse_fenced(text, spec.fence, candidates)
    return parse_separated(text, str(spec.separator), candidates)


def write_response(spec: RewardSpec, texts: Sequence[str], candidates: int | None = None) -> str:
    """A response with these candidates in the spec's format, to a prompt that asks for `candidates` (default: their
    number)."""
    if _is_whole(spec, candidates or len(texts)):
        return texts[0]
    if spec.tag:
        return "\n".join(f"<{spec.tag}_{s}> {text} </{spec.tag}_{s}>" for s, text in enumerate(texts, start=1))
    if spec.fence:
        fences = ["`" * max([3, *(len(run) + 1 for run in re.findall("```+", text))]) for text in texts]
        return "\n".join(f"{mark}{spec.fence}\n{text}\n{mark}" for mark, text in zip(fences, texts, strict=True))
    return f"\n{spec.separator}\n".join(texts)


def start_response(spec: RewardSpec, text: str, earlier: Sequence[str] = (), candidates: int | None = None) -> str:
    """The beginning of a response in the spec's format, to a prompt that asks for `candidates` (default: their number):
    complete candidates, and one that begins with this text."""
    if _is_whole(spec, candidates or len(earlier) + 1):
        return text
    if spec.tag:  # what tokenizers decode next begins with the space
        last = f"<{spec.tag}_{len(earlier) + 1}> {text}".rstrip()
    else:
        last = f"```{spec.fence}\n{text}" if spec.fence else text
    between = "\n" if spec.tag or spec.fence else f"\n{spec.separator}\n"
    return f"{write_response(spec, earlier, candidates)}{between}{last}" if earlier else last


def _is_whole(spec: RewardSpec, candidates: int) -> bool:
    return candidates == 1 and spec.prompt.single is None
