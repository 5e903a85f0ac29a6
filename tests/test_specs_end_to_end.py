"""Other specifications through the host with a real language model, one step each."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import run_pipeline

import reward_specs
from vpo_plugin.models import SMOLLM2, resolve_policy

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
