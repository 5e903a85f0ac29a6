"""Training prompts: a topic and two to five compatible instructions of IFEval.

As in RLVR-IF (Tulu 3, arXiv 2411.15124), a prompt is a request with drawn instructions and arguments. Unlike RLVR-IF, a
request combines a task and a topic, so that none is a prompt of IFEval, and there are levels, the easiest one for
models of some hundred million parameters.
"""

import itertools
import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from reward_specs.instructions.checkers import conflict, registry

TASKS = (
    "Describe {topic}.",
    "Write a short text about {topic}.",
    "Explain to a child what is special about {topic}.",
    "Tell a little story about {topic}.",
    "Write a few lines of praise for {topic}.",
    "Say why people care about {topic}.",
)
TOPICS = [
    "a river in spring",
    "an old bridge",
    "a mountain village",
    "the night sky",
    "a small garden",
    "a rainy morning",
    "fresh bread",
    "a lighthouse",
    "a train journey",
    "a school library",
    "the first snow",
    "a market square",
    "a fishing boat",
    "wild bees",
    "a wooden table",
    "a street musician",
    "the sound of a violin",
    "a desert road",
    "an apple orchard",
    "a winter coat",
    "a family dinner",
    "a football match",
    "a quiet lake",
    "the smell of coffee",
    "a letter from a friend",
    "a busy kitchen",
    "a paper map",
    "a stone wall",
    "a bicycle tour",
    "the autumn leaves",
    "a clock tower",
    "a sleeping cat",
    "a loyal dog",
    "a farm in summer",
    "a long walk",
    "a warm fire",
    "a village school",
    "the sea at night",
    "a sailing ship",
    "a good book",
]
WORDS = [
    "light",
    "water",
    "time",
    "hand",
    "road",
    "house",
    "green",
    "voice",
    "stone",
    "morning",
    "heart",
    "color",
    "wind",
    "people",
    "little",
    "together",
    "quiet",
    "bright",
    "story",
    "memory",
    "season",
    "gentle",
    "window",
    "simple",
    "silver",
]
FORBIDDEN = ["very", "nice", "thing", "good", "really", "great", "beautiful", "always", "never", "amazing"]
ENDINGS = ("That is all", "Thank you for reading", "And so it ends", "I wish you well")  # the prompt puts a full stop
FILLER = "this is what people say when they look at it and think of the days that have gone by and of those to come"

LEVELS = (2, 3, 4, 5)
"""The instructions of a prompt at level 1, 2, 3 and 4."""

MOST_DRAWS = 1000  # for one prompt that is not a repeat

CASE = ("change_case:english_lowercase", "change_case:english_capital")

# Each instruction: the first level that has it, and its arguments, drawn for a level. Higher levels ask for more.
Draw = Callable[[random.Random, int], dict[str, Any]]
KINDS: dict[str, tuple[int, Draw]] = {
    "change_case:english_lowercase": (1, lambda rng, level: {}),
    "punctuation:no_comma": (1, lambda rng, level: {}),
    "length_constraints:number_words": (1, lambda rng, level: _length(rng, level)),
    "keywords:existence": (1, lambda rng, level: {"keywords": sorted(rng.sample(WORDS, 1 + level // 2))}),
    "startend:quotation": (1, lambda rng, level: {}),
    "startend:end_checker": (1, lambda rng, level: {"end_phrase": rng.choice(ENDINGS)}),
    "detectable_format:number_bullet_lists": (1, lambda rng, level: {"num_bullets": rng.randint(2, 2 + level)}),
    "keywords:forbidden_words": (2, lambda rng, level: {"forbidden_words": sorted(rng.sample(FORBIDDEN, level))}),
    "change_case:english_capital": (2, lambda rng, level: {}),
    "detectable_format:title": (2, lambda rng, level: {}),
    "detectable_content:postscript": (3, lambda rng, level: {"postscript_marker": "P.S."}),
    "detectable_format:number_highlighted_sections": (3, lambda rng, level: {"num_highlights": rng.randint(1, level)}),
    "length_constraints:number_paragraphs": (3, lambda rng, level: {"num_paragraphs": rng.randint(2, level)}),
}


def _length(rng: random.Random, level: int) -> dict[str, Any]:
    if rng.random() < 0.5:
        return {"relation": "at least", "num_words": rng.randrange(20, 30 + 10 * level, 5)}
    return {"relation": "less than", "num_words": rng.randrange(10 + 5 * level, 40 + 5 * level, 5)}


def rows(split: str, num_rows: int, seed: int, *, levels: Sequence[int] = (1, 2)) -> Iterator[dict[str, Any]]:
    """`num_rows` different prompts as `{"prompt", "label"}`, cycling through the levels; `test` and `train` share none.

    Raises:
        ValueError: a level is unknown, or has fewer different prompts.
    """
    if not levels or not set(levels) <= set(range(1, len(LEVELS) + 1)):
        raise ValueError(f"The levels are 1 to {len(LEVELS)}; these are {list(levels)}.")
    rng = random.Random(f"{split} {seed}")
    held_out = [topic for number, topic in enumerate(TOPICS) if (number % 5 == 0) == (split == "test")]
    seen: set[str] = set()
    for number in range(num_rows):
        level = levels[number % len(levels)]
        for _ in range(MOST_DRAWS):
            request = rng.choice(TASKS).format(topic=rng.choice(held_out))
            instructions = draw_instructions(rng, level)
            prompt = request + describe(instructions)
            if prompt not in seen and not forbids(instructions, request):
                break
        else:
            raise ValueError(f"Level {level} of the split '{split}' has fewer than {num_rows} different prompts.")
        seen.add(prompt)
        yield {"prompt": prompt, "label": {"benchmark": "ifeval", "instructions": instructions, "generated": True}}


def draw_instructions(rng: random.Random, level: int) -> list[dict[str, Any]]:
    """Draw the instructions of one prompt of a level, in random order, none of which contradicts another."""
    kinds = [name for name, (first, _) in KINDS.items() if first <= level]
    while True:
        chosen = rng.sample(kinds, LEVELS[level - 1])
        if not any(contradict(one, other) for one, other in itertools.combinations(chosen, 2)):
            return [{"id": name, "arguments": KINDS[name][1](rng, level)} for name in chosen]


def contradict(one: str, other: str) -> bool:
    """Whether two kinds of instructions do not go together: also an exact ending, in mixed case, and a case for all."""
    return conflict(one, other) or ("startend:end_checker" in (one, other) and bool({one, other} & {*CASE}))


def forbids(instructions: Sequence[dict[str, Any]], request: str) -> bool:
    """Whether an instruction forbids a word of the request."""
    words = set(re.findall(r"\w+", request.lower()))
    return any(words & set(one["arguments"].get("forbidden_words", ())) for one in instructions)


def describe(instructions: Sequence[dict[str, Any]]) -> str:
    """The instructions in the words of their checkers, with a space before each, or a line break after one of lines."""
    text, between = "", " "
    for one in instructions:
        said = registry("ifeval")[one["id"]](one["id"]).build_description(**one["arguments"])
        text += between + said
        between = "\n" if "\n" in said else " "
    return text


def write_gold(instructions: Sequence[dict[str, Any]]) -> str:
    """A dull text that follows instructions of `draw_instructions`: proof that they are compatible."""
    asked = {one["id"]: one["arguments"] for one in instructions}

    def of(name: str, argument: str, default: Any) -> Any:
        return asked.get(name, {}).get(argument, default)

    body = f"This is about {' and '.join(of('keywords:existence', 'keywords', ['it']))}."
    marks = "".join(f" *This {n}*" for n in range(of(HIGHLIGHTS, "num_highlights", 0)))
    bullets = "\n* This" * of(BULLETS, "num_bullets", 0)
    parts = [body + marks + bullets] + ["This."] * (of(PARAGRAPHS, "num_paragraphs", 1) - 1)
    text = "\n***\n".join(parts)
    if of("length_constraints:number_words", "relation", "") == "at least":
        missing = of("length_constraints:number_words", "num_words", 0) - len(re.findall(r"\w+", text))
        filler = (FILLER.split() * (missing // len(FILLER.split()) + 1))[: max(0, missing)]
        text = f"{' '.join(filler).capitalize()}. {text}" if filler else text
    if "detectable_format:title" in asked:
        text = f"<<This>>\n{text}"
    if "detectable_content:postscript" in asked:
        text += "\nP.S. This is all."
    if "startend:end_checker" in asked:
        text += f"\n{asked['startend:end_checker']['end_phrase']}"
    if CASE[0] in asked:
        text = text.lower()
    if CASE[1] in asked:
        text = text.upper()
    return f'"{text}"' if "startend:quotation" in asked else text


HIGHLIGHTS = "detectable_format:number_highlighted_sections"
BULLETS = "detectable_format:number_bullet_lists"
PARAGRAPHS = "length_constraints:number_paragraphs"
