"""Time the phases of a CPU training step in two checkouts: `python -m benchmarks.cpu_step --before DIR`.

The plugin's own command trains in the checkout DIR and in this one, in turns, because the machine's load varies; the
host's log has the time of each phase. Prints medians in seconds, over all steps but each training's first, and before
divided by after.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from vpo_plugin.models import resolve_policy

PHASES = ("generation", "make_experience", "ppo_train", "broadcast")
PROMPTS, ROLLOUTS, PROMPT_WORDS, RESPONSE = 8, 4, 100, 75
WORDS = ("river", "mountain", "letter", "window", "garden", "music", "winter", "teacher", "story", "bridge")

SPEC = """\
name: cpu_step
description: Write at length.
objectives: [{key: e, description: number of e}, {key: t, description: number of t}]
candidates: 1
tag: text
prompt: {single: "Write a long story in <text_1> and </text_1>.", multi: "{candidates} stories from <text_1> on."}
scorer: cpu_step_task:score
dataset: {loader: "cpu_step_task:rows"}
limits: {response_chars: 4000, tokens_per_candidate: 1}
"""
TASK = """\
def rows(split, num_rows, seed): return iter(())
def score(candidate, label): return [candidate.count("e") % 7 / 7, candidate.count("t") % 7 / 7]
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="the other checkout")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--steps", type=int, default=3, help="steps of one training")
    parser.add_argument("--rounds", type=int, default=2, help="trainings in each checkout")
    args = parser.parse_args()
    here = Path(__file__).parents[1]
    times: dict[str, list[dict[str, float]]] = {"before": [], "after": []}
    with tempfile.TemporaryDirectory() as folder:
        policy = resolve_policy(args.model, Path(folder))
        policy = str(Path(policy).resolve()) if Path(policy).is_dir() else policy
        for number in range(args.rounds):
            for name, checkout in (("after", here), ("before", args.before)):
                output = Path(folder) / f"{name}-{number}"
                times[name] += train(checkout.resolve(), policy, output, args.steps)[1:]
    print(f"{'phase':16}{'before':>8}{'after':>8}{'ratio':>8}")
    for phase in (*PHASES, "step"):
        before, after = (statistics.median(step[phase] for step in times[name]) for name in times)
        print(f"{phase:16}{before:8.1f}{after:8.1f}{before / after:8.2f}")


def train(checkout: Path, policy: str, output: Path, steps: int) -> list[dict[str, float]]:
    """Seconds of each phase and of all phases, per step of one training in a checkout."""
    output.mkdir()
    (output / "spec.yaml").write_text(SPEC)
    (output / "cpu_step_task.py").write_text(TASK)
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=PROMPT_WORDS)) for _ in range(steps * PROMPTS)]
    rows = "".join(json.dumps({"input": text, "label": 0}) + "\n" for text in texts)
    (output / "prompts.jsonl").write_text(rows)
    batch = str(PROMPTS * ROLLOUTS)
    command = [
        *(sys.executable, "-m", "vpo_plugin.train_ppo_ray", "--advantage", "grpo"),
        *("--vpo.spec", str(output / "spec.yaml"), "--actor.model_name_or_path", policy),
        *("--data.prompt_dataset", str(output / "prompts.jsonl"), "--data.input_key", "input"),
        *("--data.label_key", "label", "--data.apply_chat_template", "--data.max_len", "400"),
        *("--rollout.max_new_tokens", str(RESPONSE), "--rollout.batch_size", str(PROMPTS)),
        *("--rollout.n_samples_per_prompt", str(ROLLOUTS), "--rollout.micro_batch_size", batch),
        *("--train.batch_size", batch, "--train.micro_batch_size", batch),
        *("--algo.kl.init_coef", "0.01", "--algo.kl.use_loss", "--algo.kl.estimator", "k3"),
        *("--ckpt.output_dir", str(output / "policy"), "--ckpt.path", str(output / "checkpoints")),
    ]
    with (output / "log").open("w") as log:
        code = subprocess.run(
            command, cwd=checkout, env={**os.environ, "PYTHONPATH": str(checkout)}, stdout=log, stderr=log, check=False
        ).returncode
    if code:
        sys.exit(f"The training in {checkout} failed:\n{(output / 'log').read_text()[-3000:]}")
    steps_done = [json.loads(line) for line in (output / "policy" / "vpo" / "metrics.jsonl").read_text().splitlines()]
    times = [{phase: step[f"timing/{phase}"] for phase in PHASES if f"timing/{phase}" in step} for step in steps_done]
    return [found | {"step": sum(found.values())} for found in times]


if __name__ == "__main__":
    main()
