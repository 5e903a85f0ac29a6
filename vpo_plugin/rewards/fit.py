"""Whether a run's settings and data fit the specification: each mistake as a sentence."""

from collections.abc import Sequence

from vpo_plugin.rewards.spec import RewardSpec


def room(spec: RewardSpec, candidates: int) -> int:
    """The tokens that a response of this many candidates may take."""
    return candidates * spec.limits.tokens_per_candidate


def budget_mistake(spec: RewardSpec, candidates: int, tokens: int, flag: str) -> str | None:
    """Why the candidates do not fit in a response of `tokens`, the value of `flag`; None if they do."""
    needed, each = room(spec, candidates), spec.limits.tokens_per_candidate
    if tokens >= needed:
        return None
    return (
        f"{flag} is {tokens}, but {candidates} candidates of spec {spec.name!r} take up to {needed} ({each} each): "
        "raise it, or ask for fewer."
    )


def naming_mistake(spec: RewardSpec, flag: str) -> str | None:
    """Why `flag`, which states weights in the prompt, does not fit; None if all prompts have the same objectives."""
    said = f"{flag} names the objectives in the prompt, but in spec {spec.name!r} their number differs between prompts."
    return said if spec.ragged else None


def column_mistake(spec: RewardSpec, names: Sequence[str], prompt: str, label: str, flag: str) -> str | None:
    """Which column a dataset with these columns lacks; None if it has all. `flag` begins the flags that name them."""
    needed = [prompt] if spec.label == "none" else [prompt, label]
    if not (missing := [name for name in needed if name not in names]):
        return None
    return (
        f"it has no column {missing[0]!r} (it has {', '.join(names)}): name the columns of prompt and label with "
        f"{flag}input_key and {flag}label_key."
    )
