"""The candidate format of a spec: asking for candidates, finding them in a response, and writing a response."""

import re
from collections.abc import Sequence

from vpo_plugin.rewards.candidates import parse_candidates, parse_fenced, parse_separated
from vpo_plugin.rewards.spec import RewardSpec


def render_prompt(spec: RewardSpec, prompt: str, candidates: int) -> str:
    """A task's prompt with the instruction for this many candidates.

    Raises ValueError if that is below 1, or if the prompt has nothing that the instruction is to replace.
    """
    if candidates < 1:
        raise ValueError(f"A prompt asks for at least 1 candidate, not {candidates}.")
    text = spec.prompt.single if candidates == 1 else spec.prompt.multi
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
    """The candidates of a response in the spec's format, None where one is missing; never raises on any text."""
    text = response[: spec.limits.response_chars]
    if spec.tag:
        return parse_candidates(text, spec.tag, candidates)
    if spec.fence:
        return parse_fenced(text, spec.fence, candidates)
    return parse_separated(text, str(spec.separator), candidates)


def write_response(spec: RewardSpec, candidates: Sequence[str]) -> str:
    """The response that holds these candidates in the spec's format."""
    if spec.tag:
        return "\n".join(f"<{spec.tag}_{s}> {text} </{spec.tag}_{s}>" for s, text in enumerate(candidates, start=1))
    if spec.fence:
        return "\n".join(f"```{spec.fence}\n{text}\n```" for text in candidates)
    return f"\n{spec.separator}\n".join(candidates)


def start_response(spec: RewardSpec, candidate: str, earlier: Sequence[str] = ()) -> str:
    """The beginning of a response in the spec's format: whole candidates, and one that begins with this text."""
    if spec.tag:  # what tokenizers decode next begins with the space
        last = f"<{spec.tag}_{len(earlier) + 1}> {candidate}".rstrip()
    else:
        last = f"```{spec.fence}\n{candidate}" if spec.fence else candidate
    before = write_response(spec, earlier)
    between = "\n" if spec.tag or spec.fence else f"\n{spec.separator}\n"
    return f"{before}{between}{last}" if earlier else last
