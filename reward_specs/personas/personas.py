"""Three personas judge one answer: what a scientist values, a child and an editor do not.

The judge is a model behind an OpenAI-compatible endpoint: $VPO_JUDGE_URL (default http://localhost:8000/v1) and
$VPO_JUDGE_MODEL (default smollm2). `python -m examples.persona_judge` serves SmolLM2 on this machine, which shows how
the parts work but judges poorly; use a larger model for anything else. For other judges, write `score = panel([…])` in
your own module, with any of the kinds in `vpo_plugin.rewards.judges`.
"""

import importlib.resources
import os
from collections.abc import Iterator

from vpo_plugin.rewards.data import read_dataset, shuffled
from vpo_plugin.rewards.judges import PersonaJudge, panel
from vpo_plugin.rewards.judges import label_check as label_check

URL = os.environ.get("VPO_JUDGE_URL", "http://localhost:8000/v1")
MODEL = os.environ.get("VPO_JUDGE_MODEL", "smollm2")
PERSONAS = (
    "You are a careful scientist. A good answer is correct, says why, and does not claim more than is known.",
    "You are ten years old and curious. A good answer uses short, common words and an example that you can picture.",
    "You are a newspaper editor with little space. A good answer says what matters in as few words as it takes.",
)
JUDGES = [
    PersonaJudge(
        persona,
        MODEL,
        URL,
        scale=(1, 9),
        expected=True,
        extra_body={"structured_outputs": {"regex": "Score: [1-9]"}},  # vLLM's option; other servers have their own
    )
    for persona in PERSONAS
]

score = panel(JUDGES)


def rows(
    split: str, num_rows: int, seed: int, *, source: str | None = None, column: str = "question"
) -> Iterator[dict]:
    """Questions as `{"prompt", "label"}`: those shipped here, or a column of a source for `read_dataset`."""
    file = source or str(importlib.resources.files("reward_specs.personas") / "questions.jsonl")
    for row in shuffled(read_dataset(file, split), num_rows, seed):
        yield {"prompt": f"{row[column].strip()}\n", "label": {"question": row[column].strip()}}


def canonical(candidate: str, label: dict) -> str:
    """Answers that differ only in white space and case are duplicates."""
    return " ".join(candidate.split()).casefold()
