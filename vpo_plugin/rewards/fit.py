"""Whether what a run asks of its policy fits the specification. A mistake is a sentence that begins with its flag."""

from vpo_plugin.rewards.spec import RewardSpec


def room(spec: RewardSpec, candidates: int) -> int:
    """The tokens that a response of this many candidates may take."""
    return candidates * spec.limits.tokens_per_candidate


def budget_mistake(spec: RewardSpec, candidates: int, tokens: int, flag: str) -> str | None:
    """Why the candidates do not fit in a response of `tokens`, the value of `flag`; None if they do."""
    needed, each = room(spec, candidates), spec.limits.tokens_per_candidate
    said = f"{flag} is {tokens}, but {candidates} candidates of spec {spec.name!r} take up to {needed} ({each} each)."
    return said if tokens < needed else None


def naming_mistake(spec: RewardSpec, flag: str) -> str | None:
    """Why `flag`, which states weights in the prompt, does not fit; None if all prompts have the same objectives."""
    said = f"{flag} names the objectives in the prompt, but in spec {spec.name!r} their number differs between prompts."
    return said if spec.ragged else None
