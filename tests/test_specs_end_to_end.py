"""Other specifications through the host with a real language model, one step each."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import ROOT, Training, run_pipeline, write_prompts

import reward_specs
from vpo_plugin.models import SMOLLM2, resolve_policy
from vpo_plugin.openrlhf.log import read_steps

FOLDER = Path(reward_specs.__file__).parent
BRIEF = """
extends: {spec}
name: {spec}_brief
dataset:
  args: {{source: {source}}}
limits: {{response_chars: 4000, tokens_per_candidate: 40}}
"""


SAMPLES = {"toolrl": "sample", "code": "problems", "musique": "sample", "eureqa": "sample"}


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> str:
    return resolve_policy(SMOLLM2, tmp_path_factory.mktemp("policy"))


@pytest.mark.slow
@pytest.mark.parametrize("spec", SAMPLES)
def test_one_step_with_smollm2(tmp_path: Path, smollm2: str, spec: str) -> None:
    """The specification on its own sample rows, with responses kept short: what is tested is the way, not the score."""
    if spec == "code" and shutil.which("bwrap") is None:
        pytest.skip("programs are scored inside bubblewrap, which is not installed")
    brief = tmp_path / "brief" / "spec.yaml"
    brief.parent.mkdir()
    brief.write_text(BRIEF.format(spec=spec, source=FOLDER / spec / f"{SAMPLES[spec]}.jsonl"))
    result = run_pipeline(
        tmp_path,
        name="one-step",
        spec=str(brief),
        model=smollm2,
        methods=["vpo"],
        steps=1,
        prompts_per_step=2,
        rollouts_per_prompt=2,
        max_new_tokens=128,
        eval_prompts=1,
        eval_candidates=3,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads((tmp_path / "one-step" / "report.json").read_text())
    assert report["spec"] == f"{spec}_brief"
    (step,) = report["training"][0]["steps"]
    assert step["set_reward"] >= 0


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("bwrap") is None, reason="programs are scored inside bubblewrap, which is not installed"
)
def test_program_repair_with_smollm2(tmp_path: Path, smollm2: str) -> None:
    """Two steps of the example: each attempt is a row, and what the policy reads between two is no part of one."""
    prompts = write_prompts(tmp_path / "prompts", 4, spec="code")
    training = Training(tmp_path / "policy", prompts, smollm2)
    code, output = training.run(
        *("--vpo.spec", "code", "--vpo.candidates", "1", "--data.apply_chat_template"),
        *("--train.agent_func_path", str(ROOT / "examples" / "program_repair.py")),
        *("--data.max_len", "1600", "--rollout.max_new_tokens", "120"),
        *("--rollout.batch_size", "2", "--rollout.n_samples_per_prompt", "2", "--train.batch_size", "4"),
        *("--rollout.micro_batch_size", "2", "--train.micro_batch_size", "2"),
        timeout=1500,
    )
    assert code == 0, output[-3000:]
    steps = read_steps(training.output / "vpo")
    assert len(steps) == 2 and all(1 <= step["attempts"] <= 3 for step in steps)
    assert max(step["attempts"] for step in steps) > 1, "no program of SmolLM2 is right at once"
    for file in sorted((training.output / "vpo" / "rollouts").glob("*.parquet")):
        for row in pq.read_table(file).to_pylist():
            assert 1 <= len(row["rewards"]) <= 3
            assert all(reward in (0.0, 1.0) for attempt in row["rewards"] for reward in attempt if reward is not None)
            assert "Write the whole program again" not in row["response"]  # the feedback is no action of the policy's
    assert training.processes_left() == []
